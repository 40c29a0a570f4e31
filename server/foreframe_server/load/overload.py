"""Much more than a server can do for a while, then normal load: how it sheds, works on and recovers."""

from collections.abc import Sequence
from dataclasses import dataclass

from foreframe_server.load.bench import Bench
from foreframe_server.load.findings import Bar, Findings, Part, above, over
from foreframe_server.load.records import Record
from foreframe_server.load.summary import latency_p99, within
from foreframe_server.load.traces import Ask, in_turn, poisson

_SHED_MS = 20.0
_GOODPUT = 0.9
_RECOVERY_S = 2.0
_NORMAL = 1.25


@dataclass(frozen=True, slots=True)
class OverloadPlan:
    """Loads are shares of the measured capacity. The objective is the deadline of `ask`."""

    ask: Ask
    factor: float = 5.0
    overload_s: float = 20.0
    normal_load: float = 0.5
    normal_s: float = 12.0
    askers: int = 4
    capacity_s: float = 6.0
    seed: int = 0


async def measure_overload(bench: Bench, plan: OverloadPlan) -> Findings:
    """Measure the capacity, then offer normal load, overload and normal load without a pause."""
    capacity_hz = await bench.measure_rate(plan.ask, askers=plan.askers, duration_s=plan.capacity_s)
    bench.note(f"capacity {capacity_hz:.1f} a second; {plan.factor:g} times that for {plan.overload_s:g} s")
    normal_hz, overload_hz = plan.normal_load * capacity_hz, plan.factor * capacity_hz
    trace = in_turn(
        [
            (poisson(normal_hz, plan.normal_s, plan.ask, seed=plan.seed), plan.normal_s),
            (poisson(overload_hz, plan.overload_s, plan.ask, seed=plan.seed + 1), plan.overload_s),
            (poisson(normal_hz, plan.normal_s, plan.ask, seed=plan.seed + 2), plan.normal_s),
        ]
    )
    records = await bench.play(trace)
    return _judge(bench, plan, records, capacity_hz)


def _judge(bench: Bench, plan: OverloadPlan, records: Sequence[Record], capacity_hz: float) -> Findings:
    slo_ms = plan.ask.deadline_ms
    start_s = plan.normal_s
    end_s = start_s + plan.overload_s
    before = within(records, 0, start_s)
    after = within(records, end_s, end_s + plan.normal_s)
    parts = [
        Part.of("before", before, plan.normal_s, slo_ms),
        Part.of("overload", within(records, start_s, end_s), plan.overload_s, slo_ms),
        Part.of("after", after, plan.normal_s, slo_ms),
    ]
    shed = parts[1].summary.shed_ms
    normal_p99 = latency_p99(before)
    later_p99 = latency_p99(within(after, end_s + _RECOVERY_S, end_s + plan.normal_s))
    bars = [
        Bar("shed replies, p99 ms", None if shed is None else shed.p99, at_most=_SHED_MS),
        Bar("goodput in overload / capacity", over(parts[1].summary.goodput_per_s, capacity_hz), at_least=_GOODPUT),
        Bar(f"p99 from {_RECOVERY_S:g} s after / p99 before", over(later_p99, normal_p99), at_most=_NORMAL),
    ]
    facts = {
        "capacity_per_s": round(capacity_hz, 3),
        "recovery_s": above(_recovered_s(after, normal_p99), end_s),
    }
    return Findings("overload", parts, bars, facts, bench.schedule)


def _recovered_s(records: Sequence[Record], normal_p99: float | None) -> float | None:
    """When the last question was due that was not answered about as fast as before the overload."""
    if normal_p99 is None or not records:
        return None
    slow = [record for record in records if not record.is_good(_NORMAL * normal_p99)]
    return max((record.arrival.due_s for record in slow), default=records[0].arrival.due_s)
