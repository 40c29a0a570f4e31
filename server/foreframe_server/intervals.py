"""Means over clips with 95 % bootstrap intervals that resample whole episodes. Knows no measure.

Clips of one episode are not independent, so an episode is drawn with all its clips (a cluster bootstrap). Every
comparison uses the same draws for both sides, which makes it paired. Percentile intervals: Efron and Tibshirani,
"An Introduction to the Bootstrap", 1993, chapter 13.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float64

NUM_RESAMPLES = 4000
_LOW, _HIGH = 0.025, 0.975
_DIGITS = 5


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the ends of its 95 % interval, to five digits after the point."""

    mean: float
    low: float
    high: float

    def record(self) -> dict[str, float]:
        """Return the interval as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class Resamples:
    """How much each clip counts: in truth, and in every resample."""

    equal: Float64[np.ndarray, " n"]
    weights: Float64[np.ndarray, "r n"]

    @classmethod
    def of(cls, episodes: Sequence[int], seed: int = 0) -> "Resamples":
        """Draw resamples of clips whose episodes are these, clip by clip; equal seeds draw the same."""
        _, group, sizes = np.unique(episodes, return_inverse=True, return_counts=True)
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), NUM_RESAMPLES)
        weights = (drawn / (drawn @ sizes)[:, None])[:, group]
        return cls(np.full(len(group), 1 / len(group)), weights)

    def mean(self, values: Float64[np.ndarray, " n"]) -> Interval:
        """Return the mean of one value a clip."""
        return interval_of(self.equal @ values, self.weights @ values)

    def means(self, values: Float64[np.ndarray, "n m"]) -> list[Interval]:
        """Return the mean of every column."""
        return [self.mean(column) for column in values.T]

    def ratio(self, values: Float64[np.ndarray, " n"], others: Float64[np.ndarray, " n"]) -> Interval:
        """Return the mean of the values over the mean of the others, paired."""
        return interval_of(
            (self.equal @ values) / (self.equal @ others), (self.weights @ values) / (self.weights @ others)
        )


def interval_of(mean: float, resampled: Float64[np.ndarray, " r"]) -> Interval:
    """Return a value between the ends of 95 % of what resamples make of it."""
    low, high = np.quantile(resampled, (_LOW, _HIGH))
    return Interval(*(round(float(value), _DIGITS) for value in (mean, low, high)))
