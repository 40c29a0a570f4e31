"""Loads that a server must not yield to: too much, too late, too large, too slow. Each is measured beside a control."""

import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import Iterator, Sequence

from harness.actions import place_of
from harness.ledger import Entry, Outcome, percentile
from harness.questions import Question
from harness.scenario import Stage
from harness.servers import Footprint

_STREAMS = {"calm": 21, "capacity": 22, "overload": 23, "after": 24, "late": 25, "robot": 26}


async def overload(stage: Stage, *, seconds: float, factor: float) -> None:
    """Measure the capacity, offer several times as much, then half of it."""

    def questions(part: str, count: int) -> list[Question]:
        stream = _STREAMS[part]
        return [Question(number, stream=stream, deadline_ms=2000, cache="bypass") for number in range(count)]

    began_s = time.monotonic()
    busy = await stage.asker.saturate(questions("capacity", 100_000), 8, seconds / 2)
    capacity_hz = _num_ok(busy) / (time.monotonic() - began_s)
    calm = await stage.asker.play(questions("calm", round(capacity_hz / 2 * seconds / 4)), capacity_hz / 2)
    flood_s = time.monotonic()
    flood = await stage.asker.play(questions("overload", round(factor * capacity_hz * seconds)), factor * capacity_hz)
    after = await stage.asker.play(questions("after", round(capacity_hz / 2 * (seconds / 2 + 3))), capacity_hz / 2)
    ended_s = after[0].due_s
    in_time = [entry for entry in flood if (entry.done_s or 0) < flood_s + seconds]
    shed = [entry.latency_ms for entry in flood if entry.outcome is Outcome.SHED]
    settled = [entry for entry in after if entry.due_s > ended_s + 2]
    stage.facts |= {
        "capacity_per_s": capacity_hz,
        "goodput": _num_ok(in_time) / seconds / capacity_hz,
        "shed_p99_ms": percentile(shed, 0.99) or 0.0,
        "shed_p50_ms": percentile(shed, 0.5) or 0.0,
        "calm_p99_ms": percentile((entry.latency_ms for entry in calm), 0.99) or 0.0,
        "after_p99_ms": percentile((entry.latency_ms for entry in settled), 0.99) or 0.0,
        "after_ok": _num_ok(settled) / max(1, len(settled)),
    }
    stage.facts["after_ratio"] = stage.facts["after_p99_ms"] / max(1.0, stage.facts["calm_p99_ms"])


async def meet_deadlines(stage: Stage, *, count: int, rate_hz: float, hogs: int) -> None:
    """Keep the cores busy, ask with deadlines of 20 to 500 ms, and have bare timers of the same lengths beside it."""
    deadlines = [stage.rng.randrange(20, 501) for _ in range(count)]
    questions = [
        Question(number, stream=_STREAMS["late"], members=2, steps=4, deadline_ms=deadline, cache="bypass")
        for number, deadline in enumerate(deadlines)
    ]
    with _hogs(hogs):
        timers = asyncio.create_task(_time_alone(deadlines, rate_hz))
        entries = await stage.asker.play(questions, rate_hz)
        control = await timers
    # A reply in time has no lateness; that of the rest is counted from the deadline as it was sent.
    late = [1000 * ((entry.done_s or 0) - (entry.deadline_s or 0)) for entry in entries]
    stage.facts |= {
        "expired_share": sum(entry.outcome is not Outcome.OK for entry in entries) / count,
        "late_p50_ms": percentile(late, 0.5) or 0.0,
        "late_p99_ms": percentile(late, 0.99) or 0.0,
        "late_max_ms": max(late),
        "timer_p99_ms": percentile(control, 0.99) or 0.0,
        "timer_max_ms": max(control),
    }
    stage.facts["late_p99_added_ms"] = stage.facts["late_p99_ms"] - stage.facts["timer_p99_ms"]
    stage.facts["late_max_added_ms"] = stage.facts["late_max_ms"] - stage.facts["timer_max_ms"]


async def _time_alone(deadlines_ms: Sequence[int], rate_hz: float) -> list[float]:
    async def wait(deadline_ms: int) -> float:
        began_s = time.monotonic()
        await asyncio.sleep(deadline_ms / 1000)
        return 1000 * (time.monotonic() - began_s) - deadline_ms

    async with asyncio.TaskGroup() as group:
        waits = []
        for deadline_ms in deadlines_ms:
            waits.append(group.create_task(wait(deadline_ms)))
            await asyncio.sleep(1 / rate_hz)
    return [each.result() for each in waits]


