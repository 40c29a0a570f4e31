"""The inner side of a call: runs what a message asks for on the engines, and writes what came of it.

It knows engines and messages, and no socket.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from foreframe_engines import Conditioning, EngineError, EngineLost, GridScore, StepRow, TokenHistory, TokenRow
from foreframe_engines.engine import LikelihoodEngine, RolloutEngine
from foreframe_engines.errors import (
    BundleError,
    CheckpointError,
    DatasetError,
    ModelFault,
    RuntimeUnavailable,
    ShapeMismatch,
)
from foreframe_server.opening import OpenedEngines
from foreframe_server.processes.channel import Message, at
from foreframe_server.processes.frames import CorruptFrame
from foreframe_server.processes.messages import (
    Arrays,
    ConditionCall,
    ConditioningReply,
    DecodeCall,
    DenoiseCall,
    DetokenizeCall,
    EncodeCall,
    ErrorName,
    Failure,
    Ping,
    ReadCall,
    ReadPart,
    Reply,
    ScorePart,
    Scores,
    SharedPart,
    StepCall,
    StepPart,
    TokenizeCall,
)
from foreframe_server.processes.parcels import Parcel

ERRORS: dict[type[EngineError], ErrorName] = {
    CheckpointError: "CheckpointError",
    BundleError: "BundleError",
    RuntimeUnavailable: "RuntimeUnavailable",
    ShapeMismatch: "ShapeMismatch",
    ModelFault: "ModelFault",
    DatasetError: "DatasetError",
    EngineError: "EngineError",
}
"""What crosses by name, the narrower before the wider."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What goes back: a body, and the arrays that it counts into."""

    body: Reply
    parcel: Parcel


def answer(opened: OpenedEngines, message: Message) -> Answer:
    """Run a call. What the engine raises is an answer, too.

    Raises CorruptFrame for what is no call, EngineLost where the engine is in yet another process and died.
    """
    try:
        return _dispatch(opened, message)
    except (CorruptFrame, EngineLost):
        raise
    except Exception as error:  # noqa: BLE001 - the border of the process: whatever an engine raises is told
        return Answer(describe_failure(error), Parcel())


def describe_failure(error: Exception) -> Failure:
    """Tell what an engine raised; what is no EngineError becomes a ModelFault that says what it was."""
    for known, name in ERRORS.items():
        if isinstance(error, known):
            return Failure(error=name, message=str(error))
    return Failure(error="ModelFault", message=f"{type(error).__name__}: {error}")


def _dispatch(opened: OpenedEngines, message: Message) -> Answer:
    body = message.body
    if isinstance(body, Ping):
        return Answer(Arrays(), Parcel())
    if isinstance(body, TokenizeCall | DetokenizeCall | ReadCall):
        if opened.likelihood is None:
            raise CorruptFrame("a frame asks for an engine that was not opened")
        return _ask_likelihood(opened.likelihood, body, message.arrays)
    if opened.rollout is None:
        raise CorruptFrame("a frame asks for an engine that was not opened")
    return _ask_rollout(opened.rollout, message)


def _ask_rollout(engine: RolloutEngine, message: Message) -> Answer:
    body, arrays = message.body, message.arrays
    match body:
        case EncodeCall():
            return _arrays([engine.encode(at(arrays, body.context))])
        case ConditionCall():
            return _condition(engine, body, arrays)
        case StepCall():
            return _arrays(engine.step(_step_rows(body, arrays)))
        case DenoiseCall():
            previous, state = at(arrays, body.previous), at(arrays, body.state)
            return _arrays([engine.denoise(previous, state, body.time, body.next_time)])
        case DecodeCall():
            return _arrays([engine.decode([at(arrays, index) for index in body.latents], body.frame_indices)])
        case _:
            raise CorruptFrame("a frame is no call")


def _ask_likelihood(
    engine: LikelihoodEngine, body: TokenizeCall | DetokenizeCall | ReadCall, arrays: list[np.ndarray]
) -> Answer:
    match body:
        case TokenizeCall():
            return _arrays([engine.tokenize(at(arrays, body.frames))])
        case DetokenizeCall():
            return _arrays([engine.detokenize(at(arrays, body.ids))])
        case ReadCall():
            return _read(engine, [_token_row(row, arrays) for row in body.rows])


def _arrays(values: Sequence[ArrayLike]) -> Answer:
    parcel = Parcel()
    return Answer(Arrays(arrays=tuple(parcel.put(value) for value in values)), parcel)


def _condition(engine: RolloutEngine, body: ConditionCall, arrays: list[np.ndarray]) -> Answer:
    latents = at(arrays, body.context_latents)
    conditioning = engine.condition(latents, at(arrays, body.states))
    parcel, own = Parcel(), conditioning.context_latents
    tables = {name: parcel.put(table) for name, table in conditioning.tables.items()}
    return Answer(ConditioningReply(context_latents=None if own is latents else parcel.put(own), tables=tables), parcel)


def _conditioning(part: SharedPart, arrays: list[np.ndarray]) -> Conditioning:
    tables = {name: at(arrays, index) for name, index in part.tables.items()}
    return Conditioning(at(arrays, part.context_latents), tables)


def _step_rows(body: StepCall, arrays: list[np.ndarray]) -> list[StepRow]:
    conditionings = [_conditioning(part, arrays) for part in body.conditionings]
    return [_step_row(part, conditionings, arrays) for part in body.rows]


def _step_row(part: StepPart, conditionings: list[Conditioning], arrays: list[np.ndarray]) -> StepRow:
    if part.conditioning >= len(conditionings):
        raise CorruptFrame("a frame counts beyond its conditionings")
    return StepRow(
        at(arrays, part.latents),
        part.time,
        part.next_time,
        conditionings[part.conditioning],
        part.earlier_times,
        part.guidance,
    )


def _token_row(part: ReadPart, arrays: list[np.ndarray]) -> TokenRow:
    history = TokenHistory(
        tuple(at(arrays, index) for index in part.keys), tuple(at(arrays, index) for index in part.values)
    )
    target = None if part.target is None else at(arrays, part.target)
    return TokenRow(at(arrays, part.ids), at(arrays, part.states), history, target, part.top_k)


def _read(engine: LikelihoodEngine, rows: Sequence[TokenRow]) -> Answer:
    parcel = Parcel()
    scores = engine.read(rows)
    if len(scores) != len(rows):
        raise ModelFault(f"the engine returned {len(scores)} scores for {len(rows)} rows")
    return Answer(
        Scores(scores=tuple(_score(score, row, parcel) for score, row in zip(scores, rows, strict=True))), parcel
    )


def _score(score: GridScore, row: TokenRow, parcel: Parcel) -> ScorePart:
    num_shared = _num_shared(score.history, row.history)
    return ScorePart(
        log_probability=parcel.put(score.log_probability),
        greedy=parcel.put(score.greedy),
        num_shared=num_shared,
        keys=tuple(parcel.put(array) for array in score.history.keys[num_shared:]),
        values=tuple(parcel.put(array) for array in score.history.values[num_shared:]),
        top_log_mass=None if score.top_log_mass is None else parcel.put(score.top_log_mass),
        is_in_top=None if score.is_in_top is None else parcel.put(score.is_in_top),
    )


def _num_shared(history: TokenHistory, before: TokenHistory) -> int:
    """Count the segments that a history begins with as the one before does."""
    num_shared = 0
    for key, value, old_key, old_value in zip(history.keys, history.values, before.keys, before.values, strict=False):
        if key is not old_key or value is not old_value:
            break
        num_shared += 1
    return num_shared
