"""How much of what the engine can do in a plain loop comes out of a server that is never idle. Both take turns."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median

from foreframe_server.load.bench import Bench
from foreframe_server.load.findings import Bar, Findings, Part
from foreframe_server.load.traces import Ask

_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class ThroughputPlan:
    """Askers who never pause, for so long a turn."""

    ask: Ask
    askers: int = 3
    turn_s: float = 8.0
    turns: int = 2


async def measure_throughput(bench: Bench, plan: ThroughputPlan, run_engine: Callable[[int], float]) -> Findings:
    """Measure rows a second of the server and, while it rests, of the engine in this process.

    run_engine: runs such jobs with so many rows a forward and returns its rows a second.
    """
    await bench.warm_up(plan.ask)
    steps = plan.ask.steps or bench.door.sizes.steps
    parts, served, plain = [], [], []
    for turn in range(plan.turns):
        bench.note(f"turn {turn + 1} of {plan.turns}")
        records = await bench.saturate(plan.ask, askers=plan.askers, duration_s=plan.turn_s)
        elapsed_s = max(record.done_s for record in records)
        parts.append(Part.of(f"turn {turn + 1}", records, elapsed_s))
        served.append(steps * sum(record.reply.members for record in records) / elapsed_s)
        rows = fmean(record.reply.rows_per_step for record in records)
        plain.append(await asyncio.to_thread(run_engine, max(1, round(rows))))
    facts = {
        "server_rows_per_s": [round(rate, 3) for rate in served],
        "engine_rows_per_s": [round(rate, 3) for rate in plain],
    }
    share = median(one / other for one, other in zip(served, plain, strict=True))
    return Findings(
        "throughput", parts, [Bar("server / engine in this process", round(share, 4), at_least=_SHARE)], facts
    )
