"""What a bench found: parts of a run counted up, and measures beside what they are to reach."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median

from foreframe_server.load.records import UNREACHABLE, Record
from foreframe_server.load.summary import Schedule, Second, Summary, by_second, summarise
from foreframe_server.plots import Chart, Curve
from foreframe_server.reports.report import Report
from foreframe_server.reports.samples import Better, Samples, are_comparable


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
    """What a preset found. facts: what else was measured, by name. wrong: why what came back does not count."""

    preset: str
    parts: Sequence[Part] = ()
    bars: Sequence[Bar] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    schedule: Schedule | None = None
    samples: Sequence[Samples] = ()
    wrong: Sequence[str] = ()

    @property
    def faults(self) -> list[str]:
        """Say why the run says nothing about the server: late questions, no answers, or wrong ones."""
        return [*self._late(), *self._unreachable(), *self._unanswered(), *self.wrong]

    def report(self, plan: Mapping[str, object], seeds: Sequence[int] = ()) -> Report:
        """Return all of it as a report of what was asked for."""
        record = {
            "bars": [{**asdict(bar), "is_met": bar.is_met} for bar in self.bars],
            "facts": dict(self.facts),
            "schedule": None if self.schedule is None else asdict(self.schedule),
            "parts": [asdict(part) for part in self.parts],
        }
        # Where nothing is paced, a second is as long a piece of the run as the server makes it.
        courses = [] if self.schedule is None else _course_samples(self.parts)
        samples = [*self.samples, *_bar_samples(self.bars), *courses]
        charts = [_course_chart(self.parts)] if self.parts else []
        return Report(f"bench http {self.preset}", plan, record, samples, charts, seeds, self.faults)

    def _late(self) -> Iterator[str]:
        if self.schedule is not None and not self.schedule.is_on_schedule:
            yield f"off schedule: questions went out {self.schedule.lag_p99_ms:.1f} ms late (p99)"

    def _unreachable(self) -> Iterator[str]:
        for part in self.parts:
            if lost := part.summary.codes.get(UNREACHABLE):
                yield f"the server was unreachable for {lost} of {part.summary.sent} questions ({part.name})"

    def _unanswered(self) -> Iterator[str]:
        sent = sum(part.summary.sent for part in self.parts)
        if self.parts and not any(part.summary.ok for part in self.parts):
            codes = ", ".join(sorted({code for part in self.parts for code in part.summary.codes}))
            yield f"none of {sent} questions were answered: {codes}"


def _bar_samples(bars: Sequence[Bar]) -> Iterator[Samples]:
    """Take the rounds of what is better low, or better high, and not of what is to stay within limits."""
    for bar in bars:
        known = [value for value in bar.rounds if value is not None]
        if len(known) == len(bar.rounds) and are_comparable(known) and (bar.at_most is None) != (bar.at_least is None):
            better: Better = "higher" if bar.at_most is None else "lower"
            yield Samples(bar.measure, "", better, tuple(known), statistic="median")


def _course_samples(parts: Sequence[Part]) -> Iterator[Samples]:
    """Take every second's median latency; where the plan has the rate, a second has the same questions in every run."""
    for part in parts:
        known = [second for second in part.seconds if second.p50_ms is not None]
        if known:
            values = tuple(second.p50_ms or 0.0 for second in known)
            name = f"{part.name}: each second's median latency"
            yield Samples(name, "ms", "lower", values, tuple(second.second for second in known))


def _course_chart(parts: Sequence[Part]) -> Chart:
    return {
        "title": "The course of the run",
        "note": "each second's median latency from when its questions were due",
        "x_label": "second",
        "y_label": "ms",
        "series": [_course(part) for part in parts],
    }


def _course(part: Part) -> Curve:
    known = [second for second in part.seconds if second.p50_ms is not None]
    return {
        "label": part.name,
        "x": [second.second for second in known],
        "y": [second.p50_ms or 0.0 for second in known],
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
        samples=[samples for each in several for samples in each.samples],
        wrong=[fault for each in several for fault in each.wrong],
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
        wrong=[fault for each in several for fault in each.faults],
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
