"""The wire's `/v1/scores` as pydantic models: candidates in, costs and a ranking out.

As in `schemas`, what depends on a contract (numbers of candidates and rows, picture sizes) is checked by `codec`.
"""

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, WithJsonSchema, field_validator

from foreframe_engines import Priority, Strategy
from foreframe_server.schemas import (
    MAX_DEADLINE_MS,
    MIN_DEADLINE_MS,
    Blob,
    EnsembleRequest,
    Observation,
    ObservationId,
    PredictedFrame,
    SamplingRequest,
    Scalar,
    Warned,
    WireReply,
    WireRequest,
)
from foreframe_server.scores import CandidateStatus, GoalMetric, SeedPolicy, TermKind

MAX_TERMS = 16
MAX_TOP_N = 64
_BOUND = 1e9

_CANDIDATES_SCHEMA = {
    "type": "array",
    "items": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
    "description": "K candidates of H rows of D numbers in physical units; row k conditions predicted frame k, from 1. "
    "With application/msgpack also one array map (`__ndarray__`, `data`, `dtype`, `shape`), floats `k h d`. "
    "A candidate with a number that is not finite gets the status `invalid` while others are scored.",
}
_ROW_SCHEMA = {
    "type": "array",
    "items": {"type": "number"},
    "description": "D numbers in physical units. With application/msgpack also one array map, `d`.",
}
_KINDS = (
    "Every term is a cost: lower is better.\n"
    "`goal_image`: distance of the future to a picture; see `metric` for its unit.\n"
    "`goal_state`: mean squared distance of the last row to a state, in training standard deviations.\n"
    "`likelihood`: nats per token that the token model gives to its own greedy future: how unsure it is of what "
    "happens, 0 when it is certain.\n"
    "`spread`: root of the members' mean variance at the last frame, white is 1; needs an ensemble.\n"
    "`smoothness`: mean squared second difference of the last observed row and the candidate's rows, in training "
    "standard deviations; needs at least 2 rows."
)
_METRICS = (
    "For `goal_image`.\n"
    "`pixel`: mean squared error of the reduced predicted frame, white is 1.\n"
    "`latent`: mean squared distance of the reduced latent to the encoded picture, in the model's latent units.\n"
    "`tokens`: minus the log-likelihood of the picture's tokens after a greedy rollout to the frame before, in nats "
    "per token.\n"
    "With the reducer `none`, `pixel` and `latent` are the mean of the members' own distances; `medoid` takes the "
    "member most typical at that frame."
)

Candidates = Annotated[object, WithJsonSchema(_CANDIDATES_SCHEMA)]
Row = Annotated[object, WithJsonSchema(_ROW_SCHEMA)]
Bounded = Annotated[FiniteFloat, Field(ge=-_BOUND, le=_BOUND)]


class GoalPicture(WireRequest):
    """One picture of the contract's size; in msgpack `data` may be an array uint8 `h w 3`."""

    encoding: Literal["png", "jpeg", "webp", "raw_rgb8"] | None = Field(
        default=None, description="May be left out when data is an array."
    )
    data: Blob
    width: int | None = Field(default=None, ge=1, le=16384, description="Pixels; needed for raw_rgb8 bytes.")
    height: int | None = Field(default=None, ge=1, le=16384, description="Pixels; needed for raw_rgb8 bytes.")


class TermParams(WireRequest):
    """What a kind needs to know: `image`, `metric`, `frame` for goal_image; `values`, `dims` for goal_state."""

    image: GoalPicture | None = Field(default=None, description="For `goal_image`, which needs it.")
    metric: Annotated[GoalMetric, Field(strict=False)] | None = Field(
        default=None, description=_METRICS + "\nAbsent: `pixel`."
    )
    frame: int | None = Field(default=None, ge=1, description="For `goal_image`: 1..H; absent: H.")
    values: Row | None = None
    dims: list[int | str] | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description="For `goal_state`: the dimensions that count, by index or name; absent: all of them.",
    )


class TermRequest(WireRequest):
    """What is to be measured of each candidate."""

    kind: Annotated[TermKind, Field(strict=False)] = Field(description=_KINDS)
    params: TermParams = TermParams()


class ObjectiveRequest(TermRequest):
    """One term of the cost, which is the weighted sum of all."""

    weight: Bounded = Field(default=1.0, description="Any number but 0; negative turns a cost into a reward.")

    @field_validator("weight")
    @classmethod
    def _check_weight(cls, weight: float) -> float:
        if weight == 0:
            raise ValueError("must not be 0; leave the objective out")
        return weight


