"""`foreframe doctor`: whether this machine can serve, and what to do where it cannot."""

import importlib
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cache, partial
from pathlib import Path

import numpy as np
from rich.table import Table

from foreframe_engines import Bundle, RuntimeUnavailable, open_rollout_engine, sample
from foreframe_engines.episodes import read_clips
from foreframe_engines.golden import CLIPS, example_clips
from foreframe_server.cli.console import print_json, print_pretty
from foreframe_server.cli.facts import bundle_path
from foreframe_server.cli.faults import Fault, fault_line
from foreframe_server.cli.gl import choose_gl
from foreframe_server.cli.overrides import read_overridden
from foreframe_server.evaluation import posterior_query
from foreframe_server.settings import PREFIX, Settings

_MIN_PYTHON = (3, 11)
_PACKAGES = (
    "fastapi", "uvicorn", "pydantic", "pydantic_settings", "numpy", "safetensors", "onnxruntime", "redis",
    "prometheus_client", "msgpack", "PIL", "av", "structlog",
)  # fmt: skip
_CPU = "CPUExecutionProvider"
_REDIS_TIMEOUT_S = 2.0


class Status(StrEnum):
    """What a check found: only `broken` keeps a server from working."""

    OK = "ok"
    MISSING = "missing (optional)"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `remedy` is empty where there is nothing to do."""

    name: str
    status: Status
    detail: str
    remedy: str


class _Lack(Exception):
    """What a check looks for is not there, and need not be; the message says what cannot be checked without it."""


@dataclass(frozen=True, slots=True, eq=False)
class _Check:
    """`look` says what it found, or raises."""

    name: str
    look: Callable[[], str]
    remedy: str
    is_required: bool = True

    def run(self) -> Finding:
        try:
            return Finding(self.name, Status.OK, self.look(), "")
        except _Lack as lack:
            return Finding(self.name, Status.MISSING, str(lack), self.remedy)
        except Exception as error:  # noqa: BLE001 - whatever breaks is what the doctor is asked to report
            status = Status.BROKEN if self.is_required else Status.MISSING
            return Finding(self.name, status, fault_line(error) or f"{type(error).__name__}: {error}", self.remedy)


def examine(bundle: Path | None, *, is_json: bool) -> bool:
    """Run every check, print the findings and return whether nothing that serving needs is broken."""
    findings = list(_examine(bundle))
    is_fit = all(finding.status is not Status.BROKEN for finding in findings)
    if is_json:
        print_json({"ok": is_fit, "checks": [asdict(finding) for finding in findings]})
    else:
        print_pretty(_table(findings))
    return is_fit


def _examine(bundle: Path | None) -> Iterator[Finding]:
    reinstall = "pip install --force-reinstall foreframe"
    yield _Check("Python", _find_python, "install Python 3.11 or newer").run()
    yield _Check("packages", _find_packages, reinstall).run()
    yield _Check("ONNX Runtime", _find_providers, "pip install --force-reinstall onnxruntime").run()
    configured = _Check("settings", lambda: _count_settings(read_overridden(bundle=bundle)), f"correct {PREFIX}*").run()
    yield configured
    if configured.status is Status.OK:
        for check in _settings_checks(read_overridden(bundle=bundle)):
            yield check.run()
    for check in _optional_checks():
        yield check.run()


def _settings_checks(settings: Settings) -> Iterator[_Check]:
    remedy = "give another bundle, or reinstall foreframe for the built-in one"
    open_bundle = cache(lambda: Bundle.open(bundle_path(settings)))
    yield _Check("bundle", lambda: _describe(open_bundle()), remedy)
    yield _Check("a prediction", lambda: _predict_once(open_bundle(), settings.engine.num_threads), remedy)
    yield _Check("clips", lambda: _count_clips(open_bundle()), f"{remedy}; `foreframe export` writes {CLIPS}")
    yield _Check("Redis", partial(_ping_redis, settings), f"start it, or unset {PREFIX}CACHE__REDIS_URL")
    port = f"stop what listens there, or `foreframe serve --port` with another than {settings.http.port}"
    yield _Check("port", partial(_find_port, settings), port, is_required=False)


def _optional_checks() -> Iterator[_Check]:
    client = "pip install foreframe-client (demo, eval and --url need it)"
    yield _Check("client", partial(_find_version, "foreframe_client"), client, is_required=False)
    torch = "pip install 'foreframe[models]' (train and export need it)"
    yield _Check("torch", partial(_find_version, "torch"), torch, is_required=False)
    mujoco = "pip install 'foreframe[world]' (world generate needs it)"
    yield _Check("MuJoCo", partial(_find_version, "mujoco"), mujoco, is_required=False)
    yield _Check("OpenGL", lambda: f"renders with {choose_gl()}", "needed by world generate only", is_required=False)


def _find_python() -> str:
    if sys.version_info < _MIN_PYTHON:
        raise Fault(f"Python {platform.python_version()} is too old")
    return platform.python_version()


def _find_packages() -> str:
    for name in _PACKAGES:
        importlib.import_module(name)
    return f"{len(_PACKAGES)} import"


def _find_providers() -> str:
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    if _CPU not in providers:
        raise RuntimeUnavailable(f"{_CPU} is missing")
    names = ", ".join(provider.removesuffix("ExecutionProvider") for provider in providers)
    return f"{onnxruntime.__version__}: {names}"


def _count_settings(settings: Settings) -> str:
    changed = sum(len(getattr(settings, group).model_fields_set) for group in settings.model_fields_set)
    return f"valid, {changed} set"


def _describe(bundle: Bundle) -> str:
    return f"{bundle.contract.model} {bundle.contract.revision}, digest {bundle.digest[:12]}"


def _predict_once(bundle: Bundle, num_threads: int) -> str:
    if "predict" not in bundle.contract.capabilities:
        raise _Lack("the bundle has no rollout half, so no prediction can be tried")
    with closing(open_rollout_engine(bundle, num_threads=num_threads)) as engine:
        query = posterior_query(engine.contract, example_clips(bundle)[0])
        started = time.perf_counter()
        prediction = sample(engine, query)
    if np.ptp(prediction.frames) == 0:
        raise Fault("the predicted frames are blank")
    return f"{len(prediction.frames)} frames in {(time.perf_counter() - started) * 1000:.0f} ms"


def _count_clips(bundle: Bundle) -> str:
    if CLIPS not in bundle.files:
        raise _Lack(
            f"the bundle has no {CLIPS}: how good it is cannot be checked, nor can demos and sessions start from a clip"
        )
    return f"{len(read_clips(bundle.files[CLIPS].content, CLIPS))} held out"


def _ping_redis(settings: Settings) -> str:
    if settings.cache.redis_url is None:
        return "not configured; results are cached in this process"
    import redis

    try:
        with redis.Redis.from_url(
            settings.cache.redis_url.get_secret_value(), socket_timeout=_REDIS_TIMEOUT_S
        ) as connection:
            connection.ping()
    except (redis.RedisError, ValueError) as error:
        raise Fault(f"does not answer ({type(error).__name__})") from error
    return "answers"


def _find_port(settings: Settings) -> str:
    host, port = settings.http.host, settings.http.port
    with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
        return f"{port} on {host} is free" if port else "a free one is taken"


def _find_version(package: str) -> str:
    try:
        return str(importlib.import_module(package).__version__)
    except ModuleNotFoundError as error:
        raise Fault("not installed") from error


def _table(findings: list[Finding]) -> Table:
    colours = {Status.OK: "green", Status.MISSING: "yellow", Status.BROKEN: "bold red"}
    table = Table("", "status", "found", "remedy", header_style="bold")
    for finding in findings:
        status = f"[{colours[finding.status]}]{finding.status}[/]"
        table.add_row(finding.name, status, finding.detail, finding.remedy)
    return table
