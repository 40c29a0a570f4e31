"""The tensor door's JSON as pydantic models: KServe's protocol v2 with Triton's extensions for binary data and more.

They check names and types. Which tensors a model takes is told by `codec`, which also reads their bytes.
"""

from typing import Annotated, Literal

from pydantic import Field

from foreframe_server.schemas import Blob, Scalar, WireReply, WireRequest

MAX_TENSORS = 16
MAX_AXES = 8
MAX_PARAMETERS = 64
MAX_SIDE = 2**31 - 1

Parameters = dict[str, Scalar]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


class InferInput(WireRequest):
    """One tensor: its elements in `data`, or in the body's binary part where `binary_data_size` says how many bytes."""

    name: str = Field(min_length=1, max_length=128)
    shape: list[Side] = Field(min_length=1, max_length=MAX_AXES, description="The first axis is the batch.")
    datatype: str = Field(max_length=16)
    parameters: Parameters = Field(default={}, max_length=MAX_PARAMETERS, description="Scalars only.")
    data: Blob | None = Field(default=None, description="Numbers in C order, flat or nested.")


class InferOutput(WireRequest):
    """One tensor that is wanted back; `binary_data` says in which form."""

    name: str = Field(min_length=1, max_length=128)
    parameters: Parameters = Field(default={}, max_length=MAX_PARAMETERS, description="Scalars only.")


class InferRequest(WireRequest):
    """Tensors for a model. Without `outputs` every output comes back."""

    id: str | None = Field(default=None, max_length=128, description="Echoed.")
    parameters: Parameters = Field(default={}, max_length=MAX_PARAMETERS, description="Scalars only.")
    inputs: list[InferInput] = Field(min_length=1, max_length=MAX_TENSORS)
    outputs: list[InferOutput] | None = Field(default=None, max_length=MAX_TENSORS)


class InferOutputReply(WireReply):
    """One tensor: its elements in `data`, or in the body's binary part."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Scalar] | None = None
    data: list[float | None] | None = Field(default=None, description="In C order; null for what is not a number.")


class InferReply(WireReply):
    """What the model answered. `parameters` say how: the seed, steps, warnings."""

    id: str | None = None
    model_name: str
    model_version: str
    parameters: dict[str, Scalar]
    outputs: list[InferOutputReply]


class TensorProblem(WireReply):
    """An error as KServe has it; the text begins with the code, and never repeats the input."""

    error: str
    code: str


class Live(WireReply):
    """Whether the process lives."""

    live: Literal[True] = True


class Ready(WireReply):
    """Whether inference is answered."""

    ready: Literal[True] = True


class ModelReady(WireReply):
    """Whether a model's inference is answered."""

    name: str
    ready: Literal[True] = True


class ServerMetadata(WireReply):
    """Which server this is, and the extensions that it has."""

    name: Literal["foreframe"] = "foreframe"
    version: str
    extensions: list[str]


class TensorMetadata(WireReply):
    """One tensor of a model; -1 is a side that requests choose, the first is the batch."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(WireReply):
    """The tensors that a model takes and gives."""

    name: str
    versions: list[str]
    platform: Literal["foreframe"] = "foreframe"
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ConfigInput(WireReply):
    """One input without its batch axis, in the words of Triton's model configuration."""

    name: str
    data_type: str
    format: Literal["FORMAT_NONE"] = "FORMAT_NONE"
    dims: list[int]
    optional: bool


class ConfigOutput(WireReply):
    """One output without its batch axis."""

    name: str
    data_type: str
    dims: list[int]


class ConfigParameter(WireReply):
    """A fact about the model, as text."""

    string_value: str


class ModelConfig(WireReply):
    """A model in the words of Triton's model configuration."""

    name: str
    platform: Literal["foreframe"] = "foreframe"
    backend: Literal["foreframe"] = "foreframe"
    max_batch_size: int
    input: list[ConfigInput]
    output: list[ConfigOutput]
    parameters: dict[str, ConfigParameter]


class IndexEntry(WireReply):
    """One model of the index."""

    name: str
    version: str
    state: Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"] = "READY"
    reason: str = ""


class DurationReply(WireReply):
    """How often, and how many nanoseconds together."""

    count: int
    ns: int


class InferenceStats(WireReply):
    """Requests that were answered or not, and the stages of the answered ones. Times of a batch are its slowest row's.

    `cache_hit` and `cache_miss` count rows; their times are those of what the cache spared or cost, which is not
    measured apart, and so 0.
    """

    success: DurationReply
    fail: DurationReply
    queue: DurationReply
    compute_input: DurationReply
    compute_infer: DurationReply
    compute_output: DurationReply
    cache_hit: DurationReply
    cache_miss: DurationReply


class ModelStatistics(WireReply):
    """What one model has done since the start. `inference_count` counts rows, `execution_count` those computed."""

    name: str
    version: str
    last_inference: int = Field(description="Milliseconds since 1970, 0 for never.")
    inference_count: int
    execution_count: int
    inference_stats: InferenceStats
    batch_stats: list[None] = Field(default=[], description="Empty: rows of many requests share a forward.")


class StatisticsReply(WireReply):
    """What the models have done since the start."""

    model_stats: list[ModelStatistics]
