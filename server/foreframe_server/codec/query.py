"""A request's document to a `Query` that nothing later checks again, and to how its call and reply are wanted.

Knows what this server does not offer yet, and refuses it.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from foreframe_engines import Contract, EnsembleSpec, Query, Reducer, Sampling, Strategy
from foreframe_server.calls import CallOptions
from foreframe_server.codec.bounds import Bounds
from foreframe_server.codec.context import ObservationReader, Recall, check_model
from foreframe_server.codec.documents import Document
from foreframe_server.codec.media import DOCUMENT_MEDIA, Media
from foreframe_server.codec.states import read_states
from foreframe_server.codec.validation import validate
from foreframe_server.errors import CapabilityMissing, InvalidRequest, Reason
from foreframe_server.schemas import (
    MAX_SEED,
    EnsembleRequest,
    PictureEncoding,
    PredictionRequest,
    SamplingRequest,
    VarianceDetail,
    Warned,
)
from foreframe_server.session_schemas import StepRequest

_AHEAD = "/future/values"


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """How a reply is wanted, and what it echoes."""

    media: Media
    encoding: PictureEncoding
    variance: VarianceDetail
    has_members: bool
    client_time: float | None
    metadata: Mapping[str, str | int | float | bool | None] | None


@dataclass(frozen=True, slots=True)
class Asked:
    """One decoded request, and how its call and its reply are wanted."""

    query: Query
    options: CallOptions
    reply: ReplyOptions
    warnings: tuple[Warned, ...]


def decode_prediction(document: Document, accepted: Media, contract: Contract, bounds: Bounds, recall: Recall) -> Asked:
    """Read a prediction request for a contract.

    Raises InvalidRequest and its kin, UnknownModel, CapabilityMissing, or Gone.
    """
    request = validate(PredictionRequest, document, [camera.name for camera in contract.cameras])
    _check_offered(request, contract)
    check_reply(request, accepted)
    count = contract.context_frames
    reader = ObservationReader(contract, bounds, range(count, count + 1))
    observed = reader.read(request.observation, request.observation_id, recall)
    num_rows = range(1, contract.horizon + 1)
    future = read_states(request.future.values, _AHEAD, contract.state, num_rows, observed.layout)
    query = Query(
        model=contract.model,
        context=observed.observation.frames[-count:],
        states=np.concatenate([observed.observation.states[-count:], future]),
        frame_indices=read_frame_choice(request, len(future)),
        sampling=read_sampling(request.sampling, contract),
        ensemble=read_ensemble(request.ensemble, request.sampling.strategy, contract),
        priority=request.priority,
        stream_id=request.stream_id,
        context_latents=observed.observation.latents,
    )
    return Asked(
        query=query,
        options=CallOptions(request.deadline_ms, request.priority, request.on_deadline, request.cache),
        reply=reply_options(request, accepted),
        warnings=observed.warnings + observed.find_odd_states(future, _AHEAD, contract.state),
    )


def _refusal(pointer: str, message: str, expected: str | None = None) -> InvalidRequest:
    return InvalidRequest("The request cannot be served as it is.", reasons=[Reason(pointer, message, expected)])


def _check_offered(request: PredictionRequest, contract: Contract) -> None:
    """Refuse what this server or model does not offer; nothing of a request is ignored."""
    check_model(request.model, contract)
    if request.returns.latents:
        raise _missing("/return/latents", "latents are not offered")


def _missing(pointer: str, message: str) -> CapabilityMissing:
    return CapabilityMissing("The model does not offer this.", reasons=[Reason(pointer, message)])


def check_reply(request: PredictionRequest | StepRequest, accepted: Media) -> None:
    """Refuse what a reply of pictures alone cannot hold. Raises InvalidRequest."""
    if accepted in DOCUMENT_MEDIA:
        return
    if request.returns.members or (request.ensemble.reducer is Reducer.NONE and request.ensemble.size > 1):
        raise _refusal("/return/members", f"{accepted} holds one future only; accept JSON or msgpack")
    if request.returns.variance is VarianceDetail.MAP:
        raise _refusal("/return/variance", f"{accepted} cannot hold a variance map; accept JSON or msgpack")


def read_frame_choice(request: PredictionRequest | StepRequest, horizon: int) -> tuple[int, ...]:
    """Return the frames 1..horizon that are wanted. Raises InvalidRequest."""
    if request.frames == "all":
        return tuple(range(1, horizon + 1))
    if request.frames == "last":
        return (horizon,)
    indices = tuple(int(index) for index in request.frames)
    if indices[-1] > horizon:
        raise _refusal("/frames", "a frame lies beyond the future states", f"1..{horizon}")
    return indices


def read_sampling(asked: SamplingRequest, contract: Contract) -> Sampling:
    """Complete how to draw; an absent seed is drawn. Raises InvalidRequest."""
    limit, own = contract.sampler.max_steps, contract.sampler.guidance
    if own is None and asked.guidance not in (None, 1.0):
        raise _refusal("/sampling/guidance", "this model has no guidance", "1.0")
    default = 1.0 if own is None else own
    guidance = default if asked.guidance is None else asked.guidance
    seed = secrets.randbelow(MAX_SEED + 1) if asked.seed is None else asked.seed
    if asked.strategy is Strategy.POSTERIOR_MEAN:
        if asked.steps not in (None, 1):
            raise _refusal("/sampling/steps", "posterior_mean is one evaluation", "1")
        return Sampling(asked.strategy, 1, seed, guidance)
    if asked.steps is not None and asked.steps > limit:
        raise _refusal("/sampling/steps", "is more than this model takes", f"1..{limit}")
    return Sampling(asked.strategy, asked.steps or contract.sampler.steps, seed, guidance)


def read_ensemble(asked: EnsembleRequest, strategy: Strategy, contract: Contract) -> EnsembleSpec:
    """Check how many draws are wanted. Raises InvalidRequest."""
    limit = contract.sampler.max_ensemble_size
    if strategy is Strategy.POSTERIOR_MEAN and asked.size != 1:
        raise _refusal("/ensemble/size", "posterior_mean takes no ensemble", "1")
    if asked.size > limit:
        raise _refusal("/ensemble/size", "is more than this model takes", f"1..{limit}")
    if asked.tolerance is not None and asked.reducer is not Reducer.MEAN:
        raise _refusal("/ensemble/tolerance", "is the mean's standard error", "reducer mean")
    return EnsembleSpec(asked.size, asked.reducer, asked.noise, asked.tolerance)


def reply_options(request: PredictionRequest | StepRequest, accepted: Media) -> ReplyOptions:
    """Return how a reply is wanted."""
    returns = request.returns
    return ReplyOptions(
        media=accepted,
        encoding=returns.encoding,
        variance=returns.variance,
        has_members=returns.members or (request.ensemble.reducer is Reducer.NONE and request.ensemble.size > 1),
        client_time=request.client_time,
        metadata=request.metadata,
    )
