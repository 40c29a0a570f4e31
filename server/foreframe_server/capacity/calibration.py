"""Whether the simulation tells what a real server does: the same robots ask both, and the answers are compared."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foreframe_engines import Contract
from foreframe_server.capacity.costs import Costs, CostsError, costs_from_metrics
from foreframe_server.capacity.simulation import Rules, simulate
from foreframe_server.load.bench import Bench
from foreframe_server.load.door import UnfitServer
from foreframe_server.load.findings import Bar, Findings, Part, above, over
from foreframe_server.load.fleet import FleetPlan
from foreframe_server.load.traces import Arrival, robots

_TOLERANCE = 0.15
_MISSES = 0.02


@dataclass(frozen=True, slots=True)
class _Pair:
    measured: Part
    simulated: Part


async def measure_foresight(bench: Bench, plan: FleetPlan, contract: Contract, rules: Rules) -> Findings:
    """Let robots ask a server, learn from its metrics what work takes, and let the same robots ask the simulation.

    The costs are a fact of the findings. Raises UnfitServer when the server does not say what work takes.
    """
    await bench.warm_up(plan.ask)
    traces = {count: robots(count, plan.rate_hz, plan.duration_s, plan.ask, seed=plan.seed) for count in plan.counts}
    measured = {}
    for count, trace in traces.items():
        bench.note(f"{count} robot{'s' * (count > 1)} at {plan.rate_hz:g} Hz for {plan.duration_s:g} s")
        measured[count] = Part.of(f"{count} measured", await bench.play(trace), plan.duration_s)
    costs = await _read_costs(bench)
    simulated = await asyncio.to_thread(_simulate_all, traces, plan, contract, costs, rules)
    pairs = [_Pair(measured[count], simulated[count]) for count in traces]
    parts = [part for pair in pairs for part in (pair.measured, pair.simulated)]
    return Findings("foresight", parts, _bars(pairs), {"costs": costs.to_json()}, bench.schedule)


async def _read_costs(bench: Bench) -> Costs:
    try:
        return costs_from_metrics(await bench.door.read_metrics())
    except CostsError as error:
        raise UnfitServer(str(error)) from error


def _simulate_all(
    traces: Mapping[int, Sequence[Arrival]], plan: FleetPlan, contract: Contract, costs: Costs, rules: Rules
) -> dict[int, Part]:
    played = {
        count: simulate(trace, contract, costs, rules, num_devices=1, seed=plan.seed) for count, trace in traces.items()
    }
    return {count: Part.of(f"{count} simulated", each.records, plan.duration_s) for count, each in played.items()}


def _bars(pairs: list[_Pair]) -> list[Bar]:
    bars = []
    for pair in pairs:
        name, ours, theirs = pair.measured.name.split()[0], pair.simulated.summary, pair.measured.summary
        bars.append(_near(f"{name}: members, simulated / measured", over(ours.members, theirs.members)))
        if ours.latency_ms is not None and theirs.latency_ms is not None:
            ratio = over(ours.latency_ms.p50, theirs.latency_ms.p50)
            bars.append(_near(f"{name}: p50, simulated / measured", ratio))
        misses = above(ours.deadline_miss_ratio, theirs.deadline_miss_ratio)
        bars.append(Bar(f"{name}: misses, simulated - measured", misses, at_least=-_MISSES, at_most=_MISSES))
    return bars


def _near(measure: str, ratio: float | None) -> Bar:
    return Bar(measure, ratio, at_least=1 - _TOLERANCE, at_most=1 + _TOLERANCE)
