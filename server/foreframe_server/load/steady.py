"""A steady open load, evenly spaced or at random; at random it stands beside the best that any queue could do."""

from collections.abc import Sequence
from dataclasses import dataclass

from foreframe_server.load.bench import Bench
from foreframe_server.load.findings import Bar, Findings, Part, over
from foreframe_server.load.queueing import ideal_sojourns, sojourn_quantile
from foreframe_server.load.records import Record
from foreframe_server.load.summary import latency_p99, percentile
from foreframe_server.load.traces import Ask, constant, poisson

_TAIL = 1.3
_TIMES = 10


@dataclass(frozen=True, slots=True)
class PoissonPlan:
    """The load is a share of the measured capacity, below 1."""

    ask: Ask
    load: float = 0.7
    duration_s: float = 60.0
    slo_ms: float | None = None
    askers: int = 4
    capacity_s: float = 8.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ConstantPlan:
    """So many a second."""

    ask: Ask
    rate_hz: float
    duration_s: float = 30.0
    slo_ms: float | None = None


async def measure_poisson(bench: Bench, plan: PoissonPlan) -> Findings:
    """Measure the capacity, then offer a share of it at random times and compare the tail with M/D/1.

    The ideal's service time is the mean time between answers of a server that is never idle.
    """
    alone_s = await bench.measure_alone(plan.ask, _TIMES)
    capacity_hz = await bench.measure_rate(plan.ask, askers=plan.askers, duration_s=plan.capacity_s)
    rate_hz = plan.load * capacity_hz
    bench.note(f"capacity {capacity_hz:.2f} a second; {rate_hz:.2f} for {plan.duration_s:g} s")
    records = await bench.play(poisson(rate_hz, plan.duration_s, plan.ask, seed=plan.seed))
    part = Part.of(f"poisson, {plan.load:.0%}", records, plan.duration_s, plan.slo_ms)
    ideal_ms, own_ideal_ms = _ideals(plan, records, 1 / capacity_hz)
    p99_ms = latency_p99(records)
    facts = {
        "alone_ms": round(1000 * alone_s, 3),
        "capacity_per_s": round(capacity_hz, 3),
        "service_ms": round(1000 / capacity_hz, 3),
        "ideal_p99_ms": round(ideal_ms, 3),
        "ideal_p99_of_these_arrivals_ms": round(own_ideal_ms, 3),
        "p99_over_ideal_of_these_arrivals": over(p99_ms, own_ideal_ms),
    }
    bars = [Bar("p99 / ideal M/D/1 p99", over(p99_ms, ideal_ms), at_most=_TAIL)]
    return Findings("poisson", [part], bars, facts, bench.schedule)


async def measure_constant(bench: Bench, plan: ConstantPlan) -> Findings:
    """Offer a rate for a time."""
    await bench.warm_up(plan.ask)
    bench.note(f"{plan.rate_hz:g} a second for {plan.duration_s:g} s")
    records = await bench.play(constant(plan.rate_hz, plan.duration_s, plan.ask))
    part = Part.of(f"constant, {plan.rate_hz:g}/s", records, plan.duration_s, plan.slo_ms)
    return Findings("constant", [part], schedule=bench.schedule)


def _ideals(plan: PoissonPlan, records: Sequence[Record], service_s: float) -> tuple[float, float]:
    """Return the 99th percentile in ms of M/D/1, and of one server that gets these very arrivals."""
    own = sorted(ideal_sojourns([record.arrival.due_s for record in records], service_s))
    return 1000 * sojourn_quantile(0.99, service_s, plan.load), 1000 * percentile(own, 0.99)
