"""What an ensemble of decoded members says: its mean, its spread, its most typical member. Pure numpy.

Members are uint8, so sums and sums of squares are integers: merging is exact and its order does not matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Float64, UInt8, UInt32, UInt64

from foreframe_engines.types import EnsembleSpec, NoisePlan, Prediction, Reducer, Sampling

_WHITE = 255


@dataclass(frozen=True, eq=False)
class EnsembleStatistics:
    """Count, sum and sum of squares of members, for each pixel and channel. Holds up to 2**24 members.

    pair_total, pair_squares: of the sums of members 2i and 2i+1; a last member without its partner is in neither.
    """

    count: int
    total: UInt32[np.ndarray, "f h w 3"]
    squares: UInt64[np.ndarray, "f h w 3"]
    pair_total: UInt32[np.ndarray, "f h w 3"]
    pair_squares: UInt64[np.ndarray, "f h w 3"]

    @classmethod
    def of(cls, members: UInt8[np.ndarray, "k f h w 3"]) -> "EnsembleStatistics":
        """Sum up k members, the first of which has an even number."""
        pairs = np.add(members[:-1:2], members[1::2], dtype=np.uint16)
        return cls(
            count=len(members),
            total=members.sum(axis=0, dtype=np.uint32),
            # 255 squared needs 16 bits; the sum of many needs more.
            squares=np.square(members, dtype=np.uint16).sum(axis=0, dtype=np.uint64),
            pair_total=pairs.sum(axis=0, dtype=np.uint32),
            pair_squares=np.square(pairs, dtype=np.uint32).sum(axis=0, dtype=np.uint64),
        )

    @property
    def num_pairs(self) -> int:
        """How many pairs are whole."""
        return self.count // 2

    def add(self, frames: UInt8[np.ndarray, "f h w 3"]) -> "EnsembleStatistics":
        """Return the statistics with the next member."""
        return self.merge(EnsembleStatistics.of(frames[None]))

    def merge(self, other: "EnsembleStatistics") -> "EnsembleStatistics":
        """Return the statistics of both, `other` being of the members that come next.

        Raises ValueError when that would tear the other's pairs apart: one next member may come at any time, several
        after an even number.
        """
        closes_pair = self.count % 2 == 1
        if closes_pair and other.count > 1:
            raise ValueError("several members can only follow an even number of members")
        pair = self._unpaired() + other.total if closes_pair else np.zeros_like(self.total)
        return EnsembleStatistics(
            count=self.count + other.count,
            total=self.total + other.total,
            squares=self.squares + other.squares,
            pair_total=self.pair_total + other.pair_total + pair,
            pair_squares=self.pair_squares + other.pair_squares + np.square(pair, dtype=np.uint64),
        )

    def mean_frames(self) -> UInt8[np.ndarray, "f h w 3"]:
        """Return the mean member, rounded to the nearest grey level, halves up."""
        # Twice the sum, and the count, of so few members fit into 32 bits, which divide faster.
        kind = np.uint32 if self.count < 2**22 else np.uint64
        doubled = 2 * self.total.astype(kind) + self.count
        return (doubled // (2 * self.count)).astype(np.uint8)

    def variance(self, plan: NoisePlan) -> Float32[np.ndarray, "f h w"]:
        """Estimate the variance of a draw: mean over RGB, in units where white is 1. Zero for a single member.

        Two or more antithetic pairs tell it whatever their correlation is; a member without its partner is left out.
        Fewer are taken to have correlation -1. Antithetic members must be 0..n-1.
        """
        if self.count == 1:
            return np.zeros(self.total.shape[:-1], np.float32)
        if plan is NoisePlan.ANTITHETIC and self.num_pairs > 1:
            between, within = self._mean_squares
            levels = (between + within) / 2
        else:
            levels = self._deviations() / self._divisor(plan)
        return (levels.mean(axis=-1) / _WHITE**2).astype(np.float32)

    def spread_per_frame(self, plan: NoisePlan) -> tuple[float, ...]:
        """Return the root of each frame's mean variance, in units where white is 1."""
        return _spread_per_frame(self.variance(plan))

    def correlation(self, plan: NoisePlan) -> float | None:
        """Estimate the correlation (-1..1) within pairs, pooled over pixels; None for iid and for less than two pairs.

        The intraclass correlation from mean squares: Fisher, "Statistical methods for research workers", 1925,
        chapter 7. None also when no two members differ.
        """
        if plan is NoisePlan.IID or self.num_pairs < 2:
            return None
        between, within = (float(each.mean()) for each in self._mean_squares)
        return (between - within) / (between + within) if between + within > 0 else None

    def effective_members(self, plan: NoisePlan) -> float | None:
        """Say how many independent members would have a mean as exact as this one's.

        None where the correlation is None, and where pairs cancel, so that no number would do.
        """
        if plan is NoisePlan.IID:
            return float(self.count)
        correlation = self.correlation(plan)
        if correlation is None:
            return None
        independent = self.count + 2 * self.num_pairs * correlation
        return self.count**2 / independent if independent > 0 else None

    def standard_error(self, plan: NoisePlan) -> float | None:
        """Estimate how far the mean is from that of endless members: root mean square over pixels, white is 1.

        Antithetic from the means of pairs: None below 4 members; iid: None below 2.
        """
        n = self.count
        if plan is NoisePlan.IID:
            return _root_mean(self._deviations() / (n * n * (n - 1))) if n > 1 else None
        if self.num_pairs < 2:
            return None
        between, within = self._mean_squares
        single = (between + within) / 2 if n % 2 else 0
        return _root_mean((2 * self.num_pairs * between + single) / n**2)

    def _unpaired(self) -> UInt32[np.ndarray, "f h w 3"]:
        """Return the last member if it lacks its partner, else zeros."""
        return self.total - self.pair_total

    def _deviations(self) -> UInt64[np.ndarray, "f h w 3"]:
        """Return n times the sum of squared deviations from the mean."""
        return np.uint64(self.count) * self.squares - np.square(self.total, dtype=np.uint64)

    def _divisor(self, plan: NoisePlan) -> int:
        """Return what n times the sum of squared deviations is, on average, for a variance of 1.

        Among n members with p pairs of correlation rho the squared deviations sum to sigma^2 (n - 1 - 2 p rho / n) on
        average: rho is 0 for independent members and taken to be -1 for antithetic ones.
        """
        pairs = self.num_pairs if plan is NoisePlan.ANTITHETIC else 0
        return self.count * (self.count - 1) + 2 * pairs

    @cached_property
    def _mean_squares(self) -> tuple[Float64[np.ndarray, "f h w 3"], Float64[np.ndarray, "f h w 3"]]:
        """Return the mean squares between and within two or more pairs, in squared grey levels.

        Their means are sigma^2 (1 + rho) and sigma^2 (1 - rho).
        """
        pairs = self.num_pairs
        between = np.uint64(pairs) * self.pair_squares - np.square(self.pair_total, dtype=np.uint64)
        paired_squares = self.squares - np.square(self._unpaired(), dtype=np.uint64)
        within = np.uint64(2) * paired_squares - self.pair_squares
        return between / (2 * pairs * (pairs - 1)), within / (2 * pairs)


