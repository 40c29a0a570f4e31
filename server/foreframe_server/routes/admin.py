"""/admin/models: which models there are, and to load, swap and unload them. Knows neither bundles nor engines."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request

from foreframe_server.access import allow
from foreframe_server.admin_schemas import LoadRequest, ModelIndex, ModelStatus
from foreframe_server.codec import read_content_type, read_document, validate
from foreframe_server.keys import Scope
from foreframe_server.repository import ModelEntry
from foreframe_server.routes.contents import PROBLEMS, document_reply
from foreframe_server.routes.host import host_of

router = APIRouter(
    tags=["admin"], responses=PROBLEMS, dependencies=[allow(Scope.ADMIN, is_operational=True)], prefix="/admin"
)
_Name = Annotated[str, Path(max_length=128)]


@router.get("/models", summary="List the models that are loaded or could be")
async def list_models(request: Request) -> ModelIndex:
    """List every model with its versions and adapters."""
    return ModelIndex(models=[model_status(entry) for entry in await host_of(request).open_repository().index()])


@router.post(
    "/models/{name}/load",
    summary="Load a model, or another version of it in place of the one that answers",
    openapi_extra={"requestBody": {"required": False, **document_reply(LoadRequest)}},
)
async def load_model(request: Request, name: _Name) -> ModelStatus:
    """Open, try, swap, then close the old one. What fails leaves the old one serving and says why."""
    asked = await _read_load(request)
    return model_status(await host_of(request).open_repository().load(name, asked.version, asked.adapter))


@router.post("/models/{name}/unload", summary="Let a model end what it has, then close it")
async def unload_model(request: Request, name: _Name) -> ModelStatus:
    """Answer once the model is closed."""
    return model_status(await host_of(request).open_repository().unload(name))


def model_status(entry: ModelEntry) -> ModelStatus:
    """Write how a model stands."""
    return ModelStatus(**asdict(entry))


async def _read_load(request: Request) -> LoadRequest:
    body = await request.body()
    if not body:
        return LoadRequest()
    host = host_of(request)
    media = read_content_type(request.headers.get("content-type"))
    return validate(LoadRequest, read_document(body, media, max_values=host.bounds.max_json_values))
