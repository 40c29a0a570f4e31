"""The scenarios of MLPerf Inference: one question after another, at random times, all at once; answers are checked.

Every question is asked with the cache in use and past it, in laps that take turns: where the cache helps, the run is
marked as cached, as MLPerf's audit of output caching does (its TEST04).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Literal, TypeAlias

import numpy as np

from foreframe_server.intervals import Interval, Resamples
from foreframe_server.load.bench import Bench
from foreframe_server.load.exam import MIN_PARITY_DB, Exam, Grades, Sheet, exam_ask
from foreframe_server.load.findings import Bar, Findings, Part
from foreframe_server.load.generator import Prepare
from foreframe_server.load.records import Record
from foreframe_server.load.traces import Arrival, Ask, at_once, poisson
from foreframe_server.reports.samples import Better, Samples, Statistic

Scenario: TypeAlias = Literal["single-stream", "server", "offline"]

_LAPS = 4
_LOAD = 0.5
_ASKERS, _CAPACITY_S = 4, 4.0
_QUALITY = 0.99
"""What MLPerf asks of its tasks: that share of the reference's quality."""
_HELP = 1.1
"""By how much past the cache may be slower, beyond noise, before a run counts as cached."""


@dataclass(frozen=True, slots=True)
class ExamPlan:
    """How many clips are asked about, and the PSNR against the reference's answer below which one is wrong."""

    clips: int = 8
    min_parity_db: float = MIN_PARITY_DB


@dataclass(frozen=True, slots=True)
class ScenarioPlan:
    """What is asked how. questions: of each side. distinct: how many are different, None for all.

    rate_hz: of the server scenario, None for half of what the server can do; slo_ms: what its p99 is to reach.
    max_in_flight: of the offline scenario.
    """

    scenario: Scenario
    ask: Ask
    questions: int
    exam: ExamPlan
    distinct: int | None = None
    rate_hz: float | None = None
    slo_ms: float | None = None
    max_in_flight: int = 16
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Lap:
    """The same questions with the cache in use and past it."""

    used: Sequence[Record]
    bypassed: Sequence[Record]


@dataclass(frozen=True, slots=True)
class Audit:
    """What the cache did. slowdown: of the same questions past it, over with it in use. cached_members: answered so."""

    slowdown: Interval
    cached_members: int

    @property
    def is_cached(self) -> bool:
        """Whether the numbers are a cache's, at least in part."""
        return self.cached_members > 0 or self.slowdown.low > _HELP


async def measure_scenario(bench: Bench, plan: ScenarioPlan, sheets: Sequence[Sheet]) -> Findings:
    """Play a scenario, past the cache and with it, and then its exam. Raises UnfitServer."""
    await bench.warm_up(plan.ask)
    rate_hz = await _choose_rate(bench, plan)
    laps = []
    for number, trace in enumerate(_lay_out(bench, plan, rate_hz)):
        bench.note(f"lap {number + 1} of {_LAPS}: {len(trace)} questions, with the cache and past it")
        laps.append(await _run_lap(bench, plan, trace, is_used_first=number % 2 == 0))
    bench.note(f"{len(sheets)} clips, answers compared with the reference's")
    exam = Exam(sheets, bench.door)
    trace = _sequence(plan, rate_hz, exam_ask(plan.ask), list(range(len(exam))))
    await _run(bench, plan, trace, exam.prepare)
    return _findings(bench, plan, laps, exam.grade(plan.exam.min_parity_db), rate_hz)


async def _choose_rate(bench: Bench, plan: ScenarioPlan) -> float:
    """Return the server scenario's rate; the others have none to keep."""
    if plan.scenario != "server" or plan.rate_hz is not None:
        return plan.rate_hz or 1.0
    return _LOAD * await bench.measure_rate(plan.ask, askers=_ASKERS, duration_s=_CAPACITY_S)


def _lay_out(bench: Bench, plan: ScenarioPlan, rate_hz: float) -> list[list[Arrival]]:
    """Cut the questions into laps; with few distinct ones they come again and again."""
    contents = bench.new_contents(min(plan.distinct or plan.questions, plan.questions))
    asked = [contents[place % len(contents)] for place in range(plan.questions)]
    cuts = np.array_split(np.array(asked), _LAPS)
    return [_sequence(plan, rate_hz, plan.ask, cut.tolist(), lap) for lap, cut in enumerate(cuts)]


def _sequence(plan: ScenarioPlan, rate_hz: float, ask: Ask, contents: Sequence[int], lap: int = 0) -> list[Arrival]:
    """Put questions where the scenario has them; what is not paced is due at second 0."""
    trace = poisson(rate_hz, len(contents) / rate_hz, ask, seed=plan.seed + lap)
    trace = [replace(arrival, content=content) for arrival, content in zip(trace, contents, strict=True)]
    return trace if plan.scenario == "server" else at_once(trace)


async def _run_lap(bench: Bench, plan: ScenarioPlan, trace: Sequence[Arrival], *, is_used_first: bool) -> _Lap:
    past = [replace(arrival, ask=replace(arrival.ask, cache="bypass")) for arrival in trace]
    if is_used_first:
        used = await _run(bench, plan, trace, bench.door.prepare)
        return _Lap(used, await _run(bench, plan, past, bench.door.prepare))
    bypassed = await _run(bench, plan, past, bench.door.prepare)
    return _Lap(await _run(bench, plan, trace, bench.door.prepare), bypassed)


