"""One ASGI app from settings: builds the parts, starts the model beside the door, and stops them in order."""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import structlog
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from foreframe_engines import Bundle, Contract, RolloutEngine, builtin_bundle
from foreframe_engines.calibration import Calibration
from foreframe_engines.engine import LikelihoodEngine
from foreframe_engines.likelihood import open_likelihood_engine
from foreframe_engines.runtime.engine_cache import EngineCache
from foreframe_engines.serving_engine import open_serving_engine
from foreframe_engines.swapping import Stage, SwappingRolloutEngine
from foreframe_server.budgets import Budgets
from foreframe_server.cache import RedisTier, ResultCache
from foreframe_server.context_encoder import ContextEncoder
from foreframe_server.cost_model import CostModel
from foreframe_server.device import DeviceThread
from foreframe_server.errors import NotReady
from foreframe_server.kserve_schemas import InferReply, InferRequest, TensorProblem
from foreframe_server.likelihood_schemas import LikelihoodReply, LikelihoodRequest
from foreframe_server.likelihood_service import LikelihoodService
from foreframe_server.metrics import Metrics
from foreframe_server.middleware import BodyBounds, RequestLog
from foreframe_server.observation_schemas import ObservationReply, ObservationRequest
from foreframe_server.problems import HANDLERS
from foreframe_server.progress_schemas import AcceptedEvent, EstimateEvent, UpdateEvent
from foreframe_server.realtime_schemas import RealtimeReply, RealtimeRequest
from foreframe_server.routes import (
    kserve,
    likelihoods,
    models,
    observations,
    openpi,
    operations,
    predictions,
    realtime,
    scores,
    sessions,
)
from foreframe_server.routes.host import Host, HostedModel
from foreframe_server.scheduler import Scheduler
from foreframe_server.schemas import PredictionReply, PredictionRequest, Problem
from foreframe_server.score_schemas import ScoreReply, ScoreRequest
from foreframe_server.score_service import ScoreService
from foreframe_server.service import OnAnswer, PredictionService, ignore_answer
from foreframe_server.session_clips import ShippedClips
from foreframe_server.session_schemas import (
    PushReply,
    PushRequest,
    ResetRequest,
    RollbackRequest,
    SessionReply,
    SessionRequest,
    StepReply,
    StepRequest,
)
from foreframe_server.session_service import SessionService
from foreframe_server.session_store import SessionLimits, SessionStore
from foreframe_server.settings import EngineSettings, SchedulerSettings, Settings
from foreframe_server.shared_sessions import SharedSessions
from foreframe_server.state_check_schemas import StateCheckRequest
from foreframe_server.token_reader import TokenReader
from foreframe_server.worker import EngineWorker

if TYPE_CHECKING:
    from foreframe_server.recording.recorder import Recorder

OPENAPI_PATH = Path(__file__).parent.parent / "openapi.json"
_API_VERSION = "1"
_HANDOVER_POLL_S = 0.5
_DESCRIPTION = (
    "An inference server for robot world models: predicted frames, their uncertainty, and what they cost. "
    "The websocket `/v1/realtime` takes messages as RealtimeRequest and sends messages as RealtimeReply, in msgpack."
)

_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Running:
    """What has been started so far, and must be stopped."""

    cache: ResultCache
    device: DeviceThread | None = None
    worker: EngineWorker | None = None
    reader: TokenReader | None = None
    service: PredictionService | None = None
    sessions: SessionService | None = None
    recorder: "Recorder | None" = None
    handover: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class OpenedEngines:
    """The engines of one model, at least one, and what they came with.

    `fingerprint` tells its bytes from other models', and from the same model's on another backend.
    """

    fingerprint: str
    rollout: RolloutEngine | None = None
    likelihood: LikelihoodEngine | None = None
    calibration: Calibration | None = None
    folder: Path | None = None
    """The bundle's, where clips lie beside the model."""

    @property
    def contract(self) -> Contract:
        """The model's contract. Raises ValueError when there is no engine."""
        return self._engine.contract

    @property
    def determinism(self) -> str:
        """What the model's engine says that equal queries may count on. Raises as `contract`."""
        return self._engine.determinism

    @property
    def _engine(self) -> RolloutEngine | LikelihoodEngine:
        engine = self.rollout or self.likelihood
        if engine is None:
            raise ValueError("a model needs an engine")
        return engine


