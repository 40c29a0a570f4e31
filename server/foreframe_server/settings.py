"""Every setting of the server, read once from `FOREFRAME_*`. The only reader of the environment.

A key in a group is written with two underscores: `FOREFRAME_HTTP__PORT=8080`. Unknown keys and bad values
stop the start.
"""

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as UnreadableSettings

PREFIX = "FOREFRAME_"
MAX_MESSAGE_BYTES = 64 * 2**20
CLIENT_KEY = "FOREFRAME_API_KEY"
"""What this package's clients read, in the same environment."""

_DELIMITER = "__"
_REDIS_SCHEMES = ("redis", "rediss", "unix")
_MAX_SUGGESTIONS = 3


class SettingsError(ValueError):
    """A setting is unknown or has a bad value; the message is one line for a person."""


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HttpSettings(_Group):
    """The HTTP door."""

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on, or a socket as unix:/run/foreframe.sock.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="Port; 0 takes a free one.")
    admin_host: str = Field(default="127.0.0.1", min_length=1, description="As host, for operators alone.")
    admin_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port for metrics and administration; none answers them on `port`.",
    )
    parser: Literal["httptools", "h11"] = Field(default="httptools", description="What reads HTTP; both say the same.")
    max_body_bytes: int = Field(default=16 * 2**20, ge=1024, description="Largest request body.")
    body_timeout_s: float = Field(default=10.0, gt=0, description="Time for a whole request body to arrive.")
    min_rate: int = Field(default=64_000, ge=1, description="Slowest bytes a second of a body, and of a reply.")
    max_chunks: int = Field(default=65_536, ge=1, description="Chunks of one body.")
    header_timeout_s: float = Field(default=5.0, gt=0, description="Time for the head of a request to arrive.")
    max_head_bytes: int = Field(default=16 * 2**10, ge=1024, description="Request line and headers together.")
    max_request_line_bytes: int = Field(default=4 * 2**10, ge=256, description="The request line.")
    max_headers: int = Field(default=64, ge=8, description="Headers of one request.")
    keep_alive_s: float = Field(default=5.0, gt=0, description="Time that a connection may wait for a request.")
    max_connections: int = Field(default=1024, ge=1, description="Connections; those without a request leave first.")
    max_connections_per_address: int = Field(
        default=64, ge=1, description="Connections of one address; this machine and trusted proxies may hold more."
    )
    trusted_proxies: str = Field(
        default="",
        description="Addresses, with commas between, whose X-Forwarded-For is believed.",
    )
    hosts: str = Field(
        default="",
        description="Names, with commas between and without ports, that requests may be for beside this machine's own; "
        "keys make any name do.",
    )
    origins: str = Field(
        default="",
        description="Other sites, with commas between, whose pages may ask, such as https://robots.example.",
    )
    codec_threads: int = Field(default=2, ge=1, le=64, description="Threads that read and write pictures.")
    lame_duck_s: float = Field(default=2.0, ge=0, description="Time to serve on after SIGTERM, not ready any more.")
    drain_s: float = Field(default=25.0, ge=0, description="Time from SIGTERM for running requests to end.")

    @property
    def max_message_bytes(self) -> int:
        """Largest message of a websocket: no larger than a body, and never over 64 MiB."""
        return min(self.max_body_bytes, MAX_MESSAGE_BYTES)


class RealtimeSettings(_Group):
    """The websocket door."""

    max_in_flight: int = Field(default=32, ge=1, le=1024, description="Unanswered requests of one websocket.")


class ModelSettings(_Group):
    """Models that may be loaded and unloaded while the server runs."""

    folder: Path | None = Field(
        default=None, description="Folder of `<name>/<version>/` bundles and `<name>/adapters/*.safetensors`."
    )
    load: tuple[str, ...] | None = Field(
        default=None, description="Names of the folder's models to load at the start, as JSON; none is all of them."
    )


