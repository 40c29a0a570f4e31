"""How much of what the engine can do in a plain loop comes out of a server that is never idle. Both take turns."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from foreframe_server.load.bench import Bench
from foreframe_server.load.findings import Bar, Findings, Part
from foreframe_server.load.records import Record
from foreframe_server.load.traces import Ask

_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class ThroughputPlan:
    """Askers who never pause, for so long a turn. trial_s: how long the plain loop tries each number of rows."""

    ask: Ask
    askers: int = 3
    turn_s: float = 8.0
    turns: int = 2
    trial_s: float = 2.0


@dataclass(frozen=True, slots=True)
class PlainLoop:
    """The engine in this process. sizes: rows of a forward to try.

    run: does the same jobs with so many rows a forward for so many seconds, and returns rows a second.
    """

    sizes: Sequence[int]
    run: Callable[[int, float], float]


async def measure_throughput(bench: Bench, plan: ThroughputPlan, loop: PlainLoop) -> Findings:
    """Measure rows a second of the server and, while it rests, of the plain loop at the size that is best for it."""
    await bench.warm_up(plan.ask)
    bench.note(f"the plain loop with {', '.join(map(str, loop.sizes))} rows a forward")
    trials = {size: await asyncio.to_thread(loop.run, size, plan.trial_s) for size in loop.sizes}
    best = max(trials, key=trials.__getitem__)
    parts, served, plain = [], [], []
    for turn in range(plan.turns):
        bench.note(f"turn {turn + 1} of {plan.turns}")
        records = await bench.saturate(plan.ask, askers=plan.askers, duration_s=plan.turn_s)
        parts.append(Part.of(f"turn {turn + 1}", records, _elapsed_s(records)))
        steps = plan.ask.steps or bench.door.sizes.steps
        served.append(steps * sum(record.reply.members for record in records) / _elapsed_s(records))
        plain.append(await asyncio.to_thread(loop.run, best, plan.turn_s))
    facts = {
        "server_rows_per_s": [round(rate, 3) for rate in served],
        "engine_rows_per_s": [round(rate, 3) for rate in plain],
        "engine_rows_per_forward": best,
        "engine_rows_per_s_by_rows_per_forward": {str(size): round(rate, 3) for size, rate in trials.items()},
        "server_rows_per_forward": _mean_rows(records),
    }
    shares = tuple(round(one / other, 4) for one, other in zip(served, plain, strict=True))
    bar = Bar("server / engine in this process", round(median(shares), 4), at_least=_SHARE, rounds=shares)
    return Findings("throughput", parts, [bar], facts)


def _elapsed_s(records: Sequence[Record]) -> float:
    return max(record.done_s for record in records)


def _mean_rows(records: Sequence[Record]) -> float | None:
    known = [record.reply.rows_per_step for record in records if record.reply.is_ok]
    return round(fmean(known), 3) if known else None