@contextlib.contextmanager
def _hogs(count: int) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    hogs = [context.Process(target=_burn, daemon=True) for _ in range(count)]
    for hog in hogs:
        hog.start()
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.join()


def _burn() -> None:
    until_s = time.monotonic() + 120
    while time.monotonic() < until_s:
        pass


async def ask_too_much(stage: Stage, *, count: int) -> None:
    """Ask for more than one request may have, in every way there is; count what is not refused."""
    before = Footprint.of(stage.server.tree()).rss_bytes
    async with stage.aside() as asker:
        for number in range(count):
            await asker.ask(_beyond(number, stage.rng.randrange(1, 10**6)))
        refused = asker.ledger.of(Outcome.REFUSED)
        stage.facts["not_refused"] = float(count - len(refused))
        stage.facts["refusal_p99_ms"] = percentile((entry.latency_ms for entry in refused), 0.99) or 0.0
    stage.facts["rss_added_mb"] = (Footprint.of(stage.server.tree()).rss_bytes - before) / 2**20


def _beyond(number: int, excess: int) -> Question:
    """Make a question that is over a limit, a different one in turn."""
    overrides = (
        {"ensemble": {"size": 32 + excess}},
        {"sampling": {"steps": 50 + excess}},
        {"frames": list(range(1, 6 + excess % 1000))},
        {"ensemble": {"size": 2**53}},
        {"deadline_ms": 600_000 + excess},
    )
    return Question(number, overrides=overrides[number % len(overrides)])


async def hold_slow_sockets(stage: Stage, *, count: int, seconds: float, rate_hz: float = 20.0) -> None:
    """Let a robot ask alone, then beside sockets that say nothing, or their headers or body a byte at a time."""
    alone = await _robot(stage, seconds / 2, rate_hz, 0)
    sockets = [asyncio.create_task(_dawdle(stage, number, seconds + 10)) for number in range(count)]
    await asyncio.sleep(0.5)
    stage.strike()
    beside = await _robot(stage, seconds, rate_hz, 10_000)
    held_s = await asyncio.gather(*sockets)
    p99 = [percentile((entry.latency_ms for entry in part), 0.99) or 0.0 for part in (alone, beside)]
    stage.facts |= {
        "alone_p99_ms": p99[0],
        "beside_p99_ms": p99[1],
        "p99_ratio": p99[1] / max(1.0, p99[0]),
        "open_longest_s": max(held_s),
        "open_after_11_s": float(sum(held > 11 for held in held_s)),
    }


async def _robot(stage: Stage, seconds: float, rate_hz: float, first: int) -> list[Entry]:
    stream = _STREAMS["robot"]
    asked = [Question(first + number, stream=stream, deadline_ms=1000) for number in range(round(seconds * rate_hz))]
    return await stage.asker.play(asked, rate_hz)


async def _dawdle(stage: Stage, number: int, seconds: float) -> float:
    """Open one socket, send a pattern's bytes slowly, and return how long it stayed open."""
    host, port = place_of(stage)
    began_s = time.monotonic()
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return 0.0
    first, drip = _PATTERNS[number % len(_PATTERNS)]
    writer.write(first.replace(b"HOST", f"{host}:{port}".encode()))
    dripping = asyncio.create_task(_drip(writer, drip))
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(seconds):
            while await reader.read(4096):
                pass
    dripping.cancel()
    writer.transport.abort()
    return time.monotonic() - began_s


async def _drip(writer: asyncio.StreamWriter, drip: bytes) -> None:
    with contextlib.suppress(OSError):
        while drip and not writer.is_closing():
            writer.write(drip)
            await asyncio.sleep(0.5)


_HEAD = (
    b"POST /v1/predictions HTTP/1.1\r\nhost: HOST\r\ncontent-type: application/msgpack\r\ncontent-length: 5000\r\n\r\n"
)
_PATTERNS = ((b"", b""), (b"GET /readyz HTTP/1.1\r\nhost: HOST\r\n", b"x-a: b\r\n"), (_HEAD, b"x"), (_HEAD, b""))


def _num_ok(entries: Sequence[Entry]) -> int:
    return sum(entry.outcome is Outcome.OK for entry in entries)
