"""The wire's requests and replies as pydantic models; the OpenAPI document is made from them.

They check names, types and bounds that hold for every model. What depends on a contract (frame counts, picture sizes,
state widths) is checked by `codec`, which also reads the pixels and numbers that stay opaque here.
"""

from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PlainValidator, WithJsonSchema

from foreframe_engines import EnsembleSpec, NoisePlan, OnDeadline, Priority, Reducer, Strategy
from foreframe_engines.spread import Verdict
from foreframe_server.calls import CachePolicy, CacheResult

MAX_SEED = 2**53 - 1
MIN_DEADLINE_MS, MAX_DEADLINE_MS = 5, 600_000
MAX_ENSEMBLE = 32
MAX_STEPS = 1000
MAX_GUIDANCE = 30.0
MAX_CAMERAS = 8

_BLOB_SCHEMA = {"type": "string", "contentEncoding": "base64"}
_ARRAY_NOTE = "With application/msgpack also one array map (`__ndarray__`, `data`, `dtype`, `shape`)."
_FRAMES_SCHEMA = {
    "type": "array",
    "items": _BLOB_SCHEMA,
    "description": f"Pictures, oldest first, one a context frame. {_ARRAY_NOTE} uint8 `t h w 3`.",
}
_ROWS_SCHEMA = {
    "type": "array",
    "items": {"type": "array", "items": {"type": "number"}},
    "description": f"Rows of numbers in physical units. {_ARRAY_NOTE} float32 or float64 `t d`.",
}


def _pass(value: object) -> object:
    return value


def _check_frame_choice(value: object) -> object:
    if value in ("last", "all") and isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError('must be "last", "all" or a list of frame numbers from 1')
    if not all(type(index) is int and index >= 1 for index in value):
        raise ValueError("frame numbers are whole numbers from 1")
    if any(later <= earlier for earlier, later in pairwise(value)):
        raise ValueError("frame numbers must rise, each once")
    return value


_TENSOR_SCHEMA = {
    "type": "object",
    "description": "An array: dtype, shape and its bytes in C order. With application/msgpack an array map.",
    "properties": {
        "dtype": {"type": "string", "enum": ["|u1", "<f4"]},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "data": _BLOB_SCHEMA,
    },
    "required": ["dtype", "shape", "data"],
}
_IDS_SCHEMA = {
    "type": "array",
    "items": {"type": "array", "items": {"type": "integer", "minimum": 0}},
    "description": f"Ids of tokens, one row a grid, oldest first. {_ARRAY_NOTE} int32 or int64 `g s`.",
}
UNITS_NOTE = (
    "The unit of each number of a row, in the row's order; converted to the schema's where it is another of the same "
    "quantity: rad and deg; m, cm and mm; 1 and %; their rates a second."
)
Names = Annotated[list[Annotated[str, Field(max_length=128)]], Field(max_length=1024)]
Units = Annotated[list[Annotated[str, Field(max_length=32)]], Field(max_length=1024)]
Scalar = str | int | FiniteFloat | bool | None
Frames = Annotated[object, PlainValidator(_pass), WithJsonSchema(_FRAMES_SCHEMA)]
Blob = Annotated[object, PlainValidator(_pass), WithJsonSchema(_BLOB_SCHEMA)]
Tensor = Annotated[object, PlainValidator(_pass), WithJsonSchema(_TENSOR_SCHEMA)]
Rows = Annotated[object, PlainValidator(_pass), WithJsonSchema(_ROWS_SCHEMA)]
ObservationId = Annotated[
    str | None, Field(max_length=128, description="Of an uploaded observation, instead of `observation`.")
]
Ids = Annotated[object, PlainValidator(_pass), WithJsonSchema(_IDS_SCHEMA)]
FrameChoice = Annotated[
    Literal["last", "all"] | list[int],
    PlainValidator(_check_frame_choice),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": ["last", "all"]},
                {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1},
            ]
        }
    ),
]


class Encoding(StrEnum):
    """How the frames of a request are written."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    RAW_RGB8 = "raw_rgb8"
    MP4 = "mp4"


class PictureEncoding(StrEnum):
    """How the frames of a reply are written: lossless, small, plain bytes `h w 3`, or one clip."""

    PNG = "png"
    JPEG = "jpeg"
    RAW = "raw"
    MP4 = "mp4"


class VarianceDetail(StrEnum):
    """How much of the members' variance comes back."""

    NONE = "none"
    SUMMARY = "summary"
    MAP = "map"


class WireRequest(BaseModel):
    """What clients send: strict types, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class WireReply(BaseModel):
    """What goes back."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)


