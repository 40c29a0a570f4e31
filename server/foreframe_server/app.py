"""One ASGI app from settings: builds the parts, starts the model beside the door, and stops them in order."""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from foreframe_engines import Bundle, Contract, RolloutEngine, builtin_bundle, open_rollout_engine
from foreframe_engines.calibration import Calibration
from foreframe_engines.engine import LikelihoodEngine
from foreframe_engines.likelihood import open_likelihood_engine
from foreframe_server.budgets import Budgets
from foreframe_server.cache import RedisTier, ResultCache
from foreframe_server.context_encoder import ContextEncoder
from foreframe_server.cost_model import CostModel
from foreframe_server.likelihood_schemas import LikelihoodReply, LikelihoodRequest
from foreframe_server.likelihood_service import LikelihoodService
from foreframe_server.metrics import Metrics
from foreframe_server.middleware import BodyBounds, RequestLog
from foreframe_server.observation_schemas import ObservationReply, ObservationRequest
from foreframe_server.problems import HANDLERS
from foreframe_server.progress_schemas import AcceptedEvent, EstimateEvent, UpdateEvent
from foreframe_server.routes import likelihoods, models, observations, operations, predictions, scores
from foreframe_server.routes.host import Host
from foreframe_server.scheduler import Scheduler
from foreframe_server.schemas import PredictionReply, PredictionRequest, Problem, StateCheckRequest
from foreframe_server.score_schemas import ScoreReply, ScoreRequest
from foreframe_server.score_service import ScoreService
from foreframe_server.service import PredictionService
from foreframe_server.settings import EngineSettings, SchedulerSettings, Settings
from foreframe_server.token_reader import TokenReader
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
    reader: TokenReader | None = None
    service: PredictionService | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _OpenedEngines:
    """The engines of one model, and what they came with; `fingerprint` tells its bytes from other models'."""

    rollout: RolloutEngine
    fingerprint: str
    likelihood: LikelihoodEngine | None = None
    calibration: Calibration | None = None


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
                (LikelihoodRequest, "validation"),
                (ObservationRequest, "validation"),
                (PredictionRequest, "validation"),
                (ScoreRequest, "validation"),
                (StateCheckRequest, "validation"),
                (AcceptedEvent, "serialization"),
                (EstimateEvent, "serialization"),
                (LikelihoodReply, "serialization"),
                (ObservationReply, "serialization"),
                (PredictionReply, "serialization"),
                (Problem, "serialization"),
                (ScoreReply, "serialization"),
                (UpdateEvent, "serialization"),
            ],
            ref_template="#/components/schemas/{model}",
        )
        document["components"]["schemas"] = dict(sorted({**schemas, **bodies["$defs"]}.items()))
        return document


def create_app(
    settings: Settings,
    *,
    engine: RolloutEngine | None = None,
    likelihood_engine: LikelihoodEngine | None = None,
    calibration: Calibration | None = None,
) -> FastAPI:
    """Build the app; its lifespan opens the bundle of the settings, or takes over the engines that are given."""
    host = Host(settings, Metrics())
    given = None
    if engine is not None:
        fingerprint = f"{engine.contract.model} {engine.contract.revision}"
        given = _OpenedEngines(engine, fingerprint, likelihood_engine, calibration)
    app = _DescribedApp(
        title="foreframe",
        version=_API_VERSION,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        exception_handlers=dict(HANDLERS),
        lifespan=partial(_lifespan, given=given),
    )
    app.state.host = host
    for module in (predictions, likelihoods, scores, observations, models, operations):
        app.include_router(module.router)
    http = settings.http
    app.add_middleware(BodyBounds, max_body_bytes=http.max_body_bytes, body_timeout_s=http.body_timeout_s)
    app.add_middleware(RequestLog, metrics=host.metrics)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI, *, given: _OpenedEngines | None) -> AsyncIterator[None]:
    host: Host = app.state.host
    running = _Running(_open_cache(host))
    app.state.starting = asyncio.create_task(_start_or_say_why(host, running, given))
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


async def _start_or_say_why(host: Host, running: _Running, given: _OpenedEngines | None) -> None:
    try:
        await _start(host, running, given)
    except Exception:  # noqa: BLE001 - a task that nobody awaits: what stops the start is logged, and health tells
        host.has_failed = True
        _log.exception("the model could not be started")


async def _start(host: Host, running: _Running, given: _OpenedEngines | None) -> None:
    settings = host.settings
    opened = await asyncio.to_thread(_open_engines, settings.engine) if given is None else given
    contract = opened.rollout.contract
    scheduler = _build_scheduler(settings.scheduler, contract)
    running.worker = EngineWorker(opened.rollout, scheduler, host.metrics)
    running.worker.start()
    await running.worker.warm_up()
    if opened.likelihood is not None:
        running.reader = _build_reader(host, running.worker, opened.likelihood)
        host.reader = running.reader
        host.likelihoods = LikelihoodService(running.reader, host.metrics, opened.calibration)
        await running.reader.warm_up()
    host.encoder = ContextEncoder(contract, running.worker, running.reader)
    host.scores = ScoreService(
        opened.rollout, running.worker, running.reader, host.metrics, max_jobs=settings.scores.max_jobs
    )
    running.service = host.service = PredictionService(
        running.worker,
        running.cache,
        host.metrics,
        opened.rollout,
        engine_fingerprint=opened.fingerprint,
        determinism=running.worker.determinism,
    )
    _log.info("ready", model=contract.model, revision=contract.revision)


def _build_scheduler(limits: SchedulerSettings, contract: Contract) -> Scheduler:
    return Scheduler(
        CostModel(contract.buckets, max_rows=limits.max_rows),
        max_pending_s=limits.max_pending_s,
        bulk_share=limits.bulk_share,
        budgets=Budgets(limits.key_budget, limits.key_burst_s),
    )


def _build_reader(host: Host, worker: EngineWorker, engine: LikelihoodEngine) -> TokenReader:
    limits = host.settings.scheduler
    return TokenReader(
        engine, worker, host.metrics, max_rows=limits.max_read_rows, max_pending_s=limits.max_pending_read_s
    )


def _open_engines(settings: EngineSettings) -> _OpenedEngines:
    bundle = Bundle.open(settings.bundle or builtin_bundle())
    rollout = open_rollout_engine(bundle, num_threads=settings.num_threads)
    if bundle.contract.tokens is None:
        return _OpenedEngines(rollout, bundle.digest)
    likelihood = open_likelihood_engine(bundle, num_threads=settings.num_threads)
    return _OpenedEngines(rollout, bundle.digest, likelihood, bundle.calibration)


async def _stop(host: Host, running: _Running, starting: asyncio.Task[None]) -> None:
    """Let running reads end, then running predictions, stop the device's thread, store what is done, close the cache.

    Nothing new is admitted by what is stopping.
    """
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await starting
    drain_until_s = time.monotonic() + host.settings.http.drain_s
    if running.reader is not None:
        await running.reader.stop(host.settings.http.drain_s)
    if running.worker is not None:
        await running.worker.stop(max(0.0, drain_until_s - time.monotonic()))
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
