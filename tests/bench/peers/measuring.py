"""One server through every part: equal answers, alone, idle, saturated, the mixed trace, quality for its cost."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import count as count_up
from statistics import median

import httpx
import numpy as np
from peers.catalogue import OURS
from peers.doors import Door
from peers.errors import Invalid
from peers.goodput import count
from peers.plan import Plan, mixed_trace
from peers.servers import Server

from foreframe_server.load.generator import play, saturate
from foreframe_server.load.summary import Percentiles, check_schedule
from foreframe_server.load.traces import Arrival, Ask
from foreframe_server.measures import psnr_db

Note = Callable[[str], None]
_START_S, _POLL_S, _IDLE_S = 90.0, 0.1, 1.0
_ALONE = 5


async def wait_until_answering(server: Server, door: Door, ask: Ask) -> float:
    """Return the seconds until a question is answered. Raises Invalid when the server ends or none is in time."""
    started_s = time.perf_counter()
    while time.perf_counter() - started_s < _START_S:
        if server.has_ended:
            raise Invalid(f"the server ended as it started: {server.last_words}")
        try:
            await door.ask(ask, 0)
        except (httpx.HTTPError, Invalid):
            door.require_right()
            await asyncio.sleep(_POLL_S)
        else:
            return time.perf_counter() - started_s
    raise Invalid(f"the server did not answer within {_START_S:g} s: {server.last_words}")


async def measure(server: Server, door: Door, plan: Plan, name: str, note: Note) -> Mapping[str, object]:
    """Return what a started server is worth. Raises Invalid."""
    ask = Ask(members=plan.members, cache="bypass")
    start_s = await wait_until_answering(server, door, ask)
    note("equal answers")
    await compare(door, plan)
    alone = await measure_alone(server, door, ask, name)
    note(f"saturated for {plan.saturation_s:g} s")
    saturated = await measure_saturated(server, door, plan, ask)
    note(f"mixed trace for {plan.seconds:g} s")
    mixed = await measure_mixed(door, plan)
    note("quality for its cost")
    quality = await measure_quality(server, door, plan, name)
    return {
        "start_s": round(start_s, 3),
        "answers": {"compared": door.compared, "largest_difference": door.largest_difference},
        "alone": alone,
        "saturated": saturated,
        "mixed": mixed,
        "quality": quality,
    }


async def compare(door: Door, plan: Plan) -> None:
    """Ask every content, and one as a planner does. Raises Invalid for a wrong answer."""
    for content in range(plan.clips):
        await door.ask(Ask(members=plan.members, cache="bypass"), content)
    await door.ask(Ask(members=plan.bulk_members, priority="bulk", cache="bypass"), 0)


async def measure_alone(server: Server, door: Door, ask: Ask, name: str) -> Mapping[str, object]:
    """Ask one question after another, then nothing for a second."""
    whole_s = [await _time(door, ask, content) for content in range(_ALONE)]
    first_s = [await door.measure_first_news(ask, content) for content in range(_ALONE)] if name == OURS else whole_s
    cpu_s = server.cpu_s()
    await asyncio.sleep(_IDLE_S)
    return {
        "answer_ms": round(1000 * median(whole_s), 3),
        "useful_ms": round(1000 * median(first_s), 3),
        "idle_cpu_s": round(server.cpu_s() - cpu_s, 3),
    }


async def measure_saturated(server: Server, door: Door, plan: Plan, ask: Ask) -> Mapping[str, object]:
    """Let some askers never pause."""
    questions = (Arrival(0.0, ask, content) for content in count_up())
    cpu_s = server.cpu_s()
    records = await saturate(questions, door.prepare, askers=plan.askers, duration_s=plan.saturation_s)
    door.require_right()
    failed = [record.reply.code for record in records if not record.reply.is_ok]
    if failed:
        raise Invalid(f"{len(failed)} of {len(records)} questions of never pausing askers failed: {failed[0]}")
    elapsed_s = max(record.done_s for record in records)
    return {
        "answers_per_s": round(len(records) / elapsed_s, 4),
        "latency_ms": _percentiles(Percentiles.of(record.latency_ms for record in records)),
        "cpu_s_per_answer": round((server.cpu_s() - cpu_s) / len(records), 4),
        "rss_bytes": server.rss_bytes(),
        "processes": len(server.tree()),
    }


async def measure_mixed(door: Door, plan: Plan) -> Mapping[str, object]:
    """Play the mixed trace. Raises Invalid when the askers did not keep its times."""
    records = await play(mixed_trace(plan), door.prepare)
    door.require_right()
    schedule = check_schedule(records, plan.max_lag_ms)
    if not schedule.is_on_schedule:
        raise Invalid(f"the schedule was missed: {schedule.lag_p99_ms:g} ms late, at most {plan.max_lag_ms:g} are fair")
    return {"goodput": asdict(count(records, plan.seconds)), "schedule": asdict(schedule)}


async def measure_quality(server: Server, door: Door, plan: Plan, name: str) -> Mapping[str, object]:
    """Predict what really happened: peers by the plain loop of many members, foreframe by the posterior mean."""
    members = 1 if name == OURS else plan.quality_members
    strategy = "posterior_mean" if name == OURS else "sample"
    ask = Ask(members=members, strategy=strategy, cache="bypass")
    await door.ask(ask, 0)
    cpu_s, started_s = server.cpu_s(), time.perf_counter()
    answers = [await door.ask(ask, content) for content in range(plan.clips)]
    cpu_s, elapsed_s = server.cpu_s() - cpu_s, time.perf_counter() - started_s
    found = [psnr_db(answer.frames, door.truths.future(content)) for content, answer in enumerate(answers)]
    plain = [
        psnr_db(door.truths.mean(content, plan.quality_members), door.truths.future(content))
        for content in range(plan.clips)
    ]
    return {
        "strategy": strategy,
        "members": members,
        "psnr_db": round(float(np.mean(found)), 4),
        "plain_psnr_db": round(float(np.mean(plain)), 4),
        "answer_ms": round(1000 * elapsed_s / plan.clips, 3),
        "cpu_s_per_answer": round(cpu_s / plan.clips, 5),
    }


async def _time(door: Door, ask: Ask, content: int) -> float:
    started_s = time.perf_counter()
    await door.ask(ask, content)
    return time.perf_counter() - started_s


def _percentiles(percentiles: Percentiles | None) -> Mapping[str, float] | None:
    return None if percentiles is None else asdict(percentiles)
