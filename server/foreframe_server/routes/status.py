"""GET /v1/status: how the server is doing, in one small document for people's pages. Knows no wire but this one."""

from fastapi import APIRouter
from starlette.requests import Request

from foreframe_server.access import ANY_KEY
from foreframe_server.routes.contents import PROBLEMS
from foreframe_server.routes.host import host_of
from foreframe_server.status_schemas import StatusReply
from foreframe_server.vital_signs import read_vital_signs

router = APIRouter(tags=["operations"], responses=PROBLEMS, dependencies=[ANY_KEY])


@router.get("/v1/status", summary="Queue, latency, deadlines and cache since the start")
async def read_status(request: Request) -> StatusReply:
    """Add up what the metrics hold; whoever asks twice can take the difference."""
    host = host_of(request)
    signs = await host.compute(read_vital_signs, host.metrics.registry)
    num_sessions = sum(map(len, host.session_stores()))
    return StatusReply.of(signs, is_ready=host.is_ready, num_sessions=num_sessions)