OpenEngines: TypeAlias = Callable[[EngineSettings], OpenedEngines]
"""Opens the model that the settings name, in a thread of its own. Raises EngineError."""


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
                (InferRequest, "validation"),
                (AcceptedEvent, "serialization"),
                (EstimateEvent, "serialization"),
                (InferReply, "serialization"),
                (LikelihoodReply, "serialization"),
                (ObservationReply, "serialization"),
                (PredictionReply, "serialization"),
                (Problem, "serialization"),
                (PushReply, "serialization"),
                (PushRequest, "validation"),
                (RealtimeReply, "serialization"),
                (RealtimeRequest, "validation"),
                (ResetRequest, "validation"),
                (RollbackRequest, "validation"),
                (ScoreReply, "serialization"),
                (SessionReply, "serialization"),
                (SessionRequest, "validation"),
                (StepReply, "serialization"),
                (StepRequest, "validation"),
                (TensorProblem, "serialization"),
                (UpdateEvent, "serialization"),
            ],
            ref_template="#/components/schemas/{model}",
        )
        document["components"]["schemas"] = dict(sorted({**bodies["$defs"], **schemas}.items()))
        return document


def create_app(settings: Settings, open_engines: OpenEngines | None = None) -> FastAPI:
    """Build the app; its lifespan opens the model, by default the bundle of the settings on ONNX Runtime."""
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
        lifespan=partial(_lifespan, open_engines=open_engines or open_bundle),
    )
    app.state.host = host
    native = (predictions, likelihoods, scores, observations, sessions, realtime, models)
    for module in (*native, openpi, kserve, operations):
        app.include_router(module.router)
    http = settings.http
    app.add_middleware(BodyBounds, max_body_bytes=http.max_body_bytes, body_timeout_s=http.body_timeout_s)
    app.add_middleware(RequestLog, metrics=host.metrics)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI, *, open_engines: OpenEngines) -> AsyncIterator[None]:
    host: Host = app.state.host
    running = _Running(_open_cache(host))
    app.state.starting = asyncio.create_task(_start_or_say_why(host, running, open_engines))
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


async def _start_or_say_why(host: Host, running: _Running, open_engines: OpenEngines) -> None:
    try:
        await _start(host, running, open_engines)
    except Exception:  # noqa: BLE001 - a task that nobody awaits: what stops the start is logged, and health tells
        host.has_failed = True
        _log.exception("the model could not be started")


async def _start(host: Host, running: _Running, open_engines: OpenEngines) -> None:
    opened = await asyncio.to_thread(open_engines, host.settings.engine)
    running.device = await _start_device(host, running, opened)
    if opened.likelihood is not None:
        running.reader = _build_reader(host, running.device, opened.likelihood)
        await running.reader.warm_up()
        host.reader = running.reader
        host.likelihoods = LikelihoodService(running.reader, host.metrics, opened.calibration)
    host.encoder = ContextEncoder(opened.contract, running.worker, running.reader)
    determinism = opened.determinism if running.worker is None else running.worker.determinism
    if "score" in opened.contract.capabilities:
        host.scores = ScoreService(
            opened.contract, running.worker, running.reader, host.metrics, max_jobs=host.settings.scores.max_jobs
        )
    if opened.rollout is not None and running.worker is not None:
        running.service = host.service = PredictionService(
            running.worker,
            running.cache,
            host.metrics,
            opened.rollout,
            engine_fingerprint=opened.fingerprint,
            determinism=determinism,
            on_answer=_record_answers(host, running, opened.contract),
        )
        host.clips = ShippedClips(opened.folder)
        running.sessions = host.sessions = _build_sessions(host, running.service, running.worker, opened.fingerprint)
    elif host.settings.recording.folder is not None:
        _log.warning("nothing is recorded, as the model predicts nothing")
    host.metrics.describe_model(opened.contract, determinism)
    host.model = HostedModel(opened.contract, determinism)
    _log.info("ready", model=opened.contract.model, revision=opened.contract.revision)


async def _start_device(host: Host, running: _Running, opened: OpenedEngines) -> DeviceThread:
    """Start the thread that owns the device, with a rollout model warm on it where there is one."""
    if opened.rollout is None:
        device = DeviceThread(host.metrics)
        device.start()
        return device
    scheduler = _build_scheduler(host.settings.scheduler, opened.contract)
    running.worker = EngineWorker(opened.rollout, scheduler, host.metrics)
    running.worker.start()
    await running.worker.warm_up()
    if isinstance(opened.rollout, SwappingRolloutEngine):
        running.handover = asyncio.create_task(_learn_after_handover(opened.rollout, running.worker))
    return running.worker


