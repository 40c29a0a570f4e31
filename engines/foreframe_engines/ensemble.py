"""What an ensemble of decoded members says: its mean, its spread, its most typical member. Pure numpy.

Members are uint8, so sums and sums of squares are integers: merging is exact and its order does not matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8, UInt32, UInt64

from foreframe_engines.types import EnsembleSpec, NoisePlan, Prediction, Reducer, Sampling

_WHITE = 255


@dataclass(frozen=True, slots=True, eq=False)
class EnsembleStatistics:
    """Count, sum and sum of squares of members, for each pixel and channel. Holds up to 2**24 members."""

    count: int
    total: UInt32[np.ndarray, "f h w 3"]
    squares: UInt64[np.ndarray, "f h w 3"]

    @classmethod
    def of(cls, members: UInt8[np.ndarray, "k f h w 3"]) -> "EnsembleStatistics":
        """Sum up k members."""
        total = members.sum(axis=0, dtype=np.uint32)
        # 255 squared needs 16 bits; the sum of many needs more.
        squares = np.square(members, dtype=np.uint16).sum(axis=0, dtype=np.uint64)
        return cls(len(members), total, squares)

    def add(self, frames: UInt8[np.ndarray, "f h w 3"]) -> "EnsembleStatistics":
        """Return the statistics with one more member."""
        return self.merge(EnsembleStatistics.of(frames[None]))

    def merge(self, other: "EnsembleStatistics") -> "EnsembleStatistics":
        """Return the statistics of both sets of members together."""
        return EnsembleStatistics(self.count + other.count, self.total + other.total, self.squares + other.squares)

    def mean_frames(self) -> UInt8[np.ndarray, "f h w 3"]:
        """Return the mean member, rounded to the nearest grey level, halves up."""
        doubled = 2 * self.total.astype(np.uint64) + np.uint64(self.count)
        return (doubled // np.uint64(2 * self.count)).astype(np.uint8)

    def variance(self, plan: NoisePlan) -> Float32[np.ndarray, "f h w"]:
        """Estimate the variance of a draw: mean over RGB, in units where white is 1. Zero for a single member.

        Among n members with p pairs of correlation rho the squared deviations sum to
        sigma^2 (n - 1 - 2 p rho / n) on average. Independent members (rho = 0) divide by n - 1; antithetic pairs
        have rho near -1, so n even divides by n, and n odd by n - 1 / n. Antithetic members must be 0..n-1.
        """
        if self.count == 1:
            return np.zeros(self.total.shape[:-1], np.float32)
        n = self.count
        pairs = n // 2 if plan is NoisePlan.ANTITHETIC else 0
        deviations = np.uint64(n) * self.squares - np.square(self.total, dtype=np.uint64)
        divisor = n * (n - 1) + 2 * pairs
        return (deviations.sum(axis=-1) / (3 * divisor * _WHITE**2)).astype(np.float32)

    def spread_per_frame(self, plan: NoisePlan) -> tuple[float, ...]:
        """Return the root of each frame's mean variance, in units where white is 1."""
        return tuple(np.sqrt(self.variance(plan).mean(axis=(1, 2), dtype=np.float64)).tolist())


def mean_frames(members: UInt8[np.ndarray, "k f h w 3"]) -> UInt8[np.ndarray, "f h w 3"]:
    """Return the mean member, rounded to the nearest grey level, halves up."""
    return EnsembleStatistics.of(members).mean_frames()


def median_frames(members: UInt8[np.ndarray, "k f h w 3"]) -> UInt8[np.ndarray, "f h w 3"]:
    """Return each value's median over the members; between two middle members their mean, halves up."""
    ordered = np.sort(members, axis=0)
    low, high = ordered[(len(members) - 1) // 2], ordered[len(members) // 2]
    return ((low.astype(np.uint16) + high + 1) // 2).astype(np.uint8)


def medoid_index(members: UInt8[np.ndarray, "k f h w 3"]) -> int:
    """Return which member has the least summed squared distance to the others; the lowest index on ties."""
    flat = members.reshape(len(members), -1).astype(np.int64)
    # sum_j |a_i - a_j|^2 = k |a_i|^2 - 2 a_i . sum_j a_j + a term that all i share
    cost = len(members) * np.square(flat).sum(axis=1) - 2 * (flat @ flat.sum(axis=0))
    return int(cost.argmin())


def reduce_members(members: UInt8[np.ndarray, "k f h w 3"], ensemble: EnsembleSpec) -> UInt8[np.ndarray, "f h w 3"]:
    """Turn k members into the one answer that the reducer names; `none` is member 0."""
    match ensemble.reducer:
        case Reducer.MEAN:
            return mean_frames(members)
        case Reducer.MEDIAN:
            return median_frames(members)
        case Reducer.MEDOID:
            return members[medoid_index(members)]
        case Reducer.NONE:
            return members[0]


def summarise(
    members: UInt8[np.ndarray, "k f h w 3"], frame_indices: Sequence[int], sampling: Sampling, ensemble: EnsembleSpec
) -> Prediction:
    """Make the prediction of members 0..k-1, with their variance and spread."""
    statistics = EnsembleStatistics.of(members)
    return Prediction(
        frame_indices=tuple(frame_indices),
        frames=reduce_members(members, ensemble),
        members=members,
        variance=statistics.variance(ensemble.noise),
        spread_per_frame=statistics.spread_per_frame(ensemble.noise),
        sampling=sampling,
        ensemble=ensemble,
    )
