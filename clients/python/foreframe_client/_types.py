"""What the client takes and gives. Values only; frames are uint8 RGB 0..255, states float32 in physical units.

Axis letters: t context frames, f predicted or scored frames, k members or candidates, H rows of a plan, g grids of s
tokens, h w, d.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from foreframe_client._short import Short

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64, Int64, UInt8

FrameSelection = Union[Literal["all", "last"], Sequence[int]]
"""Which future frames to decode: all, the last one, or indices 1..horizon."""
Reducer = Literal["mean", "median", "medoid", "none"]
Noise = Literal["antithetic", "iid"]
Strategy = Literal["sample", "posterior_mean"]
OnDeadline = Literal["degrade", "partial", "fail"]
Priority = Literal["controller", "bulk"]
Variance = Literal["none", "summary", "map"]
CachePolicy = Literal["use", "bypass", "refresh"]
Scenario = Literal["teacher_forced", "autoregressive"]
Support = Literal["full", "top_k"]
TopKDefinition = Literal["topk_renormalised", "full_with_escape", "full_vocabulary"]
SeedPolicy = Literal["shared", "per_candidate"]
GoalMetric = Literal["pixel", "latent", "tokens"]
TermKind = Literal["goal_image", "goal_state", "likelihood", "spread", "smoothness"]
ReturnedFrames = Literal["none", "last", "all"]
Metadata = Mapping[str, Union[str, int, float, bool, None]]


@dataclass(frozen=True)
class Camera:
    """One camera of a model: its frames are uint8 RGB `t height width 3`."""

    name: str
    height: int
    width: int


@dataclass(frozen=True)
class Model:
    """What a model takes and gives. `document` is all that the server says about it."""

    id: str
    family: str
    revision: str
    cameras: Tuple[Camera, ...]
    context_frames: int
    horizon: int
    fps: float
    state_schema: str
    state_dim: int
    capabilities: Tuple[str, ...]
    document: Mapping[str, object]


@dataclass(frozen=True)
class StateSchema:
    """A state vector: names and units of its columns, in order."""

    name: str
    names: Tuple[str, ...]
    units: Tuple[str, ...]
    document: Mapping[str, object]

    @property
    def dim(self) -> int:
        """Width d of a state row."""
        return len(self.names)


@dataclass(frozen=True, eq=False, repr=False)
class StateCheck(Short):
    """What a server says of rows that fit a schema. `first_row` is as a model would get it, in its order and units."""

    schema: str
    num_rows: int
    first_row: Float32[np.ndarray, " d"]
    warnings: Tuple[Notice, ...]


@dataclass(frozen=True)
class Degraded:
    """How an answer is less than what was asked."""

    members: int
    steps: int
    reason: str


@dataclass(frozen=True)
class Notice:
    """Something the server did or saw that the caller may not expect; `pointer` is a JSON pointer into the request."""

    code: str
    pointer: str
    message: str


@dataclass(frozen=True, eq=False, repr=False)
class SpreadCalibration(Short):
    """What `coverage` of held-out recordings keep, a number a frame, white is 1. It holds for recordings like those.

    line_per_frame: what the spread stays under, at all frames at once. error_per_frame: what the root mean square error
    of the mean stays under, None of another reducer.
    """

    coverage: float
    line_per_frame: Float64[np.ndarray, " f"]
    error_per_frame: Optional[Float64[np.ndarray, " f"]]


@dataclass(frozen=True, eq=False, repr=False)
class Prediction(Short):
    """Predicted frames and what they rest on.

    variance: how much one draw varies, estimated from the members, mean over RGB, in units where white is 1; None when
    not asked for or with fewer than two members. spread_per_frame: its root mean per frame, None likewise.
    calibration: None where none applies or no spread was asked for. verdict: `usual`, `partly`, `unusual` or
    `uncalibrated`. trusted_horizon: the last frame before the first that spreads more than is usual, None uncalibrated.
    members: None unless asked for or not reduced. times_s: seconds after the last context frame.
    cached_members: how many of them were known before. correlation: between the two of an antithetic pair.
    effective_members: independent ones whose mean would be as exact. standard_error: of the mean, root mean square over
    pixels, white is 1. The last three are None where too few members tell.
    """

    id: str
    model: str
    revision: str
    frames: UInt8[np.ndarray, "f h w 3"]
    frame_indices: Int64[np.ndarray, " f"]
    times_s: Float64[np.ndarray, " f"]
    variance: Optional[Float32[np.ndarray, "f h w"]]
    spread_per_frame: Optional[Float64[np.ndarray, " f"]]
    calibration: Optional[SpreadCalibration]
    verdict: str
    trusted_horizon: Optional[int]
    members: Optional[UInt8[np.ndarray, "k f h w 3"]]
    num_members: int
    requested_members: int
    cached_members: int
    correlation: Optional[float]
    effective_members: Optional[float]
    standard_error: Optional[float]
    steps: int
    strategy: str
    seed: int
    degraded: Optional[Degraded]
    deadline_met: bool
    cache: str
    determinism: str
    timings_ms: Mapping[str, float]
    warnings: Tuple[Notice, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Progress(Short):
    """A prediction that is not whole yet.

    frames: what the members so far make; without any, the posterior mean as the first step sees it.
    spread_per_frame: as of a prediction. standard_error: of the mean, root mean square over pixels, white is 1; None
    when not known yet. elapsed_ms: since the server saw the request.
    """

    frames: UInt8[np.ndarray, "f h w 3"]
    frame_indices: Int64[np.ndarray, " f"]
    times_s: Float64[np.ndarray, " f"]
    num_members: int
    spread_per_frame: Optional[Float64[np.ndarray, " f"]]
    standard_error: Optional[float]
    elapsed_ms: float

    @property
    def is_estimate(self) -> bool:
        """Whether no member is whole yet."""
        return self.num_members == 0


@dataclass(frozen=True)
class Observation:
    """What the server holds of an upload, to be given as `observation` instead of frames and states."""

    id: str
    expires_in_s: float
    model: Optional[str] = None


@dataclass(frozen=True)
class TopKCrossEntropy:
    """Cross-entropy in nats a token under a named definition.

    escape_mass: probability outside the k likeliest ids, mean over the targets. escape_nats: what it costs to say that
    a target lies outside, over all targets. left_out: targets that `value`, None without any, does not count.
    """

    k: int
    definition: str
    value: Optional[float]
    escape_nats: float
    escape_mass: float
    left_out: int


@dataclass(frozen=True, eq=False, repr=False)
class Surprise(Short):
    """How unusual each grid's bits are among those of held-out episodes.

    z: standard deviations above their mean. quantile: share 0..1 of held-out grids with fewer bits.
    """

    z: Float64[np.ndarray, " g"]
    quantile: Float64[np.ndarray, " g"]


@dataclass(frozen=True, eq=False, repr=False)
class Likelihood(Short):
    """What the ids of a target cost: the fewer bits, the likelier it was.

    bits_per_frame: one number a grid; `grid_frames` says which frames of the target, from 1, each grid stands for.
    bits_per_pixel: of the ids; what the tokenizer loses is not in it. surprise: None without a calibration that
    applies. map: bits of every id, None unless asked for.
    """

    id: str
    model: str
    revision: str
    nats_total: float
    bits_total: float
    nats_per_token: float
    bits_per_token: float
    bits_per_frame: Float64[np.ndarray, " g"]
    grid_frames: Tuple[Tuple[int, ...], ...]
    bits_per_pixel: float
    tokens: int
    top_k_cross_entropy: Optional[TopKCrossEntropy]
    surprise: Optional[Surprise]
    map: Optional[Float32[np.ndarray, "g rows columns"]]
    deadline_met: bool
    timings_ms: Mapping[str, float]
    warnings: Tuple[Notice, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Objective(Short):
    """One term of a cost; lower is better, a negative weight turns it round. Made by its class methods."""

    kind: TermKind
    weight: float = 1.0
    params: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def goal_image(
        cls,
        image: UInt8[np.ndarray, "h w 3"],
        *,
        metric: GoalMetric = "pixel",
        frame: Optional[int] = None,
        weight: float = 1.0,
    ) -> Objective:
        """Ask for a future that looks like a picture at a frame 1..H, by default the last."""
        return cls("goal_image", weight, {"image": image, "metric": metric, "frame": frame})

    @classmethod
    def goal_state(
        cls,
        values: Float32[np.ndarray, " d"],
        *,
        dims: Optional[Sequence[Union[int, str]]] = None,
        weight: float = 1.0,
    ) -> Objective:
        """Ask for a last row near a state, physical units; `dims` says which dimensions count, by default all."""
        return cls("goal_state", weight, {"values": values, "dims": dims})

    @classmethod
    def likelihood(cls, *, weight: float = 1.0) -> Objective:
        """Ask for a future that the token model is sure of."""
        return cls("likelihood", weight)

    @classmethod
    def spread(cls, *, weight: float = 1.0) -> Objective:
        """Ask for a future on whose last frame the members agree."""
        return cls("spread", weight)

    @classmethod
    def smoothness(cls, *, weight: float = 1.0) -> Objective:
        """Ask for rows without jerks."""
        return cls("smoothness", weight)


@dataclass(frozen=True, eq=False)
class Constraint:
    """A term that must not be above `maximum`; the objective's weight does not matter."""

    objective: Objective
    maximum: float


