"""One ASGI app from settings: builds the parts, starts the model beside the door, and stops them in order."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from foreframe_engines import Bundle, RolloutEngine, builtin_bundle, open_rollout_engine
from foreframe_server.cache import RedisTier, ResultCache
from foreframe_server.metrics import Metrics
from foreframe_server.middleware import BodyBounds, RequestLog
from foreframe_server.problems import HANDLERS
from foreframe_server.routes import models, operations, predictions
from foreframe_server.routes.host import Host
from foreframe_server.scheduler import Scheduler
from foreframe_server.schemas import PredictionReply, PredictionRequest, Problem, StateCheckRequest
from foreframe_server.service import PredictionService
from foreframe_server.settings import EngineSettings, Settings
from foreframe_server.worker import EngineWorker

OPENAPI_PATH = Path(__file__).parent.parent / "openapi.json"
_API_VERSION = "1"
_DESCRIPTION = "An inference server for robot world models: predicted frames, their uncertainty, and what they cost."

_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Running:
    """What has been started so far, and must be stopped."""

    cache: ResultCache
    worker: EngineWorker | None = None
    service: PredictionService | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _OpenedEngine:
    engine: RolloutEngine
    fingerprint: str


class _DescribedApp(FastAPI):
    """An app whose OpenAPI document also holds the bodies of the routes that read bytes themselves."""

    def openapi(self) -> dict[str, Any]:
        """Write the OpenAPI document."""
        if self.openapi_schema is None:
            self.openapi_schema = self._describe()
        return self.openapi_schema

    def _describe(self) -> dict[str, Any]:
        document = get_openapi(title=self.title, version=self.version, description=self.description, routes=self.routes)
        schemas = document["components"]["schemas"]
        _, bodies = models_json_schema(
            [
                (PredictionRequest, "validation"),
                (StateCheckRequest, "validation"),
                (PredictionReply, "serialization"),
                (Problem, "serialization"),
            ],
            ref_template="#/components/schemas/{model}",
        )
        document["components"]["schemas"] = dict(sorted({**schemas, **bodies["$defs"]}.items()))
        return document


def create_app(settings: Settings, *, engine: RolloutEngine | None = None) -> FastAPI:
    """Build the app; its lifespan opens the bundle of the settings, or takes over the engine that is given."""
    host = Host(settings, Metrics())
    app = _DescribedApp(
        title="foreframe",
        version=_API_VERSION,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        exception_handlers=dict(HANDLERS),
        lifespan=partial(_lifespan, engine=engine),
    )
    app.state.host = host
    for module in (predictions, models, operations):
        app.include_router(module.router)
    http = settings.http
    app.add_middleware(BodyBounds, max_body_bytes=http.max_body_bytes, body_timeout_s=http.body_timeout_s)
    app.add_middleware(RequestLog, metrics=host.metrics)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI, *, engine: RolloutEngine | None) -> AsyncIterator[None]:
    host: Host = app.state.host
    running = _Running(_open_cache(host))
    app.state.starting = asyncio.create_task(_start_or_say_why(host, running, engine))
    try:
        yield
    finally:
        await _stop(host, running, app.state.starting)


def _open_cache(host: Host) -> ResultCache:
    settings = host.settings.cache
    redis = None
    if settings.redis_url is not None:
        secret = settings.secret.get_secret_value().encode() if settings.secret else None
        redis = RedisTier.connect(
            settings.redis_url.get_secret_value(), host.metrics, secret=secret, ttl_s=settings.ttl_s
        )
    return ResultCache(host.metrics, max_bytes=settings.max_bytes, ttl_s=settings.ttl_s, redis=redis)


async def _start_or_say_why(host: Host, running: _Running, engine: RolloutEngine | None) -> None:
    try:
        await _start(host, running, engine)
    except Exception:  # noqa: BLE001 - a task that nobody awaits: what stops the start is logged, and health tells
        host.has_failed = True
        _log.exception("the model could not be started")


async def _start(host: Host, running: _Running, engine: RolloutEngine | None) -> None:
    settings = host.settings
    opened = await asyncio.to_thread(_open_engine, settings.engine, engine)
    contract = opened.engine.contract
    scheduler = Scheduler(max_rows=contract.buckets[-1], max_pending_rows=settings.scheduler.max_pending_rows)
    running.worker = EngineWorker(opened.engine, scheduler, host.metrics)
    running.worker.start()
    running.service = host.service = PredictionService(
        running.worker, running.cache, host.metrics, opened.engine, engine_fingerprint=opened.fingerprint
    )
    await running.worker.warm_up()
    _log.info("ready", model=contract.model, revision=contract.revision)


def _open_engine(settings: EngineSettings, given: RolloutEngine | None) -> _OpenedEngine:
    if given is not None:
        return _OpenedEngine(given, f"{given.contract.model} {given.contract.revision}")
    bundle = Bundle.open(settings.bundle or builtin_bundle())
    return _OpenedEngine(open_rollout_engine(bundle, num_threads=settings.num_threads), bundle.digest)


async def _stop(host: Host, running: _Running, starting: asyncio.Task[None]) -> None:
    """Admit nothing more, let running work end, stop the device's thread, store what is done, close the cache."""
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await starting
    if running.worker is not None:
        await running.worker.stop(host.settings.http.drain_s)
    if running.service is not None:
        await running.service.close()
    await running.cache.close()


def write_openapi(path: Path = OPENAPI_PATH) -> None:
    """Write the OpenAPI document of the default settings."""
    path.write_text(json.dumps(create_app(Settings()).openapi(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["openapi"]:
        sys.exit("usage: python -m foreframe_server.app openapi")
    write_openapi()
