"""What is served: model contracts, state schemas of models and of known robots, and a dry run of states."""

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request

from foreframe_engines import Contract
from foreframe_server.access import ANY_KEY
from foreframe_server.codec import decode_state_check, read_content_type
from foreframe_server.errors import UnknownModel
from foreframe_server.hosting import HostedModel
from foreframe_server.likelihood_service import LikelihoodService
from foreframe_server.routes.contents import PROBLEMS, document_body
from foreframe_server.routes.host import Host, host_of
from foreframe_server.schemas import (
    CameraReply,
    ModelContract,
    ModelList,
    SamplerReply,
    TokensReply,
)
from foreframe_server.state_check_schemas import StateCheckReply, StateCheckRequest, StateSchemaList, StateSchemaReply
from foreframe_server.state_schemas import (
    GENERIC,
    RegisteredSchema,
    Semantics,
    UnitSource,
    find_kin,
    find_schema,
    registered_schemas,
)

router = APIRouter(tags=["models"], responses=PROBLEMS, dependencies=[ANY_KEY])
_Name = Annotated[str, Path(max_length=128)]


@router.get("/v1/models", summary="List the models that are loaded")
async def list_models(request: Request) -> ModelList:
    """List every contract."""
    return ModelList(models=[contract_reply(model) for model in _loaded(host_of(request))])


@router.get("/v1/models/{id}", summary="Read a model's contract")
async def read_model(request: Request, model_id: Annotated[str, Path(alias="id", max_length=128)]) -> ModelContract:
    """Read one contract."""
    return contract_reply(host_of(request).models.find(model_id))


def _loaded(host: Host) -> list[HostedModel]:
    """List what is loaded. Raises NotReady before anything is."""
    host.open_model()
    return host.models.every()


def contract_reply(model: HostedModel) -> ModelContract:
    """Write a model's contract."""
    contract = model.contract
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
        tokens=_tokens_reply(contract, model.likelihoods),
        capabilities=list(contract.capabilities),
        determinism=model.determinism,
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


@router.get("/v1/state-schemas", summary="List state schemas")
async def list_state_schemas(request: Request) -> StateSchemaList:
    """List the loaded models' schemas, then those of known robots."""
    own = _own_schemas(host_of(request))
    others = [schema for schema in registered_schemas() if schema.name not in own]
    replies = [*map(_own_reply, own.values()), *map(_registered_reply, others)]
    return StateSchemaList(state_schemas=replies, patterns=[GENERIC])


@router.get("/v1/state-schemas/{name}", summary="Read a state schema")
async def read_state_schema(request: Request, name: _Name) -> StateSchemaReply:
    """Read one schema: names, units, ranges, and the statistics of a loaded model's."""
    own = _own_schemas(host_of(request))
    return _own_reply(own[name]) if name in own else _registered_reply(_registered(name))


def _own_schemas(host: Host) -> dict[str, Contract]:
    """Return the contract behind each loaded schema; the default's stands for models that share a name."""
    return {model.contract.state.name: model.contract for model in reversed(_loaded(host))}


@router.post(
    "/v1/state-schemas/{name}/check",
    summary="Try rows of states against a schema",
    openapi_extra=document_body(StateCheckRequest),
)
async def check_states(request: Request, name: _Name) -> StateCheckReply:
    """Refuse what a prediction would refuse, and warn of what it would warn of."""
    host = host_of(request)
    own = _own_schemas(host)
    schema = own[name].state if name in own else _registered(name).as_state_schema()
    media = read_content_type(request.headers.get("content-type"))
    return await host.compute(decode_state_check, await request.body(), media, schema, host.bounds)


def _registered(name: str) -> RegisteredSchema:
    schema = find_schema(name)
    if schema is None:
        raise UnknownModel("No loaded model uses a state schema of this name, and no known robot has one.")
    return schema


def _own_reply(contract: Contract) -> StateSchemaReply:
    schema = contract.state
    kin = find_kin(schema.names)
    no_limits: list[float | None] = [None] * schema.dim
    no_semantics: list[Semantics | None] = [None] * schema.dim
    return StateSchemaReply(
        name=schema.name,
        dim=schema.dim,
        names=list(schema.names),
        units=list(schema.units),
        mean=schema.mean.tolist(),
        std=schema.std.tolist(),
        low=schema.low.tolist(),
        high=schema.high.tolist(),
        is_loaded=True,
        description=f"States of {contract.model}.",
        source="the model's contract",
        rate_hz=contract.fps,
        unit_sources=[UnitSource.STATED] * schema.dim,
        minimum=no_limits,
        maximum=no_limits,
        semantics=no_semantics if kin is None else [dimension.semantics for dimension in kin.dimensions],
    )


def _registered_reply(schema: RegisteredSchema) -> StateSchemaReply:
    dimensions, typical = schema.dimensions, schema.typical
    return StateSchemaReply(
        name=schema.name,
        dim=len(dimensions),
        names=list(schema.names),
        units=list(schema.units),
        mean=[each.mean for each in typical] or None,
        std=[each.std for each in typical] or None,
        low=None,
        high=None,
        is_loaded=False,
        description=schema.description,
        source=schema.source,
        rate_hz=schema.rate_hz,
        unit_sources=[dimension.unit_source for dimension in dimensions],
        minimum=[dimension.low for dimension in dimensions],
        maximum=[dimension.high for dimension in dimensions],
        semantics=[dimension.semantics for dimension in dimensions],
    )
