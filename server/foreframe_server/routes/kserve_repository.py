"""The tensor door's model repository extension: Triton's words for the index, loads and unloads. Knows no tensors."""

from typing import Annotated, Final

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from foreframe_server.access import ANY_KEY, allow
from foreframe_server.admin_schemas import LoadRequest
from foreframe_server.codec import Document, ExtensionMissing, Media, read_document, validate
from foreframe_server.errors import InvalidRequest, Reason
from foreframe_server.keys import Scope
from foreframe_server.kserve_schemas import IndexEntry
from foreframe_server.routes.contents import TENSOR_PROBLEMS
from foreframe_server.routes.host import host_of
from foreframe_server.routes.inference import tensor_models

router = APIRouter(tags=["tensors"], responses=TENSOR_PROBLEMS)
_Name = Annotated[str, Path(max_length=128)]
_ADMIN: Final = allow(Scope.ADMIN, is_operational=True)
_IGNORED: Final = "unload_dependents"


@router.post("/v2/repository/index", dependencies=[ANY_KEY], summary="List the models")
async def read_index(request: Request) -> list[IndexEntry]:
    """List what answers at this door, and the folder's models that could."""
    host = host_of(request)
    found = tensor_models(host) if host.models else []
    entries = [IndexEntry(name=model.name, version=model.version) for model in found]
    listed = {entry.name for entry in entries} | {model.contract.model for model in host.models.every()}
    others = [entry for entry in await host.open_repository().index() if entry.name not in listed]
    return entries + [
        IndexEntry(name=entry.name, version=entry.version or "", state=entry.state.value, reason=entry.reason)
        for entry in others
    ]


@router.post(
    "/v2/repository/models/{name}/load",
    dependencies=[_ADMIN],
    summary="Load a model, or another version",
    response_class=Response,
)
async def load_model(request: Request, name: _Name) -> Response:
    """Do as `/admin/models/{name}/load` does; `version` and `adapter` are parameters."""
    asked = validate(LoadRequest, await _read_parameters(request))
    await host_of(request).open_repository().load(name, asked.version, asked.adapter)
    return Response(status_code=200)


@router.post(
    "/v2/repository/models/{name}/unload", dependencies=[_ADMIN], summary="Unload a model", response_class=Response
)
async def unload_model(request: Request, name: _Name) -> Response:
    """Do as `/admin/models/{name}/unload` does."""
    parameters = await _read_parameters(request)
    if parameters.keys() - {_IGNORED}:
        raise ExtensionMissing("A model is unloaded as it is, without parameters.")
    await host_of(request).open_repository().unload(name)
    return Response(status_code=200)


async def _read_parameters(request: Request) -> Document:
    """Read a body that may be left out. Raises InvalidRequest, or ExtensionMissing for a model that comes along."""
    body = await request.body()
    if not body:
        return {}
    max_values = host_of(request).bounds.max_json_values
    parameters = read_document(body, Media.JSON, max_values=max_values).get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidRequest("The request is not valid.", reasons=[Reason("/parameters", "is no object")])
    if any(name == "config" or name.startswith("file:") for name in parameters):
        raise ExtensionMissing("Models are loaded from this server's folder; none come over the network.")
    return parameters
