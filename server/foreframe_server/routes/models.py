"""What is served: model contracts, state schemas, and a dry run of states against a schema."""

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request

from foreframe_engines import Contract, StateSchema
from foreframe_server.codec import decode_state_check, read_content_type
from foreframe_server.errors import UnknownModel
from foreframe_server.likelihood_service import LikelihoodService
from foreframe_server.routes.contents import PROBLEMS, document_body
from foreframe_server.routes.host import Host, host_of
from foreframe_server.schemas import (
    CameraReply,
    ModelContract,
    ModelList,
    SamplerReply,
    StateCheckReply,
    StateCheckRequest,
    StateSchemaList,
    StateSchemaReply,
    TokensReply,
)

router = APIRouter(tags=["models"], responses=PROBLEMS)
_Name = Annotated[str, Path(max_length=128)]


@router.get("/v1/models", summary="List the models that are loaded")
async def list_models(request: Request) -> ModelList:
    """List every contract."""
    return ModelList(models=[contract_reply(host_of(request))])


@router.get("/v1/models/{id}", summary="Read a model's contract")
async def read_model(request: Request, model_id: Annotated[str, Path(alias="id", max_length=128)]) -> ModelContract:
    """Read one contract."""
    host = host_of(request)
    if model_id != host.open_contract().model:
        raise UnknownModel("No model of this name is loaded.")
    return contract_reply(host)


def contract_reply(host: Host) -> ModelContract:
    """Write the contract of the model that is served. Raises NotReady before it is open."""
    contract = host.open_contract()
    sampler = contract.sampler
    return ModelContract(
        id=contract.model,
        family=contract.family,
        revision=contract.revision,
        description=contract.description,
        cameras=[CameraReply(name=spec.name, height=spec.height, width=spec.width) for spec in contract.cameras],
        context_frames=contract.context_frames,
        horizon=contract.horizon,
        fps=contract.fps,
        state_schema=contract.state.name,
        state_dim=contract.state.dim,
        sampler=SamplerReply(
            steps=sampler.steps,
            max_steps=sampler.max_steps,
            shift=sampler.shift,
            max_ensemble_size=sampler.max_ensemble_size,
            solver=sampler.solver.value,
            guidance=sampler.guidance,
        ),
        tokens=_tokens_reply(contract, host.likelihoods),
        capabilities=list(contract.capabilities),
        determinism=host.open_model().determinism,
    )


def _tokens_reply(contract: Contract, likelihoods: LikelihoodService | None) -> TokensReply | None:
    tokens = contract.tokens
    if tokens is None:
        return None
    rows, columns = tokens.grid
    return TokensReply(
        levels=list(tokens.levels),
        vocabulary=tokens.vocabulary,
        rows=rows,
        columns=columns,
        window_frames=tokens.window_frames,
        window_grids=tokens.window_grids,
        max_grids=tokens.max_grids,
        max_candidates=tokens.max_candidates,
        is_calibrated=likelihoods is not None and likelihoods.is_calibrated,
    )


@router.get("/v1/state-schemas", summary="List the state schemas of the loaded models")
async def list_state_schemas(request: Request) -> StateSchemaList:
    """List every schema."""
    return StateSchemaList(state_schemas=[_schema_reply(host_of(request).open_contract().state)])


@router.get("/v1/state-schemas/{name}", summary="Read a state schema")
async def read_state_schema(request: Request, name: _Name) -> StateSchemaReply:
    """Read one schema: names, units and training statistics."""
    return _schema_reply(_schema(request, name))


@router.post(
    "/v1/state-schemas/{name}/check",
    summary="Try rows of states against a schema",
    openapi_extra=document_body(StateCheckRequest),
)
async def check_states(request: Request, name: _Name) -> StateCheckReply:
    """Refuse what a prediction would refuse, and warn of what it would warn of."""
    host, schema = host_of(request), _schema(request, name)
    media = read_content_type(request.headers.get("content-type"))
    return await host.compute(decode_state_check, await request.body(), media, schema, host.bounds)


def _schema(request: Request, name: str) -> StateSchema:
    schema = host_of(request).open_contract().state
    if name != schema.name:
        raise UnknownModel("No loaded model uses a state schema of this name.")
    return schema


def _schema_reply(schema: StateSchema) -> StateSchemaReply:
    return StateSchemaReply(
        name=schema.name,
        dim=schema.dim,
        names=list(schema.names),
        units=list(schema.units),
        mean=schema.mean.tolist(),
        std=schema.std.tolist(),
        low=schema.low.tolist(),
        high=schema.high.tolist(),
    )
