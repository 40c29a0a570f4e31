"""One call through the service: how a query is to be handled, and what became of it. Values only."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum

from foreframe_engines import Judgement, OnDeadline, Prediction, Priority
from foreframe_server.quarantine import Deaths

REQUEST_ID = r"[A-Za-z0-9._:-]{1,64}"
"""A caller's id of a request that may stand in logs and replies."""


class CachePolicy(StrEnum):
    """`refresh` computes and stores, `bypass` neither looks nor stores."""

    USE = "use"
    BYPASS = "bypass"
    REFRESH = "refresh"


class CacheResult(StrEnum):
    """What the cache did for an answer; `joined` shared another call's computation."""

    HIT = "hit"
    PARTIAL = "partial"
    MISS = "miss"
    JOINED = "joined"
    BYPASS = "bypass"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class CallOptions:
    """How a request wants to be handled. `deadline_ms` counts from its first byte."""

    deadline_ms: int | None = None
    priority: Priority = Priority.CONTROLLER
    on_deadline: OnDeadline = OnDeadline.DEGRADE
    cache: CachePolicy = CachePolicy.USE


@dataclass(frozen=True, slots=True)
class Call:
    """How one query is to be handled. Times are seconds of `time.monotonic`, budgets count from the first byte."""

    request_id: str
    received_s: float
    deadline_s: float | None = None
    on_deadline: OnDeadline = OnDeadline.DEGRADE
    cache: CachePolicy = CachePolicy.USE
    is_disconnected: Callable[[], Awaitable[bool]] | None = None
    priority: Priority = Priority.CONTROLLER
    """Of reads of tokens; a prediction's stands in its query."""
    key: str = ""
    """Whose budget of the device is used."""
    tenant: str = ""
    """Whose results, sessions and observations are shared."""
    deaths: Deaths = field(default_factory=Deaths, compare=False)
    """Of engines, with whatever runs for this call."""
    context_digest: bytes | None = None
    """Of its query's context, where it is large and was looked at before."""


@dataclass(slots=True)
class Timings:
    """Milliseconds spent in each stage of one call; `step_batch_mean` is rows a forward, `cold` a first run."""

    receive: float = 0.0
    decode: float = 0.0
    queue: float = 0.0
    encode: float = 0.0
    condition: float = 0.0
    denoise: float = 0.0
    latent_decode: float = 0.0
    reduce: float = 0.0
    respond: float = 0.0
    total: float = 0.0
    step_batch_mean: float = 0.0
    cold: bool = False


@dataclass(slots=True)
class ReadTimings:
    """Milliseconds in each stage of a call that reads tokens; `read` is the device's work, tokenising included."""

    receive: float = 0.0
    decode: float = 0.0
    queue: float = 0.0
    read: float = 0.0
    respond: float = 0.0
    total: float = 0.0


@dataclass(slots=True)
class ScoreTimings:
    """Milliseconds spent in each stage of a scoring: `prepare` encodes observation and goals, `evaluate` runs plans."""

    receive: float = 0.0
    decode: float = 0.0
    prepare: float = 0.0
    evaluate: float = 0.0
    render: float = 0.0
    respond: float = 0.0
    total: float = 0.0


@dataclass(slots=True)
class HoldTimings:
    """Milliseconds in each stage of an upload; `encode` is every model's work."""

    receive: float = 0.0
    decode: float = 0.0
    encode: float = 0.0
    respond: float = 0.0
    total: float = 0.0


StageTimings = Timings | ReadTimings | ScoreTimings | HoldTimings


@dataclass(frozen=True, slots=True)
class Degraded:
    """How an answer is less than what was asked."""

    members: int
    steps: int
    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a call. judgement: of the members' spread, where a calibration applies."""

    prediction: Prediction
    cache: CacheResult
    from_cache: int
    timings: Timings
    deadline_met: bool
    degraded: Degraded | None
    determinism: str
    judgement: Judgement | None = None
