"""GET /v1/models/{id}/clips: the recorded clips that come with a model. Knows no files and no pictures."""

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from foreframe_server.access import ANY_KEY
from foreframe_server.clip_schemas import ClipList, ClipReply
from foreframe_server.codec.clips import encode_clip, encode_clips
from foreframe_server.codec.media import Media
from foreframe_server.routes.contents import PROBLEMS
from foreframe_server.routes.host import host_of

router = APIRouter(tags=["models"], responses=PROBLEMS, dependencies=[ANY_KEY])
_Id = Annotated[str, Path(alias="id", max_length=128)]


@router.get("/v1/models/{id}/clips", summary="List the clips that come with a model", response_model=ClipList)
async def list_clips(request: Request, model_id: _Id) -> Response:
    """Read every clip's number and a picture of it."""
    host = host_of(request)
    model = host.models.find(model_id)
    return _document(await host.compute(encode_clips, model.clips, model.contract))


@router.get("/v1/models/{id}/clips/{index}", summary="Read a clip that comes with a model", response_model=ClipReply)
async def read_clip(request: Request, model_id: _Id, index: Annotated[int, Path(ge=0, lt=2**31)]) -> Response:
    """Read one clip: frames and states of the context, then of what really happened."""
    host = host_of(request)
    model = host.models.find(model_id)
    return _document(await host.compute(encode_clip, model.clips, index, model.contract))


def _document(content: bytes) -> Response:
    return Response(content, media_type=Media.JSON.value)
