"""The wire's requests and replies about likelihoods, as pydantic models.

Everything in bits or nats is about the ids of the model's tokenizer, never about pixels themselves.
"""

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from foreframe_engines import Priority
from foreframe_engines.nats import TopKDefinition
from foreframe_server.likelihoods import Scenario
from foreframe_server.schemas import (
    MAX_DEADLINE_MS,
    MIN_DEADLINE_MS,
    CameraClip,
    Ids,
    Observation,
    ObservationId,
    ObservedState,
    Scalar,
    Tensor,
    Warned,
    WireReply,
    WireRequest,
)

MAX_TOP_K = 2**20
DEFAULT_TOP_K = 500


class LikelihoodTarget(CameraClip):
    """What did happen after the observation: whole windows of frames, written like a camera's, or their ids."""

    ids: Ids | None = None
    state: ObservedState = Field(description="The states of the target's frames, one row a frame.")


class LikelihoodRequest(WireRequest):
    """One observation and what did happen after it, for which bits are to be counted."""

    model: str | None = Field(default=None, max_length=128)
    observation: Observation | None = None
    observation_id: ObservationId = None
    target: LikelihoodTarget
    scenario: Annotated[Scenario, Field(strict=False)] = Field(
        default=Scenario.TEACHER_FORCED,
        description="Each grid given the true ones before it, or given the model's own likeliest ones.",
    )
    support: Literal["full", "top_k"] = Field(
        default="full", description="`top_k` adds a cross-entropy over the k likeliest ids; all else stays the same."
    )
    top_k: int | None = Field(
        default=None, ge=1, le=MAX_TOP_K, description="1..vocabulary, for `support` top_k; absent is 500 or all."
    )
    top_k_definition: Annotated[TopKDefinition, Field(strict=False)] | None = Field(
        default=None, description="For `support` top_k; absent is topk_renormalised."
    )
    map: bool = Field(default=False, description="Also return the bits of each place.")
    deadline_ms: int | None = Field(
        default=None, ge=MIN_DEADLINE_MS, le=MAX_DEADLINE_MS, description="Budget from the request's first byte."
    )
    priority: Annotated[Priority, Field(strict=False)] = Priority.CONTROLLER
    client_time: FiniteFloat | None = Field(default=None, description="Echoed.")
    metadata: dict[str, Scalar] | None = Field(default=None, max_length=16, description="Echoed.")


class TopKReply(WireReply):
    """A cross-entropy in nats a token under a named definition, and what lies outside the k likeliest ids.

    topk_renormalised leaves targets outside out; full_with_escape codes them with the escape mass spread evenly over
    the other ids; full_vocabulary takes every id's own probability. The paper's scorer is not public: numbers compare
    only under one definition.
    """

    k: int
    definition: TopKDefinition
    value: float | None = Field(description="Null where every target is left out.")
    escape_nats: float = Field(
        description="-log(escape mass) of the targets outside, summed and divided by the number of all targets."
    )
    escape_mass: float = Field(description="Probability outside the k likeliest ids, mean over all targets.")
    num_outside: int = Field(description="Targets that are not among the k likeliest ids.")
    left_out: int = Field(description="Targets that `value` does not count.")


class SurpriseReply(WireReply):
    """How unusual one grid's bits are among those of held-out episodes; null without a calibration that applies."""

    frames: list[int] = Field(description="Target frames, from 1, that the grid stands for.")
    bits: float
    z: float | None = Field(description="Standard deviations above the mean.")
    quantile: float | None = Field(description="Share 0..1 of held-out grids with fewer bits.")


class ReadTimingsReply(WireReply):
    """Milliseconds of each stage; `queue` is waiting for the device, `read` its work."""

    receive: float
    decode: float
    queue: float
    read: float
    respond: float
    total: float


class LikelihoodReply(WireReply):
    """What the target's ids cost under the model. Bits and nats are of the discrete ids, not of pixels."""

    id: str
    model: str
    revision: str
    scenario: Scenario
    support: Literal["full", "top_k"]
    nats_total: float = Field(description="Of all ids of the target.")
    bits_total: float = Field(description="Of all ids of the target.")
    nats_per_token: float
    bits_per_token: float
    bits_per_frame: list[float] = Field(
        description="Bits of each grid's ids, oldest first: one number a target frame, or a group of `grid_frames`."
    )
    grid_frames: list[list[int]] = Field(description="Target frames, from 1, that each grid stands for.")
    bits_per_pixel: float = Field(
        description="Bits of the ids over pixels of the target's frames; what the tokenizer loses is not in it."
    )
    tokens: int = Field(description="How many ids were scored.")
    topk_cross_entropy: TopKReply | None = Field(description="Null unless `support` is top_k.")
    surprise_per_frame: list[SurpriseReply] = Field(description="One entry a grid.")
    map: list[list[list[float]]] | Tensor | None = Field(
        default=None, description="Bits of each id, `g rows columns`. With application/msgpack an array map, float32."
    )
    timings_ms: ReadTimingsReply
    deadline_met: bool
    warnings: list[Warned]
    client_time: float | None = None
    metadata: dict[str, Scalar] | None = None