class CameraClip(WireRequest):
    """What one camera saw: `frames`, or `data` for one mp4 clip or for all raw frames in one piece."""

    encoding: Annotated[Encoding, Field(strict=False)] | None = Field(
        default=None, description="May be left out when frames are an array."
    )
    frames: Frames | None = None
    data: Blob | None = None
    width: int | None = Field(default=None, ge=1, le=16384, description="Pixels; needed for raw_rgb8 bytes.")
    height: int | None = Field(default=None, ge=1, le=16384, description="Pixels; needed for raw_rgb8 bytes.")
    resize: Literal["pad"] | None = Field(
        default=None, description="Scale pictures of another size to fit and fill up with black, with a warning."
    )


class ObservedState(WireRequest):
    """The states that belong to the frames, in physical units.

    How an observation's rows are written holds for every state of the request: its future, candidates and goals too.
    """

    schema_name: str | None = Field(
        default=None,
        alias="schema",
        max_length=128,
        description="The model's state schema, or a registered one whose numbers have the same names.",
    )
    values: Rows
    names: Names | None = Field(
        default=None, description="The name of each number of a row, in any order; absent: the schema's order."
    )
    units: Units | None = Field(default=None, description=f"{UNITS_NOTE} Absent: the schema's.")


class Observation(WireRequest):
    """What the robot saw and did up to now."""

    cameras: dict[str, CameraClip] = Field(max_length=MAX_CAMERAS)
    state: ObservedState


class FutureStates(WireRequest):
    """What the robot would do: row k conditions predicted frame k, from 1. Written as the observation's states."""

    kind: Literal["state"] = "state"
    values: Rows


class EnsembleRequest(WireRequest):
    """How many draws, and what becomes of them."""

    size: int = Field(default=EnsembleSpec().size, ge=1, le=MAX_ENSEMBLE)
    reducer: Annotated[Reducer, Field(strict=False)] = EnsembleSpec().reducer
    noise: Annotated[NoisePlan, Field(strict=False)] = EnsembleSpec().noise
    tolerance: FiniteFloat | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Stop sooner, when the mean's standard error (root mean square over pixels, white is 1) is at most "
        "this: at 4 members or more and an even number of antithetic ones. Only for the mean of predictions.",
    )


class SamplingRequest(WireRequest):
    """How to draw. An absent seed is drawn and returned, absent steps and guidance are the model's."""

    strategy: Annotated[Strategy, Field(strict=False)] = Strategy.SAMPLE
    steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    guidance: FiniteFloat | None = Field(
        default=None, ge=0, le=MAX_GUIDANCE, description="Classifier-free; 1 is none, all that some models offer."
    )
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)


class ReturnRequest(WireRequest):
    """What comes back. Pictures of a reply in JSON or msgpack have this encoding."""

    encoding: Annotated[PictureEncoding, Field(strict=False)] = PictureEncoding.PNG
    variance: Annotated[VarianceDetail, Field(strict=False)] = VarianceDetail.SUMMARY
    members: bool = False
    latents: bool = Field(default=False, description="Not offered yet.")


class PredictionRequest(WireRequest):
    """One observation and one future state sequence, for which frames are to be predicted."""

    model: str | None = Field(default=None, max_length=128)
    observation: Observation | None = None
    observation_id: ObservationId = None
    future: FutureStates
    frames: FrameChoice = "all"
    ensemble: EnsembleRequest = EnsembleRequest()
    sampling: SamplingRequest = SamplingRequest()
    deadline_ms: int | None = Field(
        default=None, ge=MIN_DEADLINE_MS, le=MAX_DEADLINE_MS, description="Budget from the request's first byte."
    )
    on_deadline: Annotated[OnDeadline, Field(strict=False)] = OnDeadline.DEGRADE
    stream_id: str | None = Field(
        default=None, min_length=1, max_length=128, description="The newest of a stream supersedes queued older ones."
    )
    priority: Annotated[Priority, Field(strict=False)] = Priority.CONTROLLER
    returns: ReturnRequest = Field(default=ReturnRequest(), alias="return")
    cache: Annotated[CachePolicy, Field(strict=False)] = CachePolicy.USE
    client_time: FiniteFloat | None = Field(default=None, description="Echoed.")
    metadata: dict[str, Scalar] | None = Field(default=None, max_length=16, description="Echoed.")


class Warned(WireReply):
    """Something that was changed or looks odd; the request was served all the same."""

    code: str
    pointer: str
    message: str
    sigma: float | None = Field(default=None, description="Distance from the training mean, in deviations.")


class Picture(WireReply):
    """One encoded picture, or one mp4 clip: base64 in JSON, bytes in msgpack."""

    encoding: PictureEncoding
    width: int
    height: int
    data: Blob


class PredictedFrame(WireReply):
    """One predicted frame, 1..H. `raw` images are arrays uint8 `h w 3`; with `mp4` the images stand in `video`."""

    index: int
    t_s: float = Field(description="Seconds after the last context frame.")
    image: Picture | Tensor | None


class SpreadCalibration(WireReply):
    """What held-out recordings say of such a spread, a number a frame, white is 1. It holds for others like them."""

    coverage: float = Field(description="Share of held-out recordings that keep each of the bounds.")
    line_per_frame: list[float] = Field(description="What the spread stays under, at all frames at once.")
    error_per_frame: list[float] | None = Field(
        description="What the mean's error, root mean square over pixels, stays under; null of another reducer."
    )