class EngineSettings(_Group):
    """The model and what runs it."""

    bundle: Path | None = Field(default=None, description="Folder of a model bundle; none is the built-in model.")
    num_threads: int = Field(default=2, ge=1, le=256, description="Threads of one forward.")
    processes: int = Field(
        default=1, ge=0, le=64, description="Processes that run the model, one a device; 0 runs it in the server's own."
    )
    cache: Path | None = Field(default=None, description="Folder of built engines; none is one beside the bundle.")
    backend: Literal["auto", "torch"] = Field(
        default="auto", description="`auto` is ONNX Runtime, and TensorRT where `foreframe build` found it; or `torch`."
    )
    device: str = Field(default="cpu", description="Where torch runs, such as cuda.")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="What torch multiplies in.")
    is_compiled: bool = Field(default=False, description="Whether torch compiles the transformer's blocks.")
    has_cuda_graphs: bool = Field(default=False, description="Whether torch replays small forwards as CUDA graphs.")


class SchedulerSettings(_Group):
    """How much work may wait."""

    max_pending_s: float = Field(default=30.0, gt=0, description="Predicted seconds of predictions that may wait.")
    max_rows: int | None = Field(
        default=None, ge=1, le=256, description="Members of one forward; none is what the start finds to be enough."
    )
    bulk_share: float = Field(
        default=0.1, gt=0, lt=1, description="Share of the device that bulk work keeps while controllers wait."
    )
    key_budget: float | None = Field(
        default=None, gt=0, description="Device seconds a second after which a key is served last; none is no limit."
    )
    key_burst_s: float = Field(default=2.0, gt=0, description="Device seconds that a key may use at once.")
    max_pending_read_s: float = Field(
        default=10.0, gt=0, description="Predicted seconds of token reads that may be ahead of new ones."
    )
    max_read_rows: int = Field(default=8, ge=1, le=256, description="Token reads before other work has its turn.")


class CacheSettings(_Group):
    """The result cache."""

    max_bytes: int = Field(default=256 * 2**20, ge=0, description="Memory of the in-process cache; 0 turns it off.")
    ttl_s: float = Field(default=600.0, gt=0, description="Age at which an entry is forgotten.")
    redis_url: SecretStr | None = Field(default=None, description="Shared cache, such as redis://127.0.0.1:6379/0.")
    secret: SecretStr | None = Field(
        default=None, description="Key that signs entries of the shared cache; servers that share one need the same."
    )

    @field_validator("redis_url")
    @classmethod
    def _is_redis_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not _is_redis_url(url.get_secret_value()):
            raise ValueError("must be a URL that begins with redis://, rediss:// or unix://")
        return url


class ObservationSettings(_Group):
    """Observations that are uploaded once and used many times."""

    ttl_s: float = Field(default=60.0, gt=0, description="Age at which an uploaded observation is forgotten.")
    max_ttl_s: float = Field(default=3600.0, gt=0, description="Longest such age that a request may ask for.")
    max_bytes: int = Field(default=256 * 2**20, ge=0, description="Memory of all uploaded observations.")


class SessionSettings(_Group):
    """Stateful rollouts."""

    ttl_s: float = Field(default=600.0, gt=0, description="Time after its last use at which a session is forgotten.")
    max_ttl_s: float = Field(default=3600.0, gt=0, description="Longest such time that a request may ask for.")
    max_sessions: int = Field(default=1024, ge=1, description="Sessions held at once.")
    max_bytes: int = Field(default=512 * 2**20, ge=0, description="Memory of all sessions, shared memory once.")
    max_session_bytes: int = Field(default=256 * 2**20, ge=0, description="Memory of one session.")
    history_bytes: int = Field(
        default=16 * 2**20, ge=0, description="Memory of one session's predictions that it can roll back to."
    )
    max_step_rows: int = Field(default=256, ge=1, le=4096, description="State rows of one step.")
    is_shared: bool = Field(
        default=False, description="Keep sessions in the cache's Redis too, so that another server can go on."
    )


class ScoreSettings(_Group):
    """Candidate plans that are ranked."""

    max_jobs: int = Field(default=8, ge=1, le=256, description="Candidates of one call in the device's queue at once.")


class RecordingSettings(_Group):
    """What was asked and answered, as files."""

    folder: Path | None = Field(default=None, description="Folder to record every prediction into; none is nowhere.")
    max_pending_bytes: int = Field(
        default=256 * 2**20, ge=2**20, description="Memory of what waits to be written; more is dropped."
    )
    max_bytes: int = Field(default=10 * 2**30, ge=2**20, description="What one run writes at most; more is dropped.")


