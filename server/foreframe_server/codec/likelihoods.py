"""A likelihood's document to a checked `LikelihoodQuery`, and its answer back to bytes. Knows no route."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from foreframe_engines import Contract, StateSchema
from foreframe_engines.nats import TopKCrossEntropy, TopKDefinition, bits_map
from foreframe_engines.types import TokenSpec
from foreframe_engines.windows import grid_lengths
from foreframe_server.calls import Call, CallOptions, ReadTimings
from foreframe_server.codec.bounds import Bounds
from foreframe_server.codec.context import ObservationReader, Observed, Recall, check_model
from foreframe_server.codec.documents import Document, write_document
from foreframe_server.codec.layouts import find_changes, is_declared, read_layout
from foreframe_server.codec.media import Media
from foreframe_server.codec.observation import ReadFrames, read_clip
from foreframe_server.codec.reply import EncodedReply
from foreframe_server.codec.states import read_states
from foreframe_server.codec.tokens import context_frames, read_ids, scaled, target_windows
from foreframe_server.codec.validation import validate
from foreframe_server.errors import InvalidRequest, Reason
from foreframe_server.likelihood_schemas import (
    DEFAULT_TOP_K,
    LikelihoodReply,
    LikelihoodRequest,
    LikelihoodTarget,
    ReadTimingsReply,
    SurpriseReply,
    TopKReply,
)
from foreframe_server.likelihoods import LikelihoodAnswer, LikelihoodQuery, TopK
from foreframe_server.schemas import Scalar, Warned
from foreframe_server.state_layout import StateLayout

_TARGET = "/target"
_STATE = "/target/state"
_UNCALIBRATED = Warned(
    code="uncalibrated",
    pointer="",
    message="surprise has no z and no quantile: the model has no calibration for this scenario",
)


@dataclass(frozen=True, slots=True)
class AskedLikelihood:
    """One decoded request, how its call is to be handled, and what its reply echoes."""

    query: LikelihoodQuery
    options: CallOptions
    media: Media
    has_map: bool
    warnings: tuple[Warned, ...]
    client_time: float | None
    metadata: Mapping[str, Scalar] | None


@dataclass(frozen=True, slots=True, eq=False)
class _Target:
    frames: ReadFrames | None
    ids: np.ndarray | None
    num_frames: int


def decode_likelihood(
    document: Document, accepted: Media, contract: Contract, bounds: Bounds, recall: Recall
) -> AskedLikelihood:
    """Read a likelihood request for a contract that has tokens.

    Raises InvalidRequest and its kin with pointers, UnknownModel, or Gone.
    """
    tokens = _tokens(contract)
    request = validate(LikelihoodRequest, document, [camera.name for camera in contract.cameras])
    check_model(request.model, contract)
    reader = ObservationReader(contract, bounds, context_frames(tokens))
    observed = reader.read(request.observation, request.observation_id, recall)
    num_windows = target_windows(tokens, len(observed.observation.frames))
    target = _read_target(request.target, contract, bounds, num_windows)
    schema, pointer = contract.state, f"{_STATE}/values"
    layout, changes = _read_layout(request.target, observed, schema)
    num_rows = range(target.num_frames, target.num_frames + 1)
    states = read_states(request.target.state.values, pointer, schema, num_rows, layout)
    resized = target.frames.warnings if target.frames is not None else ()
    return AskedLikelihood(
        query=LikelihoodQuery(
            observation=observed.observation,
            target_states=states,
            target_ids=target.ids,
            target_frames=None if target.frames is None else target.frames.frames,
            scenario=request.scenario,
            top_k=_top_k(request, tokens),
        ),
        options=CallOptions(request.deadline_ms, request.priority),
        media=accepted,
        has_map=request.map,
        warnings=(*observed.warnings, *changes, *resized, *observed.find_odd_states(states, pointer, schema, layout)),
        client_time=request.client_time,
        metadata=request.metadata,
    )


def _read_layout(
    target: LikelihoodTarget, observed: Observed, schema: StateSchema
) -> tuple[StateLayout, tuple[Warned, ...]]:
    """Return how the target's states are written, by default as the observation's, and what is to be said of that."""
    if not is_declared(target.state, schema):
        return observed.layout, ()
    layout = read_layout(target.state, _STATE, schema)
    return layout, find_changes(layout, _STATE, schema)


def _tokens(contract: Contract) -> TokenSpec:
    if contract.tokens is None:
        raise RuntimeError("a likelihood was decoded for a model without tokens")
    return contract.tokens


def _read_target(target: LikelihoodTarget, contract: Contract, bounds: Bounds, num_windows: range) -> _Target:
    tokens = _tokens(contract)
    has_pictures = target.frames is not None or target.data is not None
    if has_pictures == (target.ids is not None):
        raise _refusal(_TARGET, "needs either frames or ids", "frames, data or ids")
    if target.ids is None:
        num_frames = scaled(num_windows, tokens.window_frames)
        frames = read_clip(target, contract.camera, num_frames, _TARGET, max_picture_pixels=bounds.max_picture_pixels)
        return _Target(frames, None, len(frames.frames))
    for name in ("encoding", "width", "height", "resize"):
        if getattr(target, name) is not None:
            raise _refusal(f"{_TARGET}/{name}", "is of pictures, and the target is ids")
    ids = read_ids(target.ids, f"{_TARGET}/ids", tokens, scaled(num_windows, tokens.window_grids))
    return _Target(None, ids, len(ids) // tokens.window_grids * tokens.window_frames)


def _top_k(request: LikelihoodRequest, tokens: TokenSpec) -> TopK | None:
    if request.support == "full":
        for name in ("top_k", "top_k_definition"):
            if getattr(request, name) is not None:
                raise _refusal(f"/{name}", "needs support top_k", "support top_k")
        return None
    if request.top_k is not None and request.top_k > tokens.vocabulary:
        raise _refusal("/top_k", "is more than the vocabulary has", f"1 to {tokens.vocabulary}")
    k = request.top_k or min(DEFAULT_TOP_K, tokens.vocabulary)
    return TopK(k, request.top_k_definition or TopKDefinition.TOPK_RENORMALISED)


def _refusal(pointer: str, message: str, expected: str | None = None) -> InvalidRequest:
    return InvalidRequest("The request cannot be served as it is.", reasons=[Reason(pointer, message, expected)])


def encode_likelihood(asked: AskedLikelihood, answer: LikelihoodAnswer, contract: Contract, call: Call) -> EncodedReply:
    """Encode an answer as it was asked for. Sets `answer.timings.respond`."""
    start_s = time.monotonic()
    document = _build(asked, answer, contract, call.request_id).model_dump(by_alias=True)
    now_s = time.monotonic()
    # The reply tells its own cost as far as it is known: only the envelope is left to write.
    document["timings_ms"] |= {
        "respond": round((now_s - start_s) * 1000, 3),
        "total": round((now_s - call.received_s) * 1000, 3),
    }
    body = write_document(document, asked.media)
    answer.timings.respond = (time.monotonic() - start_s) * 1000
    return EncodedReply(body, asked.media, {})


def _build(asked: AskedLikelihood, answer: LikelihoodAnswer, contract: Contract, request_id: str) -> LikelihoodReply:
    tokens, nats, query = _tokens(contract), answer.nats, asked.query
    grid_frames = _grid_frames(len(query.target_states), tokens)
    return LikelihoodReply(
        id=request_id,
        model=contract.model,
        revision=contract.revision,
        scenario=query.scenario,
        support="full" if query.top_k is None else "top_k",
        nats_total=nats.nats_total,
        bits_total=nats.bits_total,
        nats_per_token=nats.nats_per_token,
        bits_per_token=nats.bits_total / nats.num_tokens,
        bits_per_frame=list(nats.bits_per_grid),
        grid_frames=grid_frames,
        bits_per_pixel=nats.bits_per_pixel,
        tokens=nats.num_tokens,
        topk_cross_entropy=None if answer.top_k is None else _top_k_reply(answer.top_k),
        surprise_per_frame=_surprises(answer, grid_frames),
        map=_map(asked, answer, tokens) if asked.has_map else None,
        timings_ms=_timings(answer.timings),
        deadline_met=answer.deadline_met,
        warnings=[*asked.warnings, *([_UNCALIBRATED] if answer.surprises is None else [])],
        client_time=asked.client_time,
        metadata=None if asked.metadata is None else dict(asked.metadata),
    )


def _grid_frames(num_frames: int, tokens: TokenSpec) -> list[list[int]]:
    """List the target frames, from 1, of each grid."""
    ends = np.cumsum(grid_lengths(num_frames, tokens))
    frames = np.arange(1, num_frames + 1)
    return [part.tolist() for part in np.split(frames, ends[:-1])]


def _top_k_reply(top_k: TopKCrossEntropy) -> TopKReply:
    is_partial = top_k.definition is TopKDefinition.TOPK_RENORMALISED
    return TopKReply(left_out=top_k.num_outside if is_partial else 0, **asdict(top_k))


def _surprises(answer: LikelihoodAnswer, grid_frames: list[list[int]]) -> list[SurpriseReply]:
    grid_bits = answer.nats.bits_per_grid
    if answer.surprises is None:
        return [
            SurpriseReply(frames=frames, bits=each, z=None, quantile=None)
            for frames, each in zip(grid_frames, grid_bits, strict=True)
        ]
    return [
        SurpriseReply(frames=frames, bits=each, z=surprise.z, quantile=surprise.quantile)
        for frames, each, surprise in zip(grid_frames, grid_bits, answer.surprises, strict=True)
    ]


def _map(asked: AskedLikelihood, answer: LikelihoodAnswer, tokens: TokenSpec) -> object:
    """Return the bits of each place, `g rows columns`: nested lists in JSON."""
    values = bits_map(answer.scores).astype(np.float32).reshape(-1, *tokens.grid)
    return values if asked.media is Media.MSGPACK else values.tolist()


def _timings(timings: ReadTimings) -> ReadTimingsReply:
    """Write timings for the wire, rounded to a microsecond."""
    return ReadTimingsReply(**{name: round(value, 3) for name, value in asdict(timings).items()})