async def _learn_after_handover(engine: SwappingRolloutEngine, worker: EngineWorker) -> None:
    """Learn what work takes once the engine that was built meanwhile serves."""
    while engine.handover.stage is Stage.PREPARING:  # noqa: ASYNC110 - it ends in a thread without an event loop
        await asyncio.sleep(_HANDOVER_POLL_S)
    _log.info("handover", stage=engine.handover.stage, reason=engine.handover.reason)
    if engine.handover.stage is Stage.SERVING:
        await worker.warm_up()


def _build_scheduler(limits: SchedulerSettings, contract: Contract) -> Scheduler:
    return Scheduler(
        CostModel(contract.buckets, max_rows=limits.max_rows),
        max_pending_s=limits.max_pending_s,
        bulk_share=limits.bulk_share,
        budgets=Budgets(limits.key_budget, limits.key_burst_s),
    )


def _record_answers(host: Host, running: _Running, contract: Contract) -> OnAnswer:
    """Start to record answers, where the settings name a folder."""
    settings = host.settings.recording
    if settings.folder is None:
        return ignore_answer
    from foreframe_server.recording.recorder import Recorder  # noqa: PLC0415 - needs what comes with an extra

    running.recorder = Recorder(settings.folder, contract, host.metrics, settings)
    running.recorder.start()
    return running.recorder.offer


def _build_sessions(
    host: Host, predictions: PredictionService, worker: EngineWorker, fingerprint: str
) -> SessionService:
    settings, cache = host.settings.sessions, host.settings.cache
    limits = SessionLimits(**{field.name: getattr(settings, field.name) for field in fields(SessionLimits)})
    shared = None
    if settings.is_shared and cache.redis_url is not None and cache.secret is not None:
        shared = SharedSessions.connect(
            cache.redis_url.get_secret_value(),
            host.metrics,
            secret=cache.secret.get_secret_value().encode(),
            fingerprint=fingerprint,
        )
    store = SessionStore(limits, host.metrics, time.monotonic)
    return SessionService(predictions, worker, store, host.metrics, shared=shared)


def _build_reader(host: Host, device: DeviceThread, engine: LikelihoodEngine) -> TokenReader:
    limits = host.settings.scheduler
    return TokenReader(
        engine, device, host.metrics, max_rows=limits.max_read_rows, max_pending_s=limits.max_pending_read_s
    )


def open_bundle(settings: EngineSettings) -> OpenedEngines:
    """Open the bundle of the settings, by default the built-in one, in the fastest way known. Raises EngineError."""
    bundle = Bundle.open(settings.bundle or builtin_bundle())
    rollout = likelihood = None
    if "predict" in bundle.contract.capabilities:
        cache = None if settings.cache is None else EngineCache(settings.cache)
        rollout = open_serving_engine(bundle, num_threads=settings.num_threads, cache=cache)
    if bundle.contract.tokens is not None:
        likelihood = open_likelihood_engine(bundle, num_threads=settings.num_threads)
    return OpenedEngines(bundle.digest, rollout, likelihood, bundle.calibration, bundle.path)


def given(
    rollout: RolloutEngine | None, likelihood: LikelihoodEngine | None = None, calibration: Calibration | None = None
) -> OpenEngines:
    """Return what hands over engines that are open already; the server closes them."""
    engine = rollout or likelihood
    fingerprint = "" if engine is None else f"{engine.contract.model} {engine.contract.revision}"
    return lambda _: OpenedEngines(fingerprint, rollout, likelihood, calibration)


async def _stop(host: Host, running: _Running, starting: asyncio.Task[None]) -> None:
    """Let running reads end, then running predictions, stop the device's thread, store what is done, close the cache.

    Nothing new is admitted by what is stopping.
    """
    for task in (starting, running.handover):
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, NotReady):
                await task
    drain_until_s = time.monotonic() + host.settings.http.drain_s
    if running.reader is not None:
        await running.reader.stop(host.settings.http.drain_s)
    if running.worker is not None:
        await running.worker.stop(max(0.0, drain_until_s - time.monotonic()))
    elif running.device is not None:
        await running.device.join()
    if running.service is not None:
        await running.service.close()
    if running.sessions is not None:
        await running.sessions.close()
    if running.recorder is not None:
        await asyncio.to_thread(running.recorder.close)
    await running.cache.close()


def write_openapi(path: Path = OPENAPI_PATH) -> None:
    """Write the OpenAPI document of the default settings."""
    path.write_text(json.dumps(create_app(Settings()).openapi(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["openapi"]:
        sys.exit("usage: python -m foreframe_server.app openapi")
    write_openapi()
