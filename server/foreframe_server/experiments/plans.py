"""What comes of planning with a server's scores: distances to the goals by inference strategy, against random plans.

Knows neither the world nor the client: it is given where hands ended, and sums up with 95 % intervals over goals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from foreframe_server.intervals import Interval, Resamples

SUCCESS_RATIO = 0.5
"""A plan succeeds when it ends this much nearer to the goal than random plans do on average."""

_DIGITS = 5


@dataclass(frozen=True, slots=True)
class Inference:
    """How a planner asks for scores: by what it compares with the goal's picture, and how futures are drawn."""

    metric: Literal["pixel", "latent", "tokens"]
    size: int = 1
    reducer: Literal["mean", "medoid"] = "mean"
    strategy: Literal["sample", "posterior_mean"] = "sample"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one strategy made of one goal. best_costs: each round's, in the metric's unit; None: not scored."""

    strategy: str
    distance_m: float
    score_calls: int
    seconds: float
    best_costs: tuple[float | None, ...]

    @classmethod
    def of(cls, strategy: str, distance_m: float, seconds: float, best_costs: Sequence[float]) -> "Attempt":
        """Take the best cost of every call, NaN where none was scored."""
        costs = tuple(None if math.isnan(cost) else round(cost, _DIGITS) for cost in best_costs)
        return cls(strategy, round(distance_m, _DIGITS), len(costs), round(seconds, 3), costs)


@dataclass(frozen=True, slots=True)
class GoalResult:
    """One goal: how far the hand was at first, how far random plans leave it on average, and every attempt."""

    seed: int
    hand: str
    start_m: float
    random_m: float
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class StrategyMeasures:
    """One strategy over all goals. success: share of goals at which it ends well nearer than random plans."""

    distance_m: Interval
    median_m: float
    ratio_to_random: Interval
    success: Interval
    score_calls: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PlansReport:
    """Distances of hands to their goals: before, after random plans, and after planning by each strategy."""

    goals: int
    start_m: Interval
    random_m: Interval
    strategies: dict[str, StrategyMeasures]
    best_strategy: str
    per_goal: tuple[GoalResult, ...]


def name_strategies(metric: Literal["pixel", "latent"]) -> dict[str, Inference]:
    """List the strategies that are compared; `metric` is that of those which predict pictures."""
    return {
        "sample": Inference(metric),
        "mean8": Inference(metric, size=8),
        "antithetic": Inference(metric, size=2),
        "posterior_mean": Inference(metric, strategy="posterior_mean"),
        "medoid8": Inference(metric, size=8, reducer="medoid"),
        "tokens": Inference("tokens"),
    }


def summarise_plans(results: Sequence[GoalResult]) -> PlansReport:
    """Sum the results up; goals are resampled, each with all its attempts. Every goal has the same strategies."""
    resamples = Resamples.of([result.seed for result in results])
    names = [attempt.strategy for attempt in results[0].attempts]
    strategies = {name: _measures(results, name, resamples) for name in names}
    return PlansReport(
        goals=len(results),
        start_m=resamples.mean(np.array([result.start_m for result in results])),
        random_m=resamples.mean(np.array([result.random_m for result in results])),
        strategies=strategies,
        best_strategy=min(names, key=lambda name: strategies[name].distance_m.mean),
        per_goal=tuple(results),
    )


def _measures(results: Sequence[GoalResult], name: str, resamples: Resamples) -> StrategyMeasures:
    attempts = [attempt for result in results for attempt in result.attempts if attempt.strategy == name]
    distances = np.array([attempt.distance_m for attempt in attempts])
    random_m = np.array([result.random_m for result in results])
    return StrategyMeasures(
        distance_m=resamples.mean(distances),
        median_m=round(float(np.median(distances)), _DIGITS),
        ratio_to_random=resamples.ratio(distances, random_m),
        success=resamples.mean((distances < SUCCESS_RATIO * random_m).astype(np.float64)),
        score_calls=sum(attempt.score_calls for attempt in attempts),
        seconds=round(sum(attempt.seconds for attempt in attempts), 2),
    )
