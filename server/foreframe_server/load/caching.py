"""Questions that were asked before, partly before, and at the same time. Rows that the server stepped are counted."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from foreframe_server.load.bench import Bench
from foreframe_server.load.door import Door, Fetched, open_client
from foreframe_server.load.echo import serve_bytes
from foreframe_server.load.findings import Bar, Findings, Part
from foreframe_server.load.generator import play
from foreframe_server.load.traces import Arrival, Ask

_TOP_UP = 0.45
_GREY = 1e-6
_HIT_MS = 5.0


@dataclass(frozen=True, slots=True)
class CachePlan:
    """`ask` is the large one; `known` of its members are asked for before."""

    ask: Ask
    known: int = 12
    repeats: int = 3
    hits: int = 100
    identical: int = 200


@dataclass(frozen=True, slots=True, eq=False)
class _Lap:
    """One content asked in small and then in large, another in large alone, and the first in large past the cache."""

    cold: Fetched
    topped_up: Fetched
    again: Fetched

    @property
    def ratio(self) -> float:
        return self.topped_up.elapsed_ms / self.cold.elapsed_ms

    @property
    def difference(self) -> float:
        """The largest difference of any value, where white is 1."""
        levels = np.abs(self.topped_up.frames.astype(np.int16) - self.again.frames)
        return float(levels.max()) / 255


async def measure_cache(bench: Bench, plan: CachePlan) -> Findings:
    """Time a top-up, an exact hit and identical questions at once. Raises UnfitServer."""
    await bench.warm_up(plan.ask)
    bench.note(f"{plan.known} members, then {plan.ask.members}")
    laps = [await _top_up(bench, plan) for _ in range(plan.repeats)]
    ratios = tuple(round(lap.ratio, 4) for lap in laps)
    bench.note(f"{plan.hits} exact hits")
    hit_ms, transfer_ms = await _time_hits(bench, plan)
    bench.note(f"{plan.identical} identical questions at once")
    part, computations = await count_computations([bench], plan)
    bars = [
        Bar("top-up / cold", round(median(ratios), 4), at_most=_TOP_UP, rounds=ratios),
        Bar("top-up against cold, largest difference", max(lap.difference for lap in laps), at_most=_GREY),
        Bar("exact hit beyond transfer, p50 ms", round(hit_ms - transfer_ms, 3), at_most=_HIT_MS),
        Bar("computations of identical questions", computations, at_most=1),
        Bar("failed identical questions", part.summary.sent - part.summary.ok, at_most=0),
    ]
    facts = {
        "cold_ms": [round(lap.cold.elapsed_ms, 3) for lap in laps],
        "top_up_ms": [round(lap.topped_up.elapsed_ms, 3) for lap in laps],
        "top_up_from_cache": [lap.topped_up.reply.from_cache for lap in laps],
        "hit_p50_ms": round(hit_ms, 3),
        "transfer_p50_ms": round(transfer_ms, 3),
    }
    return Findings("cache", [part], bars, facts)


async def measure_sharing(benches: Sequence[Bench], plan: CachePlan) -> Findings:
    """Ask several servers with one shared cache the same at once. Raises UnfitServer."""
    for bench in benches:
        await bench.warm_up(plan.ask)
    part, computations = await count_computations(benches, plan)
    where = f"{len(benches)} servers"
    part = replace(part, name=f"identical, {where}")
    bars = [
        Bar(f"computations of identical questions, {where}", computations, at_most=1),
        Bar(f"failed identical questions, {where}", part.summary.sent - part.summary.ok, at_most=0),
    ]
    return Findings("cache", [part], bars)


async def count_computations(benches: Sequence[Bench], plan: CachePlan) -> tuple[Part, float]:
    """Send identical questions in turn to servers and count what was computed, by rows. Raises UnfitServer."""
    content = max(bench.new_content() for bench in benches)
    doors = [bench.door.marked(benches[0].door.nonce) for bench in benches]
    before = await _count_rows(doors)
    traces = [
        [Arrival(0.0, plan.ask, content) for _ in range(place, plan.identical, len(doors))]
        for place in range(len(doors))
    ]
    played = await asyncio.gather(*(play(trace, door.prepare) for trace, door in zip(traces, doors, strict=True)))
    records = [record for each in played for record in each]
    steps = plan.ask.steps or doors[0].sizes.steps
    computations = (await _count_rows(doors) - before) / (steps * plan.ask.members)
    return Part.of("identical", records, max(record.done_s for record in records)), round(computations, 4)


async def _count_rows(doors: Sequence[Door]) -> float:
    return sum([await door.count_rows() for door in doors])


async def _top_up(bench: Bench, plan: CachePlan) -> _Lap:
    content = bench.new_content()
    cold = await bench.door.fetch(plan.ask, bench.new_content())
    await bench.door.fetch(replace(plan.ask, members=plan.known), content)
    topped_up = await bench.door.fetch(plan.ask, content)
    again = await bench.door.fetch(replace(plan.ask, cache="bypass"), content)
    return _Lap(cold, topped_up, again)


async def _time_hits(bench: Bench, plan: CachePlan) -> tuple[float, float]:
    """Return the median ms of an exact hit, and of as many bytes there and back alone; both take turns."""
    content = bench.new_content()
    kept = await bench.door.fetch(plan.ask, content)
    hits, transfers = [], []
    async with serve_bytes(kept.received_bytes) as address, open_client(address) as client:
        await client.post("/", content=kept.sent)
        for _ in range(plan.hits):
            hits.append((await bench.door.fetch(plan.ask, content)).elapsed_ms)
            started_s = time.perf_counter()
            await client.post("/", content=kept.sent)
            transfers.append(1000 * (time.perf_counter() - started_s))
    return median(hits), median(transfers)
