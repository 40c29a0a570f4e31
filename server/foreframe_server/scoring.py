"""What a candidate plan costs, and which comes first. Pure NumPy: it knows no engine, no queue and no wire.

A term is one number about one candidate, lower is better. A term that rests on ensemble members is also measured on
the members drawn again with replacement, from which the stability of the ranking follows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float32, Float64, Int64, Shaped, UInt8

from foreframe_engines import Prediction, Reducer, StateSchema, reduce_members
from foreframe_engines.types import Latents, TokenSpec
from foreframe_server.scores import (
    Constraint,
    ConstraintResult,
    GoalImage,
    GoalMetric,
    GoalState,
    Likelihood,
    Measured,
    Objective,
    Score,
    Smoothness,
    Spread,
    Term,
)

NUM_RESAMPLES = 256
_BOOTSTRAP_KEY = 2**63
_MAX_MEDIAN_VALUES = 512
_MIN_STD = 1e-6
_WHITE = 255.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """What the rollout model made of a candidate: the frames that terms need, and every member's future latents."""

    prediction: Prediction
    latents: Sequence[Latents]
    frames_per_latent: int

    def members_at(self, frame: int) -> UInt8[np.ndarray, "k h w 3"]:
        """Return every member's frame 1..H, which must have been decoded."""
        return self.prediction.members[:, self.prediction.frame_indices.index(frame)]

    def latents_at(self, frame: int) -> Float32[np.ndarray, "k c y x"]:
        """Return every member's latent that holds frame 1..H."""
        return np.stack([member[(frame - 1) // self.frames_per_latent] for member in self.latents])


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What the token model made of a candidate, in nats per token: of its own future, of each goal picture."""

    own_nats: float | None
    goal_nats: Mapping[GoalImage, float]


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """All that is known of one candidate. path: the last observed row, then the candidate's own."""

    path: Float32[np.ndarray, "n d"]
    rollout: Rollout | None = None
    reading: Reading | None = None


def score_candidate(
    objectives: Sequence[Objective], constraints: Sequence[Constraint], evidence: Evidence, schema: StateSchema
) -> Score:
    """Measure every term of one candidate and add them up."""
    measured = [measure(objective.term, evidence, schema) for objective in objectives]
    bounded = [measure(constraint.term, evidence, schema) for constraint in constraints]
    return Score(
        terms=dict(zip(name_terms(objectives), [each.value for each in measured], strict=True)),
        constraints=tuple(
            ConstraintResult(constraint.term.kind, each.value, constraint.max_value)
            for constraint, each in zip(constraints, bounded, strict=True)
        ),
        cost=_weighted_sum([objective.weight for objective in objectives], measured),
        violation=_weighted_sum(
            [1.0] * len(constraints),
            [_excess(each, constraint.max_value) for constraint, each in zip(constraints, bounded, strict=True)],
        ),
    )


def name_terms(objectives: Sequence[Objective]) -> list[str]:
    """Name each objective by its kind; the second of a kind is `kind#2`."""
    names: list[str] = []
    kinds = [objective.term.kind for objective in objectives]
    for position, kind in enumerate(kinds):
        number = kinds[: position + 1].count(kind)
        names.append(kind.value if number == 1 else f"{kind.value}#{number}")
    return names


def measure(term: Term, evidence: Evidence, schema: StateSchema) -> Measured:
    """Measure one term of one candidate; the evidence must hold what the term needs."""
    match term:
        case GoalState():
            return Measured(state_distance(evidence.path[-1], term, schema))
        case Smoothness():
            return Measured(roughness(evidence.path, schema))
        case Likelihood():
            return Measured(_known(_known(evidence.reading).own_nats))
        case Spread():
            return member_spread(_known(evidence.rollout).prediction)
        case GoalImage():
            return _measure_goal(term, evidence)


def state_distance(row: Float32[np.ndarray, " d"], goal: GoalState, schema: StateSchema) -> float:
    """Return the mean squared distance of a row to the goal, in training standard deviations."""
    dims = list(goal.dims)
    away = (row[dims].astype(np.float64) - goal.values[dims]) / _deviations(schema)[dims]
    return float(np.square(away).mean())


def roughness(path: Float32[np.ndarray, "n d"], schema: StateSchema) -> float:
    """Return the mean squared second difference of at least 3 rows, in training standard deviations."""
    bends = np.diff(path.astype(np.float64) / _deviations(schema), n=2, axis=0)
    return float(np.square(bends).mean())


def pixel_distance(
    members: UInt8[np.ndarray, "k h w 3"], goal: UInt8[np.ndarray, "h w 3"], prediction: Prediction
) -> Measured:
    """Return the mean squared error of the reduced frame, white is 1; for `none` the mean of the members' own."""
    ensemble = prediction.ensemble
    answers = members if ensemble.reducer is Reducer.NONE else reduce_members(members[:, None], ensemble)
    value = float(np.square(answers.astype(np.int32) - goal).mean(dtype=np.float64)) / _WHITE**2
    return Measured(value, _resampled_distance(_from_goal(members, goal), prediction, scale=_WHITE))


def latent_distance(
    latents: Float32[np.ndarray, "k c y x"], goal: Float32[np.ndarray, "c y x"], prediction: Prediction
) -> Measured:
    """Return the mean squared distance of the reduced latent; for `none` the mean of the members' own.

    The medoid is the member with the least summed squared distance to the others, in latents.
    """
    away = _from_goal(latents, goal)
    value = float(np.square(_reduce(away, prediction.ensemble.reducer)).mean())
    return Measured(value, _resampled_distance(away, prediction))


def member_spread(prediction: Prediction) -> Measured:
    """Return the root of the members' mean variance at the last frame decoded, white is 1."""
    value = prediction.spread_per_frame[-1]
    last = prediction.members[:, -1]
    if len(last) == 1 or value == 0:
        return Measured(value)
    gram = _gram(_from_goal(last, last[0]))
    shares = np.concatenate([np.ones((1, len(last))), _counts(_draws(prediction))]) / len(last)
    variances = shares @ np.diag(gram) - np.einsum("ri,ij,rj->r", shares, gram, shares)
    # The estimator's divisor is the same for every draw, so the ratio to the members as they are is enough.
    return Measured(value, value * np.sqrt(np.maximum(variances[1:], 0) / variances[0]))


def rank(scores: Sequence[Score]) -> list[int]:
    """Order positions, best first: least violation (none for feasible ones), then least cost, then the first."""
    return sorted(range(len(scores)), key=lambda place: (scores[place].violation.value, scores[place].cost.value))


def rank_stability(scores: Sequence[Score]) -> float | None:
    """Return in which share of the draws the best candidate is still first; None when nothing depends on members."""
    if all(score.cost.resampled is None and score.violation.resampled is None for score in scores):
        return None
    violations, costs = _table([score.violation for score in scores]), _table([score.cost for score in scores])
    least = violations == violations.min(axis=0)
    firsts = np.where(least, costs, np.inf).argmin(axis=0)
    return float((firsts == rank(scores)[0]).mean())


def grid_of_frame(frame: int, tokens: TokenSpec) -> int:
    """Return which future grid, from 0, stands for future frame 1..H."""
    window, place = divmod(frame - 1, tokens.window_frames)
    within = np.searchsorted(np.cumsum(tokens.frames_per_grid), place, side="right")
    return window * tokens.window_grids + int(within)


def _known(value: _T | None) -> _T:
    if value is None:
        raise RuntimeError("a term was measured without its evidence")
    return value


def _deviations(schema: StateSchema) -> Float64[np.ndarray, " d"]:
    return np.maximum(schema.std.astype(np.float64), _MIN_STD)


def _measure_goal(term: GoalImage, evidence: Evidence) -> Measured:
    if term.metric is GoalMetric.TOKENS:
        return Measured(_known(evidence.reading).goal_nats[term])
    rollout = _known(evidence.rollout)
    if term.metric is GoalMetric.LATENT:
        return latent_distance(rollout.latents_at(term.frame), _known(term.latent), rollout.prediction)
    return pixel_distance(rollout.members_at(term.frame), term.picture, rollout.prediction)


def _weighted_sum(weights: Sequence[float], parts: Sequence[Measured]) -> Measured:
    value = float(sum(weight * part.value for weight, part in zip(weights, parts, strict=True)))
    if all(part.resampled is None for part in parts):
        return Measured(value)
    columns = [
        weight * (part.value if part.resampled is None else part.resampled)
        for weight, part in zip(weights, parts, strict=True)
    ]
    return Measured(value, np.sum(np.broadcast_arrays(*columns), axis=0))


def _excess(measured: Measured, bound: float) -> Measured:
    resampled = None if measured.resampled is None else np.maximum(measured.resampled - bound, 0)
    return Measured(max(measured.value - bound, 0.0), resampled)


def _table(parts: Sequence[Measured]) -> Float64[np.ndarray, "k r"]:
    rows = [np.full(NUM_RESAMPLES, part.value) if part.resampled is None else part.resampled for part in parts]
    return np.stack(rows)


def _from_goal(members: Shaped[np.ndarray, "k ..."], goal: Shaped[np.ndarray, "..."]) -> Float64[np.ndarray, "k p"]:
    return (members.astype(np.float64) - goal).reshape(len(members), -1)


def _gram(rows: Float64[np.ndarray, "k p"]) -> Float64[np.ndarray, "k k"]:
    """Return the mean product of each two rows: every squared distance that a set of members can have."""
    return rows @ rows.T / rows.shape[1]


def _reduce(away: Float64[np.ndarray, "k p"], reducer: Reducer) -> Float64[np.ndarray, "..."]:
    match reducer:
        case Reducer.MEAN:
            return away.mean(axis=0)
        case Reducer.MEDIAN:
            return np.median(away, axis=0)
        case Reducer.MEDOID:
            return away[_medoids(_gram(away), np.ones((1, len(away))))[0]]
        case Reducer.NONE:
            return away


def _medoids(gram: Float64[np.ndarray, "k k"], counts: Float64[np.ndarray, "r k"]) -> Int64[np.ndarray, " r"]:
    """Return the member of each draw with the least summed squared distance to the others; the lowest on ties."""
    norms = np.diag(gram)
    summed = counts @ (norms[:, None] + norms - 2 * gram)
    return np.where(counts > 0, summed, np.inf).argmin(axis=1)


def _draws(prediction: Prediction) -> Int64[np.ndarray, "r k"]:
    """Draw members with replacement, the same for every candidate of equal seed, so that candidates stay paired."""
    key = np.array([prediction.sampling.seed, _BOOTSTRAP_KEY], dtype=np.uint64)
    size = (NUM_RESAMPLES, prediction.num_members)
    return np.random.Generator(np.random.Philox(key=key)).integers(prediction.num_members, size=size)


def _counts(draws: Int64[np.ndarray, "r k"]) -> Float64[np.ndarray, "r k"]:
    return (draws[:, :, None] == np.arange(draws.shape[1])).sum(axis=1).astype(np.float64)


def _resampled_distance(
    away: Float64[np.ndarray, "k p"], prediction: Prediction, *, scale: float = 1.0
) -> Float64[np.ndarray, " r"] | None:
    """Return each draw's mean squared distance; `scale` is what counts as 1."""
    if len(away) == 1:
        return None
    draws, reducer = _draws(prediction), prediction.ensemble.reducer
    if reducer is Reducer.MEDIAN:
        return _resampled_medians(away, draws) / scale**2
    counts, gram = _counts(draws), _gram(away)
    shares = counts / len(away)
    match reducer:
        case Reducer.MEAN:
            squares = np.einsum("ri,ij,rj->r", shares, gram, shares)
        case Reducer.MEDOID:
            squares = np.diag(gram)[_medoids(gram, counts)]
        case _:
            squares = shares @ np.diag(gram)
    return squares / scale**2


def _resampled_medians(away: Float64[np.ndarray, "k p"], draws: Int64[np.ndarray, "r k"]) -> Float64[np.ndarray, " r"]:
    # A median has no closed form in the members' products: an even sample of the values stands for all of them.
    stride = -(-away.shape[1] // _MAX_MEDIAN_VALUES)
    return np.square(np.median(away[draws, ::stride], axis=1)).mean(axis=1)