@dataclass(frozen=True)
class ConstraintValue:
    """What a constraint's term is for one candidate."""

    kind: str
    value: float
    maximum: float
    is_satisfied: bool

    @property
    def excess(self) -> float:
        """How far above its maximum it is; satisfied at 0 and below."""
        return self.value - self.maximum


@dataclass(frozen=True, eq=False, repr=False)
class CandidateScore(Short):
    """One candidate, whose `status` is ok, invalid, expired or failed; only what is ok has a cost, terms and a rank.

    terms: unweighted, by kind; the second of a kind is `kind#2`. rank: from 1, the best. frames: None unless returned.
    """

    index: int
    id: str
    status: str
    reason: Optional[str]
    cost: Optional[float]
    terms: Mapping[str, float]
    constraints: Tuple[ConstraintValue, ...]
    is_feasible: Optional[bool]
    rank: Optional[int]
    frames: Optional[UInt8[np.ndarray, "f h w 3"]]
    frame_indices: Tuple[int, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Scores(Short):
    """Every candidate's cost in the order of the request; lower is better.

    best_index: None when none was scored. rank_stability: in which share of the members' bootstrap draws the best stays
    first; None when nothing depends on members.
    """

    id: str
    model: str
    revision: str
    best_index: Optional[int]
    rank_stability: Optional[float]
    candidates: Tuple[CandidateScore, ...]
    num_scored: int
    seed: int
    num_members: int
    deadline_met: bool
    timings_ms: Mapping[str, float]
    warnings: Tuple[Notice, ...]

    @property
    def costs(self) -> Float64[np.ndarray, " k"]:
        """Return every candidate's cost, +inf for what is infeasible or was not scored."""
        usable = (entry.cost if entry.cost is not None and entry.is_feasible else np.inf for entry in self.candidates)
        return np.array(list(usable), np.float64)
