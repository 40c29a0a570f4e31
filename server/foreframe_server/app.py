"""One ASGI app from settings: builds the parts, starts the model beside the door, and stops them in order."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from foreframe_engines import BundleError
from foreframe_server.access import Gate, check_exposure, check_policies
from foreframe_server.admin_schemas import LoadRequest
from foreframe_server.cache import RedisTier, ResultCache
from foreframe_server.devices import OpenDevices, open_devices
from foreframe_server.errors import ServiceError
from foreframe_server.hosting import ModelStarter
from foreframe_server.kserve_schemas import InferReply, InferRequest, TensorProblem
from foreframe_server.likelihood_schemas import LikelihoodReply, LikelihoodRequest
from foreframe_server.metrics import Metrics
from foreframe_server.middleware import BodyBounds, RequestLog
from foreframe_server.model_folder import check_folder
from foreframe_server.observation_schemas import ObservationReply, ObservationRequest
from foreframe_server.opening import OpenEngines, open_bundle
from foreframe_server.problems import HANDLERS
from foreframe_server.progress_schemas import AcceptedEvent, EstimateEvent, UpdateEvent
from foreframe_server.realtime_schemas import RealtimeReply, RealtimeRequest
from foreframe_server.repository import ModelRepository
from foreframe_server.routes import (
    admin,
    clips,
    kserve,
    kserve_repository,
    likelihoods,
    models,
    observations,
    openpi,
    operations,
    pages,
    predictions,
    realtime,
    scores,
    sessions,
    status,
)
from foreframe_server.routes.host import Host
from foreframe_server.schemas import PredictionReply, PredictionRequest, Problem
from foreframe_server.score_schemas import ScoreReply, ScoreRequest
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
from foreframe_server.settings import Settings, SettingsError
from foreframe_server.state_check_schemas import StateCheckRequest

OPENAPI_PATH = Path(__file__).parent.parent / "openapi.json"
_API_VERSION = "1"
_DESCRIPTION = (
    "An inference server for robot world models: predicted frames, their uncertainty, and what they cost. "
    "The websocket `/v1/realtime` takes messages as RealtimeRequest and sends messages as RealtimeReply, in msgpack."
)

_log = structlog.get_logger(__name__)


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
                (LoadRequest, "validation"),
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


def create_app(
    settings: Settings, open_engines: OpenEngines | None = None, open_devices: OpenDevices = open_devices
) -> FastAPI:
    """Build the app; its lifespan opens the model, by default the bundle of the settings on ONNX Runtime.

    open_devices: where it is opened, by default on this machine.

    Raises SettingsError for a file of keys that cannot be read, a network without keys, or a folder of models that is
    not there.
    """
    check_exposure(settings)
    check_folder(settings.models.folder)
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
        lifespan=partial(_lifespan, open_engines=open_engines or open_bundle, open_devices=open_devices),
    )
    app.state.host = host
    app.state.gate = Gate(settings)
    native = (predictions, likelihoods, scores, observations, sessions, realtime, models, clips)
    for module in (*native, openpi, kserve, kserve_repository, operations, status, pages, admin):
        app.include_router(module.router)
    check_policies(app)
    http = settings.http
    app.add_middleware(BodyBounds, max_body_bytes=http.max_body_bytes, body_timeout_s=http.body_timeout_s)
    app.add_middleware(RequestLog, metrics=host.metrics, is_leaving=lambda: host.is_leaving)
    _add_tracing(app, settings)
    return app


def _add_tracing(app: FastAPI, settings: Settings) -> None:
    if settings.tracing.endpoint is None:
        return
    try:
        from foreframe_server.tracing import RequestTrace, open_provider  # noqa: PLC0415 - comes with an extra
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"FOREFRAME_TRACING__ENDPOINT: {error.name} is missing; run `pip install 'foreframe[otel]'`"
        ) from error
    app.add_middleware(RequestTrace, provider=open_provider(settings.tracing))


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI, *, open_engines: OpenEngines, open_devices: OpenDevices) -> AsyncIterator[None]:
    host: Host = app.state.host
    cache = _open_cache(host)
    await cache.check()
    starter = ModelStarter(host.settings, host.metrics, cache, app.state.gate.quotas.charge, open_devices)
    app.state.starting = starting = asyncio.create_task(_start_or_say_why(host, starter, open_engines))
    try:
        yield
    finally:
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        try:
            if host.repository is not None:
                await host.repository.close(host.settings.http.drain_s)
        finally:
            await cache.close()


def _open_cache(host: Host) -> ResultCache:
    settings = host.settings.cache
    redis = None
    if settings.redis_url is not None:
        secret = settings.secret.get_secret_value().encode() if settings.secret else None
        if secret is None:
            _log.warning(
                "nothing is shared through Redis: each server signs with a key of its own until all have the same one",
                setting="FOREFRAME_CACHE__SECRET",
            )
        redis = RedisTier.connect(
            settings.redis_url.get_secret_value(), host.metrics, secret=secret, ttl_s=settings.ttl_s
        )
    return ResultCache(host.metrics, max_bytes=settings.max_bytes, ttl_s=settings.ttl_s, redis=redis)


async def _start_or_say_why(host: Host, starter: ModelStarter, open_engines: OpenEngines) -> None:
    host.repository = ModelRepository(host.settings, host.metrics, starter, open_engines, host.models)
    try:
        await host.repository.start()
    except (BundleError, ServiceError) as error:
        host.failure = error
        _log.error("the model could not be started", reason=str(error))
    except Exception as error:  # noqa: BLE001 - a task that nobody awaits: what stops the start is logged, and health tells
        host.failure = error
        _log.exception("the model could not be started")


def write_openapi(path: Path = OPENAPI_PATH) -> None:
    """Write the OpenAPI document of the default settings."""
    path.write_text(json.dumps(create_app(Settings()).openapi(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["openapi"]:
        sys.exit("usage: python -m foreframe_server.app openapi")
    write_openapi()
