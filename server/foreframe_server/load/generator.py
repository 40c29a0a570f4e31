"""Asks a trace's questions on time, or keeps some askers busy, in one event loop. Knows no wire.

Latency counts from when a question was due, so a server that holds up the asker cannot hide it (coordinated omission).
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

from foreframe_server.load.records import Record, Reply
from foreframe_server.load.traces import Arrival

Send: TypeAlias = Callable[[], Awaitable[Reply]]
Prepare: TypeAlias = Callable[[Arrival], Send]
Clock: TypeAlias = Callable[[], float]
Sleep: TypeAlias = Callable[[float], Awaitable[None]]


async def play(
    trace: Sequence[Arrival],
    prepare: Prepare,
    *,
    max_in_flight: int | None = None,
    clock: Clock = time.perf_counter,
    sleep: Sleep = asyncio.sleep,
) -> list[Record]:
    """Ask each question when it is due, in order of the trace, whatever became of those before.

    prepare: makes a question ready ahead of its time. max_in_flight: later ones queue here, first come first served.
    """
    gate = None if max_in_flight is None else asyncio.Semaphore(max_in_flight)
    started_s = clock()

    async def ask(arrival: Arrival, send: Send) -> Record:
        sent_s = clock() - started_s
        async with _admitted(gate):
            reply = await send()
        return Record(arrival, sent_s, clock() - started_s, reply)

    calls: list[asyncio.Task[Record]] = []
    async with asyncio.TaskGroup() as group:
        for arrival in trace:
            send = prepare(arrival)
            wait_s = started_s + arrival.due_s - clock()
            if wait_s > 0:
                await sleep(wait_s)
            calls.append(group.create_task(ask(arrival, send)))
    return [call.result() for call in calls]


async def saturate(
    questions: Iterator[Arrival],
    prepare: Prepare,
    *,
    askers: int,
    duration_s: float,
    clock: Clock = time.perf_counter,
) -> list[Record]:
    """Let askers each ask the next question as soon as they have an answer, until the time is up.

    Each question is due when it is asked.
    """
    started_s = clock()
    records: list[Record] = []

    async def keep_asking() -> None:
        while (sent_s := clock() - started_s) < duration_s:
            arrival = replace(next(questions), due_s=sent_s)
            reply = await prepare(arrival)()
            records.append(Record(arrival, sent_s, clock() - started_s, reply))

    async with asyncio.TaskGroup() as group:
        for _ in range(askers):
            group.create_task(keep_asking())
    return records


@contextlib.asynccontextmanager
async def _admitted(gate: asyncio.Semaphore | None) -> AsyncIterator[None]:
    if gate is None:
        yield
        return
    async with gate:
        yield
