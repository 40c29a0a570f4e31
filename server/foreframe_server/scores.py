"""What is asked of a scoring and what comes back. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from foreframe_engines import EnsembleSpec, Priority, Sampling
from foreframe_server.calls import ScoreTimings
from foreframe_server.observations import StoredObservation


class TermKind(StrEnum):
    """What can be asked of a candidate."""

    GOAL_IMAGE = "goal_image"
    GOAL_STATE = "goal_state"
    LIKELIHOOD = "likelihood"
    SPREAD = "spread"
    SMOOTHNESS = "smoothness"


class GoalMetric(StrEnum):
    """How far a future is from a goal picture: in pixels, in the rollout model's latents, or as token likelihood."""

    PIXEL = "pixel"
    LATENT = "latent"
    TOKENS = "tokens"


class SeedPolicy(StrEnum):
    """`shared` gives every candidate the same noise; `per_candidate` gives candidate i the seed plus i."""

    SHARED = "shared"
    PER_CANDIDATE = "per_candidate"


class CandidateStatus(StrEnum):
    """What became of a candidate."""

    OK = "ok"
    INVALID = "invalid"
    EXPIRED = "expired"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, eq=False)
class GoalImage:
    """How far the future is from a picture at frame 1..H. `latent` and `ids` are set once a model has seen it."""

    kind: ClassVar[TermKind] = TermKind.GOAL_IMAGE
    picture: UInt8[np.ndarray, "h w 3"]
    metric: GoalMetric
    frame: int
    latent: Float32[np.ndarray, "c y x"] | None = None
    ids: Int64[np.ndarray, " s"] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class GoalState:
    """How far the last row is from a state, physical units; only the dimensions in `dims` count."""

    kind: ClassVar[TermKind] = TermKind.GOAL_STATE
    values: Float32[np.ndarray, " d"]
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Likelihood:
    """How unsure the token model is of its own greedy future."""

    kind: ClassVar[TermKind] = TermKind.LIKELIHOOD


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """How far the members are apart at the last frame."""

    kind: ClassVar[TermKind] = TermKind.SPREAD


@dataclass(frozen=True, slots=True, eq=False)
class Smoothness:
    """How jerky the candidate's own rows are."""

    kind: ClassVar[TermKind] = TermKind.SMOOTHNESS


Term = GoalImage | GoalState | Likelihood | Spread | Smoothness


@dataclass(frozen=True, slots=True, eq=False)
class Objective:
    """A term and its weight in the cost."""

    term: Term
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class Constraint:
    """A term that must not be above `max_value`."""

    term: Term
    max_value: float


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One plan, float32 `h d` in physical units. `fault` says why it cannot be scored."""

    index: int
    id: str
    rows: Float32[np.ndarray, "h d"]
    fault: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ScoreQuery:
    """What is asked, checked and complete. All candidates are equally long; `frame_indices` are wanted of the best."""

    model: str
    observation: StoredObservation
    candidates: tuple[Candidate, ...]
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    sampling: Sampling
    ensemble: EnsembleSpec
    seed_policy: SeedPolicy
    priority: Priority
    top_n: int
    frame_indices: tuple[int, ...]

    @property
    def terms(self) -> tuple[Term, ...]:
        """Every term, objectives first."""
        return (*(each.term for each in self.objectives), *(each.term for each in self.constraints))

    @property
    def horizon(self) -> int:
        """How many rows each candidate has."""
        return len(self.candidates[0].rows)


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """A value, and the same for each draw of the members; None when it does not depend on them."""

    value: float
    resampled: Float64[np.ndarray, " r"] | None = None


@dataclass(frozen=True, slots=True)
class ConstraintResult:
    """A constraint's value against its bound."""

    kind: TermKind
    value: float
    max_value: float

    @property
    def is_satisfied(self) -> bool:
        """Whether value minus bound is at most 0."""
        return self.value <= self.max_value


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """A candidate's terms before weighting, its cost, and by how much it breaks its constraints in sum."""

    terms: Mapping[str, float]
    constraints: tuple[ConstraintResult, ...]
    cost: Measured
    violation: Measured

    @property
    def is_feasible(self) -> bool:
        """Whether every constraint is satisfied."""
        return all(result.is_satisfied for result in self.constraints)


@dataclass(frozen=True, slots=True)
class Spreads:
    """How far a candidate's members spread at the frames that were decoded for it; nothing for a single member."""

    frame_indices: tuple[int, ...]
    spread_per_frame: tuple[float, ...]
    members: int


@dataclass(frozen=True, slots=True, eq=False)
class CandidateOutcome:
    """What became of one candidate. `reason` says why it has no score."""

    candidate: Candidate
    status: CandidateStatus
    score: Score | None = None
    spreads: Spreads | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ScoreAnswer:
    """Every candidate in the order of the request, and the indices of the scored ones, the best first.

    members: of each rollout, 0 when none was needed. frames: uint8 RGB of the best, by index. missing_frames: how many
    of the best could not be shown in time.
    """

    outcomes: tuple[CandidateOutcome, ...]
    ranking: tuple[int, ...]
    rank_stability: float | None
    members: int
    deadline_met: bool
    frames: Mapping[int, UInt8[np.ndarray, "f h w 3"]] = field(default_factory=dict)
    missing_frames: int = 0
    timings: ScoreTimings = field(default_factory=ScoreTimings)


def needs_rollout(term: Term) -> bool:
    """Whether a term rests on predicted frames or latents."""
    return isinstance(term, Spread) or (isinstance(term, GoalImage) and term.metric is not GoalMetric.TOKENS)


def needs_tokens(term: Term) -> bool:
    """Whether a term rests on the token model."""
    return isinstance(term, Likelihood) or (isinstance(term, GoalImage) and term.metric is GoalMetric.TOKENS)