async def _run(bench: Bench, plan: ScenarioPlan, trace: Sequence[Arrival], prepare: Prepare) -> list[Record]:
    if plan.scenario == "server":
        return await bench.replay(trace, prepare)
    if plan.scenario == "offline":
        return await bench.replay(trace, prepare, max_in_flight=plan.max_in_flight, is_paced=False)
    records: list[Record] = []
    start_s = 0.0
    for arrival in trace:
        (record,) = await bench.replay([arrival], prepare, is_paced=False)
        records.append(_shift(record, start_s))
        start_s = records[-1].done_s
    return records


def _shift(record: Record, seconds: float) -> Record:
    """Move a record to where it lies in a longer run; its latency stays."""
    arrival = replace(record.arrival, due_s=record.arrival.due_s + seconds)
    return replace(record, arrival=arrival, sent_s=record.sent_s + seconds, done_s=record.done_s + seconds)


def _findings(bench: Bench, plan: ScenarioPlan, laps: Sequence[_Lap], grades: Grades, rate_hz: float) -> Findings:
    audit = audit_laps(plan.scenario, laps)
    parts = [_join("cache in use", [lap.used for lap in laps], plan.slo_ms)]
    parts.append(_join("past the cache", [lap.bypassed for lap in laps], plan.slo_ms))
    facts: dict[str, object] = {
        "is_cached": audit.is_cached,
        "past_the_cache_over_in_use": asdict(audit.slowdown),
        "members_from_the_cache": audit.cached_members,
        "questions_per_s": round(rate_hz, 4) if plan.scenario == "server" else None,
        "exam": grades.facts(),
    }
    bars = [
        *_target(plan, parts[0]),
        Bar("quality over the reference's", grades.quality, at_least=_QUALITY),
        Bar("past the cache over in use, at least", audit.slowdown.low, at_most=_HELP),
        Bar("members from the cache", audit.cached_members, at_most=0),
    ]
    samples = _samples(plan, laps, parts[0])
    return Findings(plan.scenario, parts, bars, facts, bench.schedule, samples, [*_failed(parts), *grades.wrong])


def audit_laps(scenario: Scenario, laps: Sequence[_Lap]) -> Audit:
    """Compare what the same questions took; offline that is the whole lap's time."""
    take = _elapsed_s if scenario == "offline" else _mean_latency_s
    used, bypassed = (np.array([take(each) for each in side]) for side in _sides(laps))
    cached = sum(record.reply.from_cache for record in (record for lap in laps for record in lap.used))
    return Audit(Resamples.of(range(len(laps))).ratio(bypassed, used), cached)


def _sides(laps: Sequence[_Lap]) -> tuple[list[Sequence[Record]], list[Sequence[Record]]]:
    return [lap.used for lap in laps], [lap.bypassed for lap in laps]


def _mean_latency_s(records: Sequence[Record]) -> float:
    return fmean(record.latency_ms for record in records) / 1000


def _elapsed_s(records: Sequence[Record]) -> float:
    return max(record.done_s for record in records)


def _join(name: str, laps: Sequence[Sequence[Record]], slo_ms: float | None) -> Part:
    """Put the laps of a side behind each other."""
    records: list[Record] = []
    start_s = 0.0
    for lap in laps:
        records += [_shift(record, start_s) for record in lap]
        start_s = max(record.done_s for record in records)
    return Part.of(name, records, start_s, slo_ms)


def _target(plan: ScenarioPlan, part: Part) -> list[Bar]:
    latencies = part.summary.latency_ms
    if plan.scenario != "server" or plan.slo_ms is None:
        return []
    return [Bar("p99, ms", None if latencies is None else latencies.p99, at_most=plan.slo_ms)]


def _failed(parts: Sequence[Part]) -> list[str]:
    """Say what was not answered: it makes the rest look faster than it is."""
    return [
        f"{part.summary.sent - part.summary.ok} of {part.summary.sent} questions were not answered ({part.name}): "
        f"{', '.join(code for code in part.summary.codes if code != 'ok')}"
        for part in parts
        if part.summary.ok < part.summary.sent
    ]


def _samples(plan: ScenarioPlan, laps: Sequence[_Lap], part: Part) -> list[Samples]:
    """Latency counts by the percentile that MLPerf has for the scenario, throughput by laps."""
    if plan.scenario == "offline":
        return [_lap_samples("answers a second", "higher", [len(lap.used) / _elapsed_s(lap.used) for lap in laps])]
    statistic: Statistic = "p90" if plan.scenario == "single-stream" else "p99"
    latencies = [(lap, record.latency_ms) for lap, each in enumerate(laps) for record in each.used]
    values, blocks = tuple(latency for _, latency in latencies), tuple(lap for lap, _ in latencies)
    if plan.scenario == "single-stream":  # one at a time no question knows of another
        blocks = ()
    return [Samples(f"latency, {part.name}", "ms", "lower", values, blocks, statistic)]


def _lap_samples(name: str, better: Better, values: Sequence[float]) -> Samples:
    return Samples(name, "1/s", better, tuple(values))
