"""What operators ask for: health, metrics, version and limits. Nothing here needs a model."""

import asyncio
from importlib import metadata

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from foreframe_server.access import ANY_KEY, OPEN, allow, current_caller
from foreframe_server.errors import ModelFault, not_ready
from foreframe_server.keys import Scope
from foreframe_server.limit_schemas import Limits
from foreframe_server.metrics import CONTENT_TYPE
from foreframe_server.routes.contents import PROBLEMS
from foreframe_server.routes.host import host_of
from foreframe_server.schemas import Health, Version

router = APIRouter(tags=["operations"])


@router.get("/healthz", dependencies=[OPEN], summary="Whether the process lives", responses=PROBLEMS)
async def read_health(request: Request) -> Health:
    """Live while the model is opening; a model that cannot be opened ends that."""
    if host_of(request).has_failed:
        raise ModelFault("The model could not be opened; the log says why.")
    return Health(status="ok")


@router.get("/readyz", dependencies=[OPEN], summary="Whether predictions are answered", responses=PROBLEMS)
async def read_readiness(request: Request) -> Health:
    """Ready once the model is open and warm, and until the server stops."""
    if not host_of(request).is_ready:
        raise not_ready()
    return Health(status="ready")


@router.get(
    "/metrics",
    dependencies=[allow(Scope.METRICS, is_operational=True)],
    summary="Prometheus metrics",
    response_class=Response,
)
async def read_metrics(request: Request) -> Response:
    """Write every series."""
    host = host_of(request)
    host.metrics.observe_observations(len(host.observations), host.observations.num_bytes)
    stores = host.session_stores()
    host.metrics.observe_sessions(sum(map(len, stores)), sum(store.num_bytes for store in stores))
    if host.model is not None and host.model.worker is not None:
        host.metrics.observe_costs(host.model.worker.known_costs())
    return Response(await asyncio.to_thread(host.metrics.scrape), headers={"Content-Type": CONTENT_TYPE})


@router.get("/version", dependencies=[OPEN], summary="Which server this is")
async def read_version() -> Version:
    """Name the installed version."""
    return Version(version=installed_version())


def installed_version() -> str:
    """Return the version of the distribution, or that there is none."""
    try:
        return metadata.version("foreframe")
    except metadata.PackageNotFoundError:
        return "not installed"


@router.get("/v1/limits", dependencies=[ANY_KEY], summary="The bounds that the door enforces")
async def read_limits(request: Request) -> Limits:
    """List the bounds of this server, and the asking key's quota; a model's own are in its contract."""
    return Limits.of(host_of(request).settings, current_caller().quota)


@router.get("/openapi.json", dependencies=[OPEN], include_in_schema=False)
async def read_openapi(request: Request) -> JSONResponse:
    """Send the OpenAPI document, which takes a while to write the first time."""
    return JSONResponse(await host_of(request).compute(request.app.openapi))
