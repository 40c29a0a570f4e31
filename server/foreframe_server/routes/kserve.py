"""The tensor door: KServe's protocol v2 with Triton's extensions. Knows models' names, no bytes and no engines."""

from typing import Annotated, Any

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from foreframe_engines import Contract
from foreframe_server.access import ANY_KEY, OPEN, allow
from foreframe_server.codec import ExtensionMissing, InputSpec, OutputSpec, TensorModel
from foreframe_server.errors import ModelFault, not_ready
from foreframe_server.keys import Scope
from foreframe_server.kserve_schemas import (
    ConfigInput,
    ConfigOutput,
    ConfigParameter,
    InferReply,
    InferRequest,
    Live,
    ModelConfig,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
    StatisticsReply,
    TensorMetadata,
)
from foreframe_server.routes.contents import TENSOR_PROBLEMS, tensor_body, tensor_reply
from foreframe_server.routes.host import host_of
from foreframe_server.routes.inference import answer_inference, open_tensor_model, tensor_models, write_statistics
from foreframe_server.routes.operations import installed_version

router = APIRouter(tags=["tensors"], responses=TENSOR_PROBLEMS)
_EXTENSIONS = [
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "sequence",
    "statistics",
]
_MISSING = (
    "/v2/cudasharedmemory/{rest:path}",
    "/v2/logging",
    "/v2/models/{name}/generate",
    "/v2/models/{name}/generate_stream",
    "/v2/models/{name}/trace/setting",
    "/v2/models/{name}/versions/{version}/generate",
    "/v2/models/{name}/versions/{version}/generate_stream",
    "/v2/systemsharedmemory/{rest:path}",
    "/v2/trace/setting",
)
_BATCH = -1
Name = Annotated[str, Path(max_length=128)]
_MODEL = "/v2/models/{name}"
_VERSION = "/v2/models/{name}/versions/{version}"


@router.get("/v2", dependencies=[OPEN], summary="Which server this is, and the extensions that it has")
async def read_server() -> ServerMetadata:
    """List only what is offered."""
    return ServerMetadata(version=installed_version(), extensions=_EXTENSIONS)


@router.get("/v2/health/live", dependencies=[OPEN], summary="Whether the process lives")
async def read_live(request: Request) -> Live:
    """Live while the model is opening; a model that cannot be opened ends that."""
    if host_of(request).has_failed:
        raise ModelFault("The model could not be opened; the log says why.")
    return Live()


@router.get("/v2/health/ready", dependencies=[OPEN], summary="Whether inference is answered")
async def read_ready(request: Request) -> Ready:
    """Ready once the model is open and warm, and until the server stops."""
    _check_ready(request)
    return Ready()


def _check_ready(request: Request) -> None:
    if not host_of(request).is_ready:
        raise not_ready()


@router.get("/v2/models/stats", dependencies=[ANY_KEY], summary="What the models have done since the start")
async def read_all_statistics(request: Request) -> StatisticsReply:
    """Count every model."""
    host = host_of(request)
    return StatisticsReply(model_stats=[write_statistics(host, model) for model in tensor_models(host)])


@router.get(f"{_VERSION}/ready", dependencies=[ANY_KEY], summary="Whether a version's inference is answered")
@router.get(f"{_MODEL}/ready", dependencies=[ANY_KEY], summary="Whether a model's inference is answered")
async def read_model_ready(request: Request, name: Name, version: Name | None = None) -> ModelReady:
    """Ready as the server is, for a model that it has."""
    _check_ready(request)
    return ModelReady(name=open_tensor_model(host_of(request), name, version).name)


@router.get(f"{_VERSION}/config", dependencies=[ANY_KEY], summary="A version in the words of Triton's configuration")
@router.get(f"{_MODEL}/config", dependencies=[ANY_KEY], summary="A model in the words of Triton's configuration")
async def read_config(request: Request, name: Name, version: Name | None = None) -> ModelConfig:
    """Describe the tensors without their batch axis."""
    host = host_of(request)
    found = open_tensor_model(host, name, version)
    return _config(found.tensors, found.model.contract)


@router.get(f"{_VERSION}/stats", dependencies=[ANY_KEY], summary="What a version has done since the start")
@router.get(f"{_MODEL}/stats", dependencies=[ANY_KEY], summary="What a model has done since the start")
async def read_statistics(request: Request, name: Name, version: Name | None = None) -> StatisticsReply:
    """Count one model."""
    host = host_of(request)
    return StatisticsReply(model_stats=[write_statistics(host, open_tensor_model(host, name, version))])


@router.get(_VERSION, dependencies=[ANY_KEY], summary="The tensors that a version takes and gives")
@router.get(_MODEL, dependencies=[ANY_KEY], summary="The tensors that a model takes and gives")
async def read_metadata(request: Request, name: Name, version: Name | None = None) -> ModelMetadata:
    """Describe the tensors; the first axis is the batch."""
    host = host_of(request)
    found = open_tensor_model(host, name, version)
    return ModelMetadata(
        name=found.name,
        versions=[found.version],
        inputs=[_metadata(spec) for spec in found.tensors.inputs],
        outputs=[_metadata(spec) for spec in found.tensors.outputs],
    )


_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The tensors that were asked for.", **tensor_reply(InferReply)},
}
_BODY = tensor_body(InferRequest)


@router.post(
    f"{_VERSION}/infer",
    dependencies=[allow(Scope.PREDICT, Scope.LIKELIHOOD)],
    summary="Run a version on tensors",
    openapi_extra=_BODY,
    responses=_ANSWERS,
    response_class=Response,
)
@router.post(
    f"{_MODEL}/infer",
    dependencies=[allow(Scope.PREDICT, Scope.LIKELIHOOD)],
    summary="Run a model on tensors",
    openapi_extra=_BODY,
    responses=_ANSWERS,
    response_class=Response,
)
async def infer(request: Request, name: Name, version: Name | None = None) -> Response:
    """Read, answer every row, write; the binary extension is read from and written to the same body."""
    return await answer_inference(request, name, version)


async def refuse(_: Request) -> Response:
    """Refuse what the protocol knows and this server does not have."""
    raise ExtensionMissing("This server does not have this extension; GET /v2 lists those that it has.")


for _path in _MISSING:
    router.add_api_route(_path, refuse, methods=["GET", "POST"], dependencies=[ANY_KEY], include_in_schema=False)


def _metadata(spec: InputSpec | OutputSpec) -> TensorMetadata:
    return TensorMetadata(name=spec.name, datatype=spec.datatype, shape=[_BATCH, *spec.dims])


def _config(model: TensorModel, contract: Contract) -> ModelConfig:
    facts = {
        "model": contract.model,
        "revision": contract.revision,
        "fps": f"{contract.fps:g}",
        "context_frames": str(contract.context_frames),
        "horizon": str(contract.horizon),
        "state_schema": contract.state.name,
    }
    return ModelConfig(
        name=model.name,
        max_batch_size=model.max_batch_size,
        input=[
            ConfigInput(
                name=spec.name, data_type=f"TYPE_{spec.datatype}", dims=list(spec.dims), optional=spec.is_optional
            )
            for spec in model.inputs
        ],
        output=[
            ConfigOutput(name=spec.name, data_type=f"TYPE_{spec.datatype}", dims=list(spec.dims))
            for spec in model.outputs
        ],
        parameters={name: ConfigParameter(string_value=text) for name, text in facts.items()},
    )
