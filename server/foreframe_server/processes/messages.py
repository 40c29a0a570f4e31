"""What crosses between a server and its engine's process, as schemas. Knows no engine, no socket and no bytes.

A number that stands for an array counts into the arrays of its frame.
"""

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

_MAX_AXES = 8
_MAX_LENGTH = 2**40

Index: TypeAlias = Annotated[int, Field(ge=0)]
"""Counts into the arrays of the frame."""
Length: TypeAlias = Annotated[int, Field(ge=0, le=_MAX_LENGTH)]
Number: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]
Time: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
DType: TypeAlias = Literal[
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64"
]  # fmt: skip
ErrorName: TypeAlias = Literal[
    "EngineError", "BundleError", "CheckpointError", "RuntimeUnavailable", "ShapeMismatch", "ModelFault", "DatasetError"
]  # fmt: skip


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Sent(_Message):
    """An array whose bytes lie in shared memory, behind those of the ones before it; C order, little endian.

    number: what it is to be called from now on, where it is to be remembered.
    """

    place: Literal["sent"] = "sent"
    dtype: DType
    shape: Annotated[tuple[Length, ...], Field(max_length=_MAX_AXES)]
    number: Number | None = None


class Known(_Message):
    """An array that was sent before under a number."""

    place: Literal["known"] = "known"
    number: Number


class Open(_Message):
    """Asks to open a model: the opener's dotted name `module:qualname`, and EngineSettings as JSON."""

    kind: Literal["open"] = "open"
    opener: str
    settings: str


class Ping(_Message):
    """Asks for a sign of life; answered by no arrays."""

    kind: Literal["ping"] = "ping"


class EncodeCall(_Message):
    """Asks a rollout engine to encode."""

    kind: Literal["encode"] = "encode"
    context: Index


class ConditionCall(_Message):
    """Asks a rollout engine to condition."""

    kind: Literal["condition"] = "condition"
    context_latents: Index
    states: Index


class SharedPart(_Message):
    """A conditioning."""

    context_latents: Index
    tables: dict[str, Index]


class StepPart(_Message):
    """A row of a step; `conditioning` counts into the call's."""

    latents: Index
    time: Time
    next_time: Time
    conditioning: Index
    earlier_times: tuple[Time, ...]
    guidance: Time


class StepCall(_Message):
    """Asks a rollout engine to step."""

    kind: Literal["step"] = "step"
    conditionings: tuple[SharedPart, ...]
    rows: tuple[StepPart, ...]


class DenoiseCall(_Message):
    """Asks a rollout engine where a step points."""

    kind: Literal["denoise"] = "denoise"
    previous: Index
    state: Index
    time: Time
    next_time: Time


class DecodeCall(_Message):
    """Asks a rollout engine to decode."""

    kind: Literal["decode"] = "decode"
    latents: tuple[Index, ...]
    frame_indices: tuple[int, ...]


class TokenizeCall(_Message):
    """Asks a likelihood engine to tokenize."""

    kind: Literal["tokenize"] = "tokenize"
    frames: Index


class DetokenizeCall(_Message):
    """Asks a likelihood engine to detokenize."""

    kind: Literal["detokenize"] = "detokenize"
    ids: Index


class ReadPart(_Message):
    """A row of a read."""

    ids: Index
    states: Index
    keys: tuple[Index, ...]
    values: tuple[Index, ...]
    target: Index | None
    top_k: int | None


class ReadCall(_Message):
    """Asks a likelihood engine to read."""

    kind: Literal["read"] = "read"
    rows: tuple[ReadPart, ...]


class EngineNote(_Message):
    """What an engine says of itself: its contract and state statistics as JSON, and what its answers can be relied on.

    noise_shape, num_lanes: of a rollout engine.
    """

    contract: str
    statistics: str
    determinism: str
    noise_shape: tuple[Length, Length, Length, Length] | None = None
    num_lanes: Annotated[int, Field(ge=1)] = 1


class Hello(_Message):
    """Says that the model is open, and what was opened. calibration: as its file says it."""

    kind: Literal["hello"] = "hello"
    fingerprint: str
    rollout: EngineNote | None
    likelihood: EngineNote | None
    calibration: str
    folder: str | None


class Arrays(_Message):
    """Answers with arrays."""

    kind: Literal["arrays"] = "arrays"
    arrays: tuple[Index, ...] = ()


class ConditioningReply(_Message):
    """Answers with a conditioning; without context latents they are those of the call."""

    kind: Literal["conditioning"] = "conditioning"
    context_latents: Index | None
    tables: dict[str, Index]


class ScorePart(_Message):
    """The score of a row; its history is the first `num_shared` arrays of the row's, then those that are told."""

    log_probability: Index
    greedy: Index
    num_shared: Index
    keys: tuple[Index, ...]
    values: tuple[Index, ...]
    top_log_mass: Index | None
    is_in_top: Index | None


class Scores(_Message):
    """Answers with scores."""

    kind: Literal["scores"] = "scores"
    scores: tuple[ScorePart, ...]


class Failure(_Message):
    """Answers with what the engine raised."""

    kind: Literal["failure"] = "failure"
    error: ErrorName
    message: str


RolloutCall: TypeAlias = EncodeCall | ConditionCall | StepCall | DenoiseCall | DecodeCall
LikelihoodCall: TypeAlias = TokenizeCall | DetokenizeCall | ReadCall
Call: TypeAlias = Ping | RolloutCall | LikelihoodCall
Reply: TypeAlias = Arrays | ConditioningReply | Scores | Failure
Body: TypeAlias = Open | Call | Hello | Reply


class Frame(_Message):
    """One message: which call it belongs to, its arrays, and the numbers of arrays that need not be known any longer.

    is_inline: the arrays' bytes follow on the socket, as there was no shared memory for them.
    """

    number: Number
    is_inline: bool = False
    arrays: tuple[Annotated[Sent | Known, Field(discriminator="place")], ...] = ()
    forget: tuple[Number, ...] = ()
    body: Annotated[Body, Field(discriminator="kind")]
