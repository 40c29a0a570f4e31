"""Records counted up: percentiles, goodput, misses, the course by second, and whether the asker kept its own time."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from foreframe_server.load.records import SUPERSEDED, Record

_DIGITS = 3


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Milliseconds. Each is one that was measured, never one between two."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Percentiles | None":
        """Return the percentiles of values, None without any."""
        ordered = sorted(values)
        if not ordered:
            return None
        shares = (percentile(ordered, share) for share in (0.5, 0.9, 0.95, 0.99, 1.0))
        return cls(_round(fmean(ordered)), *map(_round, shares))


@dataclass(frozen=True, slots=True)
class Summary:
    """What a part of a run brought.

    latency_ms: of answers, from when they were due. shed_ms: of refusals for lack of room. late_ms: how long after
    their deadline answers came, 0 in time. overhead_ms: latency beyond the server's own time. superseded: by a newer
    one of their stream. deadline_misses: answers late or none, of those that had a deadline. goodput_per_s: answers
    within the objective `slo_ms`. members, rows_per_step, degraded_ratio: of answers.
    """

    sent: int
    ok: int
    shed: int
    superseded: int
    failed: int
    latency_ms: Percentiles | None
    shed_ms: Percentiles | None
    late_ms: Percentiles | None
    overhead_ms: Percentiles | None
    with_deadline: int
    deadline_misses: int
    deadline_miss_ratio: float
    says_late: int
    slo_ms: float | None
    throughput_per_s: float
    goodput_per_s: float
    members: float | None
    rows_per_step: float | None
    degraded_ratio: float | None
    codes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Second:
    """One second of a run, by when questions were due."""

    second: int
    sent: int
    ok: int
    shed: int
    good: int
    deadline_misses: int
    p50_ms: float | None
    max_ms: float | None
    members: float | None


@dataclass(frozen=True, slots=True)
class Schedule:
    """How late the asker itself was. A run that was not on schedule says nothing about the server."""

    sent: int
    lag_p50_ms: float
    lag_p99_ms: float
    lag_max_ms: float
    max_lag_ms: float
    is_on_schedule: bool


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest of rising values that at least a share of them does not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summarise(records: Sequence[Record], duration_s: float, slo_ms: float | None = None) -> Summary:
    """Count up records of a part that lasted so long; rates are by its seconds."""
    answers = [record for record in records if record.reply.is_ok]
    shed = [record for record in records if record.reply.is_shed]
    superseded = sum(record.reply.code == SUPERSEDED for record in records)
    timed = [record for record in records if record.arrival.ask.deadline_ms is not None]
    misses = sum(record.is_miss for record in timed)
    stepped = [record.reply.rows_per_step for record in answers if record.reply.rows_per_step > 0]
    return Summary(
        sent=len(records),
        ok=len(answers),
        shed=len(shed),
        superseded=superseded,
        failed=len(records) - len(answers) - len(shed) - superseded,
        latency_ms=Percentiles.of(record.latency_ms for record in answers),
        shed_ms=Percentiles.of(record.latency_ms for record in shed),
        late_ms=Percentiles.of(record.late_ms for record in timed if record.reply.is_ok),
        overhead_ms=Percentiles.of(record.latency_ms - record.reply.server_ms for record in answers),
        with_deadline=len(timed),
        deadline_misses=misses,
        deadline_miss_ratio=_round(misses / len(timed)) if timed else 0.0,
        says_late=sum(record.reply.says_late for record in answers),
        slo_ms=slo_ms,
        throughput_per_s=_round(len(answers) / duration_s),
        goodput_per_s=_round(sum(record.is_good(slo_ms) for record in records) / duration_s),
        members=_mean(answers, lambda record: record.reply.members),
        rows_per_step=_round(fmean(stepped)) if stepped else None,
        degraded_ratio=_mean(answers, lambda record: record.reply.is_degraded),
        codes=_count_codes(records),
    )


def by_second(records: Iterable[Record], slo_ms: float | None = None) -> list[Second]:
    """Count up every second in which a question was due."""
    seconds: dict[int, list[Record]] = {}
    for record in records:
        seconds.setdefault(int(record.arrival.due_s), []).append(record)
    return [_second(number, seconds[number], slo_ms) for number in sorted(seconds)]


def within(records: Iterable[Record], start_s: float, end_s: float) -> list[Record]:
    """Return the records that were due from `start_s` and before `end_s`."""
    return [record for record in records if start_s <= record.arrival.due_s < end_s]


def check_schedule(records: Iterable[Record], max_lag_ms: float) -> Schedule:
    """Say how late questions went out, and whether 99 % of them went out within `max_lag_ms`. Not for no records."""
    lags = sorted(record.lag_ms for record in records)
    return Schedule(
        sent=len(lags),
        lag_p50_ms=_round(percentile(lags, 0.5)),
        lag_p99_ms=_round(percentile(lags, 0.99)),
        lag_max_ms=_round(lags[-1]),
        max_lag_ms=max_lag_ms,
        is_on_schedule=percentile(lags, 0.99) <= max_lag_ms,
    )


def latency_p99(records: Iterable[Record]) -> float | None:
    """Return the 99th percentile of answers' latencies in ms, None without answers."""
    latencies = Percentiles.of(record.latency_ms for record in records if record.reply.is_ok)
    return None if latencies is None else latencies.p99


def _second(number: int, records: Sequence[Record], slo_ms: float | None) -> Second:
    answers = [record for record in records if record.reply.is_ok]
    latencies = Percentiles.of(record.latency_ms for record in answers)
    return Second(
        second=number,
        sent=len(records),
        ok=len(answers),
        shed=sum(record.reply.is_shed for record in records),
        good=sum(record.is_good(slo_ms) for record in records),
        deadline_misses=sum(record.is_miss for record in records),
        p50_ms=None if latencies is None else latencies.p50,
        max_ms=None if latencies is None else latencies.max,
        members=_mean(answers, lambda record: record.reply.members),
    )


def _count_codes(records: Iterable[Record]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in records:
        counts[record.reply.code] = counts.get(record.reply.code, 0) + 1
    return dict(sorted(counts.items()))


def _mean(records: Sequence[Record], value: Callable[[Record], float]) -> float | None:
    return _round(fmean(map(value, records))) if records else None


def _round(value: float) -> float:
    return round(value, _DIGITS)