class Uncertainty(WireReply):
    """How far the members spread: the sample spread of one checkpoint, and whether it is usual.

    `spread_per_frame` is in units where white is 1; it is empty and `map` null with fewer than two members.
    """

    source: Literal["sample_spread"] = "sample_spread"
    members: int
    spread_per_frame: list[float]
    map: Tensor | None = Field(default=None, description="Variance `f h w` of the members, mean over RGB.")
    calibration: SpreadCalibration | None = Field(
        description="Null where none applies: of another number of steps, other noise, in a session."
    )
    verdict: Verdict | Literal["uncalibrated"] = Field(
        description="`usual`: no frame passes its line; `unusual`: the first asked does; `partly`: a later one does."
    )
    trusted_horizon: int | None = Field(
        description="The last asked frame before the first that passes its line, 0 without one; null uncalibrated."
    )


class EnsembleReply(WireReply):
    """What the answer rests on."""

    requested: int
    members: int
    from_cache: int
    steps: int
    strategy: Strategy
    reducer: Reducer
    noise: NoisePlan
    correlation: float | None = Field(description="Between the two members of a pair; unknown below two pairs.")
    effective_members: float | None = Field(description="Independent members whose mean would be as exact.")
    standard_error: float | None = Field(description="Of the mean: root mean square over pixels, white is 1.")


class DegradedReply(WireReply):
    """How the answer is less than what was asked."""

    members: int
    steps: int
    reason: str


class TimingsReply(WireReply):
    """Milliseconds of each stage; `step_batch_mean` is rows a forward, `cold` a first run."""

    receive: float
    decode: float
    queue: float
    encode: float
    condition: float
    denoise: float
    latent_decode: float
    reduce: float
    respond: float
    total: float
    step_batch_mean: float
    cold: bool


class PredictionReply(WireReply):
    """Predicted frames, how far the members spread, and what they cost."""

    id: str
    model: str
    revision: str
    frames: list[PredictedFrame]
    video: Picture | None = Field(default=None, description="All frames as one mp4 when that encoding was asked.")
    members: list[list[Picture]] | Tensor | None = Field(
        default=None, description="Every draw, when asked or not reduced; `raw` is one array uint8 `k f h w 3`."
    )
    uncertainty: Uncertainty
    ensemble: EnsembleReply
    degraded: DegradedReply | None
    deadline_met: bool
    seed: int
    determinism: str
    cache: CacheResult
    timings_ms: TimingsReply
    warnings: list[Warned]
    client_time: float | None = None
    metadata: dict[str, Scalar] | None = None


class CameraReply(WireReply):
    """One camera of a contract: uint8 RGB `height width 3`."""

    name: str
    height: int
    width: int


class SamplerReply(WireReply):
    """Defaults and limits of sampling."""

    steps: int
    max_steps: int
    shift: float
    max_ensemble_size: int
    solver: str
    guidance: float | None = Field(description="Where a request says nothing; null for a model without guidance.")


class TokensReply(WireReply):
    """How frames become ids, and what a likelihood or a scoring may hold.

    Windows of `window_frames` are tokenised by themselves, each into `window_grids` grids of `rows x columns` ids
    0..vocabulary-1; an id is the sum of digit times base over `levels`, the first varying fastest.
    """

    levels: list[int]
    vocabulary: int
    rows: int
    columns: int
    window_frames: int
    window_grids: int
    max_grids: int = Field(description="Of the context and the future together.")
    max_candidates: int
    is_calibrated: bool = Field(description="Whether surprise is placed among that of held-out episodes.")


class ModelContract(WireReply):
    """What a model takes and gives. State row k belongs to frame k; a future row conditions the frame it belongs to."""

    id: str
    family: str
    revision: str
    description: str
    cameras: list[CameraReply]
    context_frames: int
    horizon: int
    fps: float
    future_kind: Literal["state"] = "state"
    state_schema: str
    state_dim: int
    alignment: Literal["state row k belongs to frame k"] = "state row k belongs to frame k"
    sampler: SamplerReply
    tokens: TokensReply | None = Field(description="Null for a model without likelihoods.")
    capabilities: list[str]
    determinism: str


class ModelList(WireReply):
    """Every model that is loaded."""

    models: list[ModelContract]


class Health(WireReply):
    """Whether the process lives, and whether it can serve."""

    status: Literal["ok", "ready"]


class Version(WireReply):
    """Which server this is."""

    name: Literal["foreframe"] = "foreframe"
    version: str


class ProblemReason(WireReply):
    """One thing wrong with a request."""

    pointer: str
    message: str
    expected: str | None = None
    received: str | None = None


class Problem(WireReply):
    """An error as RFC 9457 has it; it never repeats the input."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[ProblemReason]
    retryable: bool
    retry_after_ms: int | None
