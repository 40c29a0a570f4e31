"""One server through every part: equal answers, alone, idle, saturated, the mixed trace, quality for its cost."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import count as count_up
from statistics import median

import httpx
import numpy as np
from peers.catalogue import OURS
from peers.doors import Door
from peers.errors import Invalid, NotMeasured
from peers.goodput import count
from peers.plan import ALONE, Contents, Plan, mixed_trace, offered_load
from peers.servers import Server

from foreframe_server.load.generator import play, saturate
from foreframe_server.load.records import Record
from foreframe_server.load.summary import Percentiles, check_schedule
from foreframe_server.load.traces import Arrival, Ask
from foreframe_server.measures import psnr_db

Note = Callable[[str], None]
_START_S, _POLL_S, _IDLE_S = 90.0, 0.1, 1.0


async def wait_until_answering(server: Server, door: Door, ask: Ask) -> float:
    """Return the seconds until a question is answered. Raises NotMeasured when the server ends or none is in time."""
    started_s = time.perf_counter()
    while time.perf_counter() - started_s < _START_S:
        if server.has_ended:
            raise NotMeasured(f"the server ended as it started: {server.last_words}")
        try:
            await door.ask(ask, 0)
        except (httpx.HTTPError, Invalid):
            door.require_right()
            await asyncio.sleep(_POLL_S)
        else:
            return time.perf_counter() - started_s
    raise NotMeasured(f"the server did not answer within {_START_S:g} s: {server.last_words}")


async def measure(server: Server, door: Door, plan: Plan, name: str, note: Note) -> Mapping[str, object]:
    """Return what a started server is worth. Raises Invalid."""
    contents, ask = Contents.of(plan), Ask(members=plan.members, cache="bypass")
    start_s = await _start(server, door, plan, note)
    alone = await measure_alone(server, door, ask, name, contents.alone)
    note(f"saturated for {plan.saturation_s:g} s")
    saturated = await measure_saturated(server, door, plan, ask)
    mixed = []
    for load, first in zip(plan.loads, contents.mixed, strict=True):
        note(f"mixed trace of {load:g} of the device for {plan.seconds:g} s")
        mixed.append(await measure_mixed(server, door, plan, load, first))
    note("quality for its cost")
    quality = await measure_quality(server, door, plan, name)
    return {
        "start_s": round(start_s, 3),
        "answers": _answers(door),
        "alone": alone,
        "saturated": saturated,
        "mixed": mixed,
        "quality": quality,
    }


async def measure_throughput(server: Server, door: Door, plan: Plan, note: Note) -> Mapping[str, object]:
    """Return what a started server does for askers that never pause, and nothing else. Raises Invalid."""
    start_s = await _start(server, door, plan, note)
    note(f"saturated for {plan.saturation_s:g} s")
    saturated = await measure_saturated(server, door, plan, Ask(members=plan.members, cache="bypass"))
    return {"start_s": round(start_s, 3), "answers": _answers(door), "saturated": saturated}


async def compare(door: Door, plan: Plan) -> None:
    """Ask about every clip, and once as a planner does. Raises Invalid for a wrong answer."""
    first = Contents.of(plan).answers
    for clip in range(plan.clips):
        await door.ask(Ask(members=plan.members, cache="bypass"), first + clip)
    await door.ask(Ask(members=plan.bulk_members, priority="bulk", cache="bypass"), first + plan.clips)


async def measure_alone(server: Server, door: Door, ask: Ask, name: str, first: int) -> Mapping[str, object]:
    """Ask one question after another, then nothing for a second."""
    whole_s = [(await door.ask(ask, content)).elapsed_s for content in range(first, first + ALONE)]
    later = range(first + ALONE, first + 2 * ALONE)
    first_s = [await door.measure_first_news(ask, content) for content in later] if name == OURS else whole_s
    cpu_s = server.cpu_s()
    await asyncio.sleep(_IDLE_S)
    return {
        "answer_ms": round(1000 * median(whole_s), 3),
        "useful_ms": round(1000 * median(first_s), 3),
        "idle_cpu_s": round(server.cpu_s() - cpu_s, 3),
    }


async def measure_saturated(server: Server, door: Door, plan: Plan, ask: Ask) -> Mapping[str, object]:
    """Let some askers never pause."""
    questions = (Arrival(0.0, ask, content) for content in count_up(Contents.of(plan).saturated))
    cpu_s = server.cpu_s()
    records = await saturate(questions, door.prepare, askers=plan.askers, duration_s=plan.saturation_s)
    cpu_s = server.cpu_s() - cpu_s
    records = _settle(server, door, records)
    failed = [record.reply.code for record in records if not record.reply.is_ok]
    if failed:
        raise Invalid(f"{len(failed)} of {len(records)} questions of never pausing askers failed: {failed[0]}")
    elapsed_s = max(record.done_s for record in records)
    return {
        "answers_per_s": round(len(records) / elapsed_s, 4),
        "latency_ms": _percentiles(Percentiles.of(record.latency_ms for record in records)),
        "cpu_s_per_answer": round(cpu_s / len(records), 4),
        "rss_bytes": server.rss_bytes(),
        "processes": len(server.tree()),
    }


async def measure_mixed(server: Server, door: Door, plan: Plan, load: float, first: int) -> Mapping[str, object]:
    """Play the mixed trace of a load. Raises Invalid when the askers did not keep its times, or the server died."""
    trace = mixed_trace(plan, load, first)
    records = _settle(server, door, await play(trace, door.prepare))
    schedule = check_schedule(records, plan.max_lag_ms)
    if not schedule.is_on_schedule:
        raise Invalid(f"the schedule was missed: {schedule.lag_p99_ms:g} ms late, at most {plan.max_lag_ms:g} are fair")
    return {
        "load": load,
        "offered": round(offered_load(plan, trace), 3),
        "goodput": asdict(count(records, plan.seconds)),
        "schedule": asdict(schedule),
    }


async def measure_quality(server: Server, door: Door, plan: Plan, name: str) -> Mapping[str, object]:
    """Predict what really happened: peers by the plain loop of many members, foreframe by the posterior mean."""
    members = 1 if name == OURS else plan.quality_members
    strategy = "posterior_mean" if name == OURS else "sample"
    ask = Ask(members=members, strategy=strategy, cache="bypass")
    warm_up = Contents.of(plan).quality
    contents = range(warm_up + 1, warm_up + 1 + plan.clips)
    await door.ask(ask, warm_up)
    cpu_s = server.cpu_s()
    timed = [await door.ask(ask, content) for content in contents]
    cpu_s = server.cpu_s() - cpu_s
    plain = [door.truths.mean(content, plan.quality_members) for content in contents]
    return {
        "strategy": strategy,
        "members": members,
        "psnr_db": _mean_psnr_db(door, [each.answer.frames for each in timed], contents),
        "plain_psnr_db": _mean_psnr_db(door, plain, contents),
        "answer_ms": round(1000 * sum(each.elapsed_s for each in timed) / plan.clips, 3),
        "cpu_s_per_answer": round(cpu_s / plan.clips, 5),
    }


async def _start(server: Server, door: Door, plan: Plan, note: Note) -> float:
    start_s = await wait_until_answering(server, door, Ask(members=plan.members, cache="bypass"))
    note("equal answers")
    await compare(door, plan)
    return start_s


def _settle(server: Server, door: Door, records: Sequence[Record]) -> list[Record]:
    if server.has_ended:
        raise Invalid(f"the server ended while it was measured: {server.last_words}")
    return door.settle(records)


def _answers(door: Door) -> Mapping[str, int]:
    return {"compared": door.compared, "largest_difference": door.largest_difference}


def _mean_psnr_db(door: Door, predictions: Sequence[np.ndarray], contents: Sequence[int]) -> float:
    pairs = zip(predictions, contents, strict=True)
    return round(float(np.mean([psnr_db(frames, door.truths.future(content)) for frames, content in pairs])), 4)


def _percentiles(percentiles: Percentiles | None) -> Mapping[str, float] | None:
    return None if percentiles is None else asdict(percentiles)