def _spread_per_frame(variance: Float32[np.ndarray, "f h w"]) -> tuple[float, ...]:
    return tuple(np.sqrt(variance.mean(axis=(1, 2), dtype=np.float64)).tolist())


def _root_mean(squared_levels: Float64[np.ndarray, "f h w 3"]) -> float:
    return float(np.sqrt(squared_levels.mean())) / _WHITE


class Convergence:
    """Watches an ensemble grow and knows the standard error of the mean of each of its prefixes.

    What it says depends on the members alone, not on how many came at a time.
    """

    def __init__(self, plan: NoisePlan) -> None:
        self._plan = plan
        self._statistics: EnsembleStatistics | None = None
        self._errors: list[float | None] = []

    @property
    def count(self) -> int:
        """How many members it has seen."""
        return len(self._errors)

    def extend(self, members: UInt8[np.ndarray, "k f h w 3"]) -> None:
        """Take the members that come next, which costs a few passes over each."""
        for frames in members:
            seen = self._statistics
            self._statistics = seen.add(frames) if seen else EnsembleStatistics.of(frames[None])
            # An odd antithetic member unbalances the mean, so only whole pairs are candidates to stop at.
            is_whole = self._plan is NoisePlan.IID or self._statistics.count % 2 == 0
            self._errors.append(self._statistics.standard_error(self._plan) if is_whole else None)

    def size_within(self, tolerance: float) -> int | None:
        """Return the size of the smallest prefix whose standard error is at most the tolerance; None when none is."""
        sizes = enumerate(self._errors, 1)
        return next((size for size, error in sizes if error is not None and error <= tolerance), None)


def converged_size(members: UInt8[np.ndarray, "k f h w 3"], ensemble: EnsembleSpec) -> int | None:
    """Return the smallest size that meets the ensemble's tolerance: from 4 on and even, for iid from 2 on.

    None without a tolerance, and when no size up to the ensemble's meets it. Who asks again as members come
    keeps a `Convergence`.
    """
    if ensemble.tolerance is None:
        return None
    convergence = Convergence(ensemble.noise)
    convergence.extend(members[: ensemble.size])
    return convergence.size_within(ensemble.tolerance)


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
    """Make the prediction of members 0..k-1, with what their differences say."""
    if len(members) == 1:
        return _summarise_one(members, frame_indices, sampling, ensemble)
    statistics = EnsembleStatistics.of(members)
    variance = statistics.variance(ensemble.noise)
    is_mean = ensemble.reducer is Reducer.MEAN
    return Prediction(
        frame_indices=tuple(frame_indices),
        frames=statistics.mean_frames() if is_mean else reduce_members(members, ensemble),
        members=members,
        variance=variance,
        spread_per_frame=_spread_per_frame(variance),
        sampling=sampling,
        ensemble=ensemble,
        correlation=statistics.correlation(ensemble.noise),
        effective_members=statistics.effective_members(ensemble.noise),
        standard_error=statistics.standard_error(ensemble.noise),
    )


def _summarise_one(
    members: UInt8[np.ndarray, "k f h w 3"], frame_indices: Sequence[int], sampling: Sampling, ensemble: EnsembleSpec
) -> Prediction:
    """Say of a single member what the statistics would say, without adding it up."""
    variance = np.zeros(members.shape[1:-1], np.float32)
    return Prediction(
        frame_indices=tuple(frame_indices),
        frames=members[0],
        members=members,
        variance=variance,
        spread_per_frame=_spread_per_frame(variance),
        sampling=sampling,
        ensemble=ensemble,
        effective_members=1.0 if ensemble.noise is NoisePlan.IID else None,
    )