class KeySettings(_Group):
    """Who may ask."""

    file: Path | None = Field(
        default=None,
        description="File of keys, as `foreframe keys` writes it; none lets everybody on this machine ask.",
    )
    max_failures: int = Field(default=10, ge=1, description="Wrong keys a minute that an address hears 401 for.")


class TracingSettings(_Group):
    """Spans of requests, for OpenTelemetry."""

    endpoint: str | None = Field(
        default=None, description="Where spans go, such as http://127.0.0.1:4318/v1/traces; none traces nothing."
    )
    service_name: str = Field(default="foreframe", min_length=1, description="What the spans call this server.")
    sample_ratio: float = Field(default=1.0, ge=0, le=1, description="Share of traces begun here that is kept.")


class LimitSettings(_Group):
    """Bounds on what one request may hold."""

    max_json_values: int = Field(default=65_536, ge=256, description="Values in a JSON body; arrays go as msgpack.")
    max_picture_pixels: int = Field(default=4 * 2**20, ge=1, description="Pixels of a picture that is to be padded.")
    max_candidates: int = Field(default=256, ge=1, description="Candidates of one scoring; a model may take fewer.")


class Settings(BaseSettings):
    """Every setting, frozen. Build it with `read_settings` to get one clear line for a mistake."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter=_DELIMITER, frozen=True, extra="forbid", validate_default=True
    )

    http: HttpSettings = HttpSettings()
    realtime: RealtimeSettings = RealtimeSettings()
    engine: EngineSettings = EngineSettings()
    models: ModelSettings = ModelSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    cache: CacheSettings = CacheSettings()
    observations: ObservationSettings = ObservationSettings()
    sessions: SessionSettings = SessionSettings()
    scores: ScoreSettings = ScoreSettings()
    recording: RecordingSettings = RecordingSettings()
    limits: LimitSettings = LimitSettings()
    tracing: TracingSettings = TracingSettings()
    keys: KeySettings = KeySettings()

    @model_validator(mode="after")
    def _shares_sessions_through_redis(self) -> Self:
        if self.sessions.is_shared and (self.cache.redis_url is None or self.cache.secret is None):
            needed = f"{PREFIX}CACHE__REDIS_URL and {PREFIX}CACHE__SECRET"
            raise ValueError(f"{PREFIX}SESSIONS__IS_SHARED needs {needed}")
        return self


def read_settings(overrides: Mapping[str, Mapping[str, object]] | None = None) -> Settings:
    """Read the settings from the environment, `overrides` (group to key to value) first.

    Raises SettingsError with one line that names the key and never its value.
    """
    _refuse_unknown(os.environ)
    try:
        return Settings(**dict(overrides or {}))  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        raise SettingsError(_one_line(error)) from None
    except UnreadableSettings as error:
        raise SettingsError(f"{PREFIX}* holds a value that cannot be read: {error}") from None


def setting_names() -> Iterator[str]:
    """Name every environment key the server reads."""
    for group, field in Settings.model_fields.items():
        for key in _group_type(field.annotation).model_fields:
            yield f"{PREFIX}{group}{_DELIMITER}{key}".upper()


def _group_type(annotation: object) -> type[_Group]:
    if not (isinstance(annotation, type) and issubclass(annotation, _Group)):
        raise TypeError("a field of Settings is a group")
    return annotation


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    known = set(setting_names())
    names = [key.upper() for key in environ if key.upper().startswith(PREFIX)]
    unknown = sorted(name for name in names if name not in known and name != CLIENT_KEY)
    if unknown:
        raise SettingsError(f"unknown setting {unknown[0]}; {_suggestion(unknown[0], sorted(known))}")


def _suggestion(name: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=_MAX_SUGGESTIONS)
    page = "docs/settings.md lists every one"
    return f"did you mean {' or '.join(nearest)}? {page}" if nearest else page


def _is_redis_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises where it is no number
    except ValueError:
        return False
    return parts.scheme in _REDIS_SCHEMES and url.startswith(f"{parts.scheme}://")


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    key = _DELIMITER.join(str(part) for part in first["loc"]).upper()
    message = first["msg"].removeprefix("Value error, ")
    return f"{PREFIX}{key}: {message}" if key else message