class ConstraintRequest(TermRequest):
    """A term that must not exceed a bound; a candidate that breaks one is ranked after all that break none."""

    max: Bounded = Field(description="The constraint is satisfied when the term's value minus this is at most 0.")


class CandidatesRequest(WireRequest):
    """The plans to rank, all equally long."""

    values: Candidates
    ids: list[Annotated[str, Field(min_length=1, max_length=128)]] | None = Field(
        default=None, max_length=4096, description="One for each candidate, each once; absent: the indices as text."
    )


class ScoreReturnRequest(WireRequest):
    """Which pictures come back: none, or the last or all predicted frames of the best `top_n` candidates."""

    top_n: int = Field(default=1, ge=0, le=MAX_TOP_N, description="At most the number of candidates.")
    frames: Literal["none", "last", "all"] = "none"
    encoding: Literal["png", "jpeg", "raw"] = "png"


class ScoreRequest(WireRequest):
    """One observation and K candidate plans that are to be ranked."""

    model: str | None = Field(default=None, max_length=128)
    observation: Observation | None = None
    observation_id: ObservationId = None
    candidates: CandidatesRequest
    objectives: list[ObjectiveRequest] = Field(min_length=1, max_length=MAX_TERMS)
    constraints: list[ConstraintRequest] = Field(default=[], max_length=MAX_TERMS)
    ensemble: EnsembleRequest = EnsembleRequest()
    sampling: SamplingRequest = SamplingRequest()
    seed_policy: Annotated[SeedPolicy, Field(strict=False)] = Field(
        default=SeedPolicy.SHARED,
        description="`shared`: every candidate gets the same noise, so that equal plans cost the same. "
        "`per_candidate`: candidate i gets the noise of the seed plus i.",
    )
    returns: ScoreReturnRequest = Field(default=ScoreReturnRequest(), alias="return")
    deadline_ms: int | None = Field(
        default=None,
        ge=MIN_DEADLINE_MS,
        le=MAX_DEADLINE_MS,
        description="Budget from the request's first byte; candidates that are not reached have the status `expired`.",
    )
    priority: Annotated[Priority, Field(strict=False)] = Priority.CONTROLLER
    client_time: FiniteFloat | None = Field(default=None, description="Echoed.")
    metadata: dict[str, Scalar] | None = Field(default=None, max_length=16, description="Echoed.")


class ConstraintReply(WireReply):
    """A constraint of one candidate."""

    kind: TermKind
    value: float
    max: float
    satisfied: bool


class CandidateUncertainty(WireReply):
    """How far a candidate's members spread at the frames that were decoded for it, white is 1; empty for one member."""

    frames: list[int]
    spread_per_frame: list[float]
    members: int


class CandidateReply(WireReply):
    """One candidate, in the order of the request. What was not scored has no cost, no terms and no rank."""

    index: int
    id: str
    status: CandidateStatus
    reason: str | None = None
    cost: float | None = Field(description="Weighted sum of the terms.")
    terms: dict[str, float] | None = Field(description="Unweighted, by kind; the second of a kind is `kind#2`.")
    constraints: list[ConstraintReply] | None
    feasible: bool | None
    rank: int | None = Field(
        description="From 1, the best: feasible ones by cost, then the others by the sum of what they exceed."
    )
    uncertainty: CandidateUncertainty | None = Field(description="Null where no frame had to be predicted.")
    frames: list[PredictedFrame] | None = Field(default=None, description="Of the best `top_n`, when asked.")


class ScoreTimingsReply(WireReply):
    """Milliseconds: `prepare` encodes the observation and the goals, `evaluate` runs the candidates."""

    receive: float
    decode: float
    prepare: float
    evaluate: float
    render: float
    respond: float
    total: float


class ScoreReply(WireReply):
    """What each candidate costs, which is best, and how sure that is."""

    id: str
    model: str
    revision: str
    direction: Literal["minimize"] = "minimize"
    best_index: int | None = Field(description="In the request; null when no candidate was scored.")
    rank_stability: float | None = Field(
        description="Share of bootstrap draws of the members in which the same candidate comes first; null when no "
        "term depends on members, or there is only one."
    )
    seed: int
    strategy: Strategy
    members: int = Field(description="Members of each candidate's rollout; 0 when no term needs one.")
    candidates: list[CandidateReply]
    scored: int
    deadline_met: bool
    timings_ms: ScoreTimingsReply
    warnings: list[Warned]
    client_time: float | None = None
    metadata: dict[str, Scalar] | None = None
