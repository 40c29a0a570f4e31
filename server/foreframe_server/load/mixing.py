"""Controllers' small questions among planners' bulk work, against a server that runs one job to its end at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

from foreframe_server.load.bench import Bench
from foreframe_server.load.findings import Bar, Findings, Part, over
from foreframe_server.load.records import Record
from foreframe_server.load.traces import Arrival, Ask, at_once, merge, planners, poisson

CONTROLLER, PLANNER = "controller", "planner"
_GAIN = 5.0
_LOSS = 0.03
_TIMES = 5


@dataclass(frozen=True, slots=True)
class MixPlan:
    """Loads are shares of what the server can do, by the time that each kind takes alone."""

    controller: Ask
    planner: Ask
    controller_load: float = 0.3
    planner_load: float = 0.5
    duration_s: float = 40.0
    drained_planners: int = 3
    seed: int = 0


async def measure_mix(bench: Bench, plan: MixPlan) -> Findings:
    """Play one trace twice, as it is and with one question in flight, first come first served.

    Throughput is compared on the first jobs of the same trace, all given at once and one at a time; of the latter
    counts only the time that the device is needed, as if nothing lay between two jobs.
    """
    controller_s = await bench.measure_alone(plan.controller, _TIMES)
    planner_s = await bench.measure_alone(plan.planner, 2)
    trace = mix_trace(plan, controller_s, planner_s)
    bench.note(f"controller {1000 * controller_s:.0f} ms, planner {planner_s:.1f} s alone; {len(trace)} questions")
    mixed = await bench.play(trace)
    bench.note("the same trace, one job at a time")
    serial = await bench.play(trace, max_in_flight=1)
    drained = at_once(_first_jobs(trace, plan.drained_planners))
    together = await bench.play(drained, is_paced=False)
    in_turn = await bench.play(drained, max_in_flight=1, is_paced=False)
    parts = [
        *(_part("mixed", mixed, plan, group) for group in (CONTROLLER, PLANNER)),
        *(_part("one at a time", serial, plan, group) for group in (CONTROLLER, PLANNER)),
    ]
    together_s, device_s = max(record.done_s for record in together), _device_s(in_turn)
    facts = {
        "controller_alone_ms": round(1000 * controller_s, 3),
        "planner_alone_ms": round(1000 * planner_s, 3),
        "drained_jobs": len(drained),
        "drained_together_s": round(together_s, 4),
        "drained_in_turn_s": round(max(record.done_s for record in in_turn), 4),
        "drained_in_turn_device_s": round(device_s, 4),
    }
    return Findings("mix", parts, _bars(parts, 1 - device_s / together_s), facts, bench.schedule)


def mix_trace(plan: MixPlan, controller_s: float, planner_s: float) -> list[Arrival]:
    """Lay out both kinds by the seconds that one of each takes alone."""
    controller_hz, planner_hz = plan.controller_load / controller_s, plan.planner_load / planner_s
    return merge(
        [
            planners(planner_hz, plan.duration_s, plan.planner, group=PLANNER),
            poisson(controller_hz, plan.duration_s, plan.controller, seed=plan.seed, group=CONTROLLER),
        ]
    )


def _bars(parts: Sequence[Part], loss: float) -> list[Bar]:
    latencies = [part.summary.latency_ms for part in parts]
    p95s = [None if each is None else each.p95 for each in latencies]
    return [
        Bar("short job's p95, one at a time / mixed", over(p95s[2], p95s[0]), at_least=_GAIN),
        Bar("throughput lost against one at a time", round(loss, 4), at_most=_LOSS),
    ]


def _part(name: str, records: Sequence[Record], plan: MixPlan, group: str) -> Part:
    return Part.of(f"{name}: {group}", [each for each in records if each.arrival.group == group], plan.duration_s)


def _first_jobs(trace: Sequence[Arrival], num_planners: int) -> list[Arrival]:
    """Return the trace up to its so manieth planner."""
    places = [place for place, arrival in enumerate(trace) if arrival.group == PLANNER]
    return list(trace[: places[min(num_planners, len(places)) - 1] + 1]) if places else list(trace)


def _device_s(records: Sequence[Record]) -> float:
    return sum(record.reply.device_ms for record in records) / 1000
