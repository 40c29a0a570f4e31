"""Two reports of one plan compared: ratios of measures with 95 % bootstrap intervals, paired where they can be."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TypeAlias

import numpy as np
from jaxtyping import Float64

from foreframe_server.intervals import Interval, Resamples, interval_of
from foreframe_server.reports.samples import Better, Samples, Statistic, read_samples

_QUANTILES: Mapping[Statistic, float] = {"median": 0.5, "p90": 0.9, "p99": 0.99}
_MIN_BLOCKS = 3
"""Fewer say nothing about how far a value swings."""

Weights: TypeAlias = Float64[np.ndarray, "r n"]


class Incomparable(ValueError):
    """Two reports say nothing about each other; the message is one line for a person."""


class Verdict(StrEnum):
    """What an interval says. `unknown`: there are too few values, or nothing to divide by."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "same"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Compared:
    """One measure of both reports. ratio: of the second over the first. is_paired: value by value."""

    name: str
    unit: str
    better: Better
    statistic: Statistic
    before: float
    after: float
    ratio: Interval | None
    is_paired: bool
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every measure that both reports have. tolerance: how much worse still counts as the same."""

    experiment: str
    tolerance: float
    measures: tuple[Compared, ...]
    is_same_weights: bool

    @property
    def regressions(self) -> list[Compared]:
        """List what became worse."""
        return [each for each in self.measures if each.verdict is Verdict.WORSE]

    def record(self) -> dict[str, object]:
        """Return it as a JSON object."""
        return asdict(self)


def compare_reports(
    before: Mapping[str, object], after: Mapping[str, object], *, tolerance: float, has_any_machine: bool = False
) -> Comparison:
    """Compare a second report with a first. Raises Incomparable, or UnreadableReport for what is no report."""
    _check_validity(before, "the first report")
    _check_validity(after, "the second report")
    _check_sameness(before, after, has_any_machine=has_any_machine)
    others = {samples.name: samples for samples in read_samples(after)}
    pairs = [(samples, others[samples.name]) for samples in read_samples(before) if samples.name in others]
    measures = tuple(compare_samples(*pair, tolerance) for pair in pairs)
    if all(each.verdict is Verdict.UNKNOWN for each in measures):
        raise Incomparable("the reports have no measure in common with at least three values")
    same = _weights(before) == _weights(after)
    return Comparison(str(before["experiment"]), tolerance, measures, same)


def compare_samples(before: Samples, after: Samples, tolerance: float) -> Compared:
    """Compare one measure's values; those of equal number and blocks are resampled together."""
    is_paired = len(before.values) == len(after.values) and before.blocks == after.blocks
    first, second = _resample(before, 0), _resample(after, 0 if is_paired else 1)
    least = min(len(set(_blocks(before))), len(set(_blocks(after))))
    ratio = first.over(second) if least >= _MIN_BLOCKS else None
    return Compared(
        before.name,
        before.unit,
        before.better,
        before.statistic,
        float(f"{first.value:.6g}"),
        float(f"{second.value:.6g}"),
        ratio,
        is_paired,
        judge(ratio, before.better, tolerance),
    )


def judge(ratio: Interval | None, better: Better, tolerance: float) -> Verdict:
    """Say whether an interval lies wholly on one side of 1, by more than the tolerance."""
    if ratio is None:
        return Verdict.UNKNOWN
    if ratio.low > 1 + tolerance:
        return Verdict.WORSE if better == "lower" else Verdict.BETTER
    if ratio.high < 1 / (1 + tolerance):
        return Verdict.BETTER if better == "lower" else Verdict.WORSE
    return Verdict.SAME


@dataclass(frozen=True, slots=True, eq=False)
class _Resampled:
    value: float
    drawn: Float64[np.ndarray, " r"]

    def over(self, other: "_Resampled") -> Interval | None:
        """Return the other over this, None where there is nothing to divide by."""
        if self.value <= 0 or (self.drawn <= 0).any():
            return None
        return interval_of(other.value / self.value, other.drawn / self.drawn)


def _resample(samples: Samples, seed: int) -> _Resampled:
    resamples = Resamples.of(_blocks(samples), seed)
    values = np.array(samples.values)
    take = _taker(samples.statistic)
    return _Resampled(float(take(resamples.equal[None], values)[0]), take(resamples.weights, values))


def _blocks(samples: Samples) -> list[int]:
    return list(samples.blocks or range(len(samples.values)))


def _taker(statistic: Statistic) -> Callable[[Weights, Float64[np.ndarray, " n"]], Float64[np.ndarray, " r"]]:
    if statistic == "mean":
        return lambda weights, values: weights @ values
    share = _QUANTILES[statistic]
    return lambda weights, values: weighted_quantile(weights, values, share)


def weighted_quantile(weights: Weights, values: Float64[np.ndarray, " n"], share: float) -> Float64[np.ndarray, " r"]:
    """Return, for every row of weights that sum to 1, the smallest value that a share of them does not exceed."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[:, order], axis=1) >= share - 1e-9
    return values[order][reached.argmax(axis=1)]


def _check_validity(report: Mapping[str, object], which: str) -> None:
    if "experiment" not in report or "header" not in report:
        raise Incomparable(f"{which} does not say what it measured and on what")
    if report.get("is_valid") is not True:
        raise Incomparable(f"{which} is of a run that says nothing: {'; '.join(_faults(report))}")


def _faults(report: Mapping[str, object]) -> Iterator[str]:
    faults = report.get("faults")
    yield from map(str, faults if isinstance(faults, list) else ["it does not say why"])


def _check_sameness(before: Mapping[str, object], after: Mapping[str, object], *, has_any_machine: bool) -> None:
    if before["experiment"] != after["experiment"]:
        raise Incomparable(f"the reports are of {before['experiment']} and of {after['experiment']}")
    plans = [_mapping(report, "plan") for report in (before, after)]
    for name in sorted({*plans[0], *plans[1]}):
        if plans[0].get(name) != plans[1].get(name):
            raise Incomparable(f"{name} was {plans[0].get(name)} and {plans[1].get(name)}: two plans")
    machines = [_mapping(_mapping(report, "header"), "machine").get("name") for report in (before, after)]
    if machines[0] != machines[1] and not has_any_machine:
        raise Incomparable(f"the machines are {machines[0]} and {machines[1]}; --any-machine compares all the same")


def _weights(report: Mapping[str, object]) -> object:
    return _mapping(report, "header").get("weights")


def _mapping(record: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = record.get(name)
    if not isinstance(value, Mapping):
        raise Incomparable(f"a report's {name} is missing")
    return value
