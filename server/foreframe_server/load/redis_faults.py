"""A shared cache that dies or hangs in the middle of a steady load, and what askers notice of it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from foreframe_server.load.bench import Bench
from foreframe_server.load.findings import Bar, Findings, Part, above
from foreframe_server.load.summary import latency_p99, within
from foreframe_server.load.traces import Ask, constant

_FIRST_S = 1.0
_FIRST_MS = 25.0
_LATER_MS = 2.0


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """The load is a share of the measured capacity; the fault comes after `before_s`."""

    ask: Ask
    load: float = 0.4
    before_s: float = 10.0
    after_s: float = 10.0
    askers: int = 2
    capacity_s: float = 4.0


async def measure_redis_fault(bench: Bench, plan: FaultPlan, name: str, strike: Callable[[], None]) -> Findings:
    """Offer a constant rate and let the fault strike. name: of the fault."""
    capacity_hz = await bench.measure_rate(plan.ask, askers=plan.askers, duration_s=plan.capacity_s)
    rate_hz = plan.load * capacity_hz
    bench.note(f"{rate_hz:.1f} a second; Redis is {name} after {plan.before_s:g} s")
    trace = constant(rate_hz, plan.before_s + plan.after_s, plan.ask)
    async with asyncio.TaskGroup() as group:
        played = group.create_task(bench.play(trace))
        group.create_task(_strike_later(strike, plan.before_s))
    records = played.result()
    first_s, end_s = plan.before_s + _FIRST_S, plan.before_s + plan.after_s
    before = within(records, 0, plan.before_s)
    first, later = within(records, plan.before_s, first_s), within(records, first_s, end_s)
    usual_ms = latency_p99(before)
    parts = [
        Part.of(f"{name}: before", before, plan.before_s),
        Part.of(f"{name}: first second", first, _FIRST_S),
        Part.of(f"{name}: later", later, end_s - first_s),
    ]
    failed = sum(not record.reply.is_ok for record in records)
    bars = [
        Bar(f"{name}: failed requests", failed, at_most=0),
        Bar(f"{name}: p99 added in the first second, ms", above(latency_p99(first), usual_ms), at_most=_FIRST_MS),
        Bar(f"{name}: p99 added later, ms", above(latency_p99(later), usual_ms), at_most=_LATER_MS),
    ]
    facts = {f"{name}_capacity_per_s": round(capacity_hz, 3), f"{name}_rate_per_s": round(rate_hz, 3)}
    return Findings("redis-fault", parts, bars, facts, bench.schedule)


async def _strike_later(strike: Callable[[], None], seconds: float) -> None:
    await asyncio.sleep(seconds)
    strike()
