"""Robots at a control rate, more and more of them: whether members fall, or answers come late."""

from dataclasses import dataclass

from foreframe_server.load.bench import Bench
from foreframe_server.load.findings import Bar, Findings, Part
from foreframe_server.load.traces import Ask, robots

_MISSES = 0.01


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """How many robots ask how often for how long. Without a deadline in `ask` it is one period."""

    ask: Ask
    counts: tuple[int, ...] = (1, 2, 4, 8)
    rate_hz: float = 2.0
    duration_s: float = 20.0
    seed: int = 0


async def measure_fleet(bench: Bench, plan: FleetPlan) -> Findings:
    """Let each number of robots ask for the same time, one number after another."""
    await bench.warm_up(plan.ask)
    parts = []
    for count in plan.counts:
        bench.note(f"{count} robot{'s' * (count > 1)} at {plan.rate_hz:g} Hz for {plan.duration_s:g} s")
        records = await bench.play(robots(count, plan.rate_hz, plan.duration_s, plan.ask, seed=plan.seed))
        parts.append(Part.of(f"{count} robot{'s' * (count > 1)}", records, plan.duration_s))
    bars = [Bar(f"deadline misses, {part.name}", part.summary.deadline_miss_ratio, at_most=_MISSES) for part in parts]
    facts = {f"members, {part.name}": part.summary.members for part in parts}
    late = {f"answers after their deadline, {part.name}, p99 ms": _late_p99(part) for part in parts}
    return Findings("robots", parts, bars, {**facts, **late}, bench.schedule)


def _late_p99(part: Part) -> float | None:
    return None if part.summary.late_ms is None else part.summary.late_ms.p99
