"""What a bench found: parts of a run counted up, and measures beside what they are to reach."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median

from foreframe_server.load.records import Record
from foreframe_server.load.summary import Schedule, Second, Summary, by_second, summarise


@dataclass(frozen=True, slots=True)
class Bar:
    """A measure and what it is to reach. value: None when there was nothing to measure, which does not reach it.

    rounds: the values of every round, where the value is the median of several.
    """

    measure: str
    value: float | None
    at_most: float | None = None
    at_least: float | None = None
    rounds: tuple[float | None, ...] = ()

    @property
    def is_met(self) -> bool:
        """Whether the value lies within the limits."""
        if self.value is None:
            return False
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )

    @property
    def limit(self) -> str:
        """The limits in signs."""
        limits = (("≤", self.at_most), ("≥", self.at_least))
        return ", ".join(f"{sign} {value:g}" for sign, value in limits if value is not None)


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a run."""

    name: str
    duration_s: float
    summary: Summary
    seconds: Sequence[Second]

    @classmethod
    def of(cls, name: str, records: Sequence[Record], duration_s: float, slo_ms: float | None = None) -> "Part":
        """Count up the records of a part that lasted so long."""
        return cls(name, round(duration_s, 3), summarise(records, duration_s, slo_ms), by_second(records, slo_ms))


@dataclass(frozen=True, slots=True)
class Findings:
    """What a preset found. facts: what else was measured, by name."""

    preset: str
    parts: Sequence[Part] = ()
    bars: Sequence[Bar] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    schedule: Schedule | None = None

    def record(self) -> dict[str, object]:
        """Return all of it as one JSON object."""
        return {
            "experiment": f"bench http {self.preset}",
            "bars": [{**asdict(bar), "is_met": bar.is_met} for bar in self.bars],
            "facts": dict(self.facts),
            "schedule": None if self.schedule is None else asdict(self.schedule),
            "parts": [asdict(part) for part in self.parts],
        }


def join_findings(preset: str, several: Sequence[Findings]) -> Findings:
    """Put findings of separate servers together; the worst schedule stands for all."""
    schedules = [each.schedule for each in several if each.schedule is not None]
    return Findings(
        preset,
        parts=[part for each in several for part in each.parts],
        bars=[bar for each in several for bar in each.bars],
        facts=dict(_pairs(several)),
        schedule=max(schedules, key=lambda schedule: schedule.lag_p99_ms, default=None),
    )


def typical_findings(several: Sequence[Findings]) -> Findings:
    """Make rounds of one preset into one: every bar is the median of its rounds, the rest is the middle round's.

    The middle round is that of the median first bar; the worst schedule stands for all.
    """
    if len(several) == 1:
        return several[0]
    ranked = sorted(several, key=lambda each: each.bars[0].value or 0.0)
    schedules = [each.schedule for each in several if each.schedule is not None]
    return replace(
        ranked[(len(ranked) - 1) // 2],
        bars=[_median_bar(bars) for bars in zip(*(each.bars for each in several), strict=True)],
        schedule=max(schedules, key=lambda schedule: schedule.lag_p99_ms, default=None),
    )


def over(value: float | None, other: float | None) -> float | None:
    """Return a ratio to four digits, None where a side is missing or the lower one 0."""
    return None if value is None or not other else round(value / other, 4)


def above(value: float | None, other: float | None) -> float | None:
    """Return a difference to three digits, None where a side is missing."""
    return None if value is None or other is None else round(value - other, 3)


def _median_bar(bars: Sequence[Bar]) -> Bar:
    values = [bar.value for bar in bars]
    known = [value for value in values if value is not None]
    return replace(bars[0], value=median(known) if len(known) == len(values) else None, rounds=tuple(values))


def _pairs(several: Sequence[Findings]) -> Iterator[tuple[str, object]]:
    for each in several:
        yield from each.facts.items()
