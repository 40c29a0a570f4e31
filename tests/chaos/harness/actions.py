"""What can happen to a running server: processes killed and stopped, Redis harmed, limits drawn, clients leaving."""

import asyncio
import contextlib
import os
import random
import resource
import signal
import time

import numpy as np
from harness.ledger import Outcome
from harness.load import Load
from harness.proxy import TOXICS, passing
from harness.questions import Question
from harness.scenario import Event, Stage
from harness.servers import Footprint, is_alive, limit, status, until

from foreframe_engines.testing_oracle import Knob

_DEATH_S = 10.0
_PREFIX = b"foreframe:members:*"


def at_random(
    action, count: int, *, first_s: float, last_s: float, apart_s: float, seed: int, **terms
) -> tuple[Event, ...]:
    """Place events at random seconds that are at least so far apart."""
    rng = random.Random(seed)
    slack_s = last_s - first_s - apart_s * (count - 1)
    offsets = sorted(rng.uniform(0, slack_s) for _ in range(count))
    return tuple(Event(first_s + place + number * apart_s, action, terms) for number, place in enumerate(offsets))


async def kill_worker(stage: Stage) -> None:
    """Kill a worker with signal 9 while it does whatever it does; measure until there are as many as before."""
    workers = stage.server.workers()
    victim = stage.rng.choice(workers)
    os.kill(victim, signal.SIGKILL)
    stage.strike()
    back_s = await asyncio.to_thread(until, lambda: _num_other(stage, victim) >= len(workers), _DEATH_S)
    stage.worsen("worker_back_s", _DEATH_S if back_s is None else back_s)


async def stop_worker(stage: Stage) -> None:
    """Stop a worker from running; measure until it is gone and replaced."""
    workers = stage.server.workers()
    victim = stage.rng.choice(workers)
    os.kill(victim, signal.SIGSTOP)
    stage.strike()
    gone_s = await asyncio.to_thread(
        until, lambda: not is_alive(victim) and _num_other(stage, victim) >= len(workers), 2 * _DEATH_S
    )
    stage.worsen("replaced_s", 2 * _DEATH_S if gone_s is None else gone_s)
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGCONT)


def _num_other(stage: Stage, victim: int) -> int:
    return sum(is_alive(pid) for pid in stage.server.workers() if pid != victim)


async def resend_poison(stage: Stage, *, times: int, knob: Knob = Knob.ABORT) -> None:
    """Ask again and again what kills whoever computes it; count the deaths."""
    before = stage.server.total("foreframe_worker_restarts_total")
    async with stage.aside() as asker:
        for _ in range(times):
            await asker.ask(Question(10**6, knob=knob, deadline_ms=20_000))
            await asyncio.sleep(0.02)
        codes = asker.ledger.codes()
        stage.facts["poison_answered"] = float(len(asker.ledger.of(Outcome.OK, Outcome.WRONG)))
        stage.facts["poison_crashed"] = float(codes.get("worker_crashed", 0))
        stage.facts["poison_other"] = float(times - codes.get("worker_crashed", 0))
    await asyncio.sleep(1.0)
    stage.facts["deaths"] = await asyncio.to_thread(stage.server.total, "foreframe_worker_restarts_total") - before


async def ask_much_memory(stage: Stage, *, megabytes: int, after: int) -> None:
    """Ask for more memory than there is, then for something else, and see whether the workers are the same."""
    workers = stage.server.workers()
    for pid in workers:
        limit(pid, resource.RLIMIT_AS, status(pid, "VmSize") * 1024 + megabytes * 2**19)
    async with stage.aside() as asker:
        await asker.ask(Question(10**6, knob=Knob.ALLOCATE, amount=megabytes))
        stage.facts["refused_memory"] = float(asker.ledger.codes().get("model_fault", 0))
    await stage.asker.saturate([Question(number) for number in range(after)], 4)
    stage.facts["same_workers"] = float(stage.server.workers() == workers)


async def emit_nan(stage: Stage, *, times: int) -> None:
    """Ask for what comes out as NaN, each twice: nothing of it may be answered, now or from a cache."""
    async with stage.aside() as asker:
        for number in [*range(times), *range(times)]:
            await asker.ask(Question(number, stream=7, knob=Knob.NAN))
        stage.facts["nan_delivered"] = float(len(asker.ledger.of(Outcome.OK, Outcome.WRONG)))
        stage.facts["nan_faults"] = float(asker.ledger.codes().get("model_fault", 0))


async def break_model(stage: Stage, *, seconds: float) -> None:
    """Make the model abort whenever it is opened, and kill every worker; count how often it is opened."""
    starts = stage.folder / "starts"
    (stage.folder / "broken").touch()
    before = len(starts.read_text().splitlines())
    for pid in stage.server.workers():
        os.kill(pid, signal.SIGKILL)
    stage.strike()
    await asyncio.sleep(seconds)
    stage.facts["starts"] = float(len(starts.read_text().splitlines()) - before)
    stage.facts["ready"] = float(await asyncio.to_thread(stage.server.is_ready))
    stage.facts["lives"] = float(is_alive(stage.server.process.pid))


async def mend_model(stage: Stage, *, seconds: float) -> None:
    """Make the model good again; measure until the server is ready."""
    (stage.folder / "broken").unlink()
    took_s = await asyncio.to_thread(until, stage.server.is_ready, seconds)
    stage.facts["mended_s"] = seconds + 1 if took_s is None else took_s


async def terminate(stage: Stage) -> None:
    """Send SIGTERM; measure the way to the exit and what is left of it."""
    stage.server.workers()
    began_s = time.monotonic()
    stage.server.signal(signal.SIGTERM)
    stage.strike()
    status = await asyncio.to_thread(stage.server.wait)
    stage.facts["exit_status"] = float(-999 if status is None else abs(status))
    stage.facts["exit_s"] = time.monotonic() - began_s
    stage.facts["orphans"] = float(len(stage.server.orphans()))


async def terminate_twice(stage: Stage, *, apart_s: float) -> None:
    """Send SIGTERM and, before the work can be done, again; measure the way to the exit from then on."""
    stage.server.workers()
    stage.server.signal(signal.SIGTERM)
    await asyncio.sleep(apart_s)
    began_s = time.monotonic()
    stage.server.signal(signal.SIGTERM)
    await asyncio.to_thread(stage.server.wait)
    stage.facts["second_exit_s"] = time.monotonic() - began_s
    gone_s = await asyncio.to_thread(until, lambda: not stage.server.orphans(), _DEATH_S)
    stage.facts["workers_gone_s"] = _DEATH_S if gone_s is None else gone_s


async def kill_parent(stage: Stage) -> None:
    """Kill the server with signal 9; measure until its workers are gone and until a new one is ready."""
    stage.facts["workers"] = float(len(stage.server.workers()))
    stage.server.signal(signal.SIGKILL)
    stage.strike()
    stage.server.wait()
    gone_s = await asyncio.to_thread(until, lambda: not stage.server.orphans(), _DEATH_S)
    stage.facts["workers_gone_s"] = _DEATH_S if gone_s is None else gone_s
    began_s = time.monotonic()
    stage.server.process.stdout.close()
    await asyncio.to_thread(stage.server.start)
    stage.facts["restart_s"] = time.monotonic() - began_s
    async with stage.aside() as asker:
        await asker.play(Load(50, 1).questions(0, 1), 50)
        asker.verify()
        stage.facts["answered_after"] = len(asker.ledger.of(Outcome.OK)) / len(asker.ledger.entries)


async def fill_disk(stage: Stage) -> None:
    """Let the server and its workers write not one byte more to any file."""
    for pid in stage.server.tree():
        limit(pid, resource.RLIMIT_FSIZE, 0)
    stage.strike()


async def hold_connections(stage: Stage, *, count: int, seconds: float) -> None:
    """Open connections that say nothing."""
    host, port = place_of(stage)
    stage.strike()
    held = []
    for _ in range(count):
        with contextlib.suppress(OSError, TimeoutError):
            held.append(await asyncio.wait_for(asyncio.open_connection(host, port), 1))
    stage.facts["held"] = float(len(held))
    await asyncio.sleep(seconds)
    for _, writer in held:
        writer.transport.abort()


async def kill_redis(stage: Stage) -> None:
    stage.redis.kill()
    stage.strike()


async def stop_redis(stage: Stage) -> None:
    stage.redis.hang()
    stage.strike()


async def revive_redis(stage: Stage, *, is_killed: bool) -> None:
    """Let Redis come back; measure until the server stores into it again."""
    count = _stored(stage)
    await asyncio.to_thread(stage.redis.restart if is_killed else stage.redis.go_on)
    took_s = await asyncio.to_thread(until, lambda: _stored(stage) > count, _DEATH_S)
    stage.facts["reconnected_s"] = _DEATH_S if took_s is None else took_s


def _stored(stage: Stage) -> float:
    return _counted(stage, "stored")


def _counted(stage: Stage, event: str) -> float:
    """Return how often the server's Redis tier did something."""
    return stage.server.metrics().get(f'foreframe_cache_events_total{{result="{event}",tier="redis"}}', 0.0)


async def set_toxic(stage: Stage, *, toxic: str) -> None:
    """Let the proxy before Redis do one thing to every answer; `none` lets it pass."""
    stage.proxy.fault = passing if toxic == "none" else TOXICS[toxic]
    stage.proxy.sever()
    stage.strike()


async def corrupt_entries(stage: Stage, *, count: int) -> None:
    """Have answers stored, damage every entry in Redis, and ask the same again."""
    questions = [Question(number, stream=3, members=2) for number in range(count)]
    await stage.asker.saturate(questions, 4)
    client = stage.redis.client()
    names = sorted(client.scan_iter(_PREFIX, count=1000))
    blobs = {name: client.get(name) for name in names}
    for number, name in enumerate(names):
        damaged = DAMAGES[number % len(DAMAGES)](blobs[name], stage.rng, blobs[names[number - 1]])
        client.set(name, damaged)
    client.close()
    stage.strike()
    stage.facts["damaged"], hits = float(len(names)), _counted(stage, "hit")
    await stage.asker.saturate(questions, 4)
    stage.facts["served_damaged"] = _counted(stage, "hit") - hits
    stage.facts["detected"] = _counted(stage, "corrupt")


def _flip(blob: bytes, rng: random.Random, _: bytes) -> bytes:
    place = rng.randrange(len(blob))
    return blob[:place] + bytes([blob[place] ^ (1 << rng.randrange(8))]) + blob[place + 1 :]


DAMAGES = (_flip, lambda blob, rng, _: blob[: rng.randrange(len(blob))], lambda _blob, _rng, other: other)


async def hang_up(stage: Stage, *, count: int) -> None:
    """Let clients leave 0.2 to 10 ms after they asked; measure until the server works for nobody any more."""
    host, port = place_of(stage)
    for number in range(count):
        body = Question(number, stream=5, members=4, steps=4).body
        head = f"POST /v1/predictions HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/msgpack\r\n"
        _, writer = await asyncio.open_connection(host, port)
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        await asyncio.sleep(stage.rng.uniform(0.0002, 0.01))
        writer.transport.abort()
    stage.add("hung_up", count)


async def measure_settling(stage: Stage) -> None:
    """Measure until no predicted work waits."""
    took_s = await asyncio.to_thread(
        until, lambda: stage.server.metrics()["foreframe_queue_step_seconds"] == 0, _DEATH_S
    )
    stage.facts["settled_s"] = _DEATH_S if took_s is None else took_s


async def stampede(stage: Stage, *, count: int, kills: bool) -> None:
    """Ask the same question many times at once, and kill a worker in the middle; count what was computed."""
    question = Question(0, stream=9, members=4, steps=4)
    rows = stage.server.total("foreframe_step_batch_rows_sum")
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(stage.asker.ask(question))
        if kills:
            await asyncio.sleep(0.25)
            os.kill(stage.server.workers()[0], signal.SIGKILL)
            stage.strike()
    done = stage.server.total("foreframe_step_batch_rows_sum") - rows
    stage.facts["computations"] = done / (question.members * question.steps)


async def fill_redis(stage: Stage, *, count: int) -> None:
    """Have more results stored than Redis has room for."""
    await stage.asker.saturate((Question(number, stream=11, members=6, steps=1) for number in range(count)), 8)
    client = stage.redis.client()
    stage.facts["evicted"] = float(client.info("stats")["evicted_keys"])
    client.close()


async def watch_footprint(stage: Stage, *, warm_up: int, count: int, points: int) -> None:
    """Ask many different questions and fit a line through what the server's processes hold."""
    stream = iter(Question(number, stream=13, scenes=64, steps=1, cache="bypass") for number in range(warm_up + count))
    await _ask_next(stage, stream, warm_up)
    before = Footprint.of(stage.server.tree())
    sizes = []
    for _ in range(points):
        await _ask_next(stage, stream, count // points)
        sizes.append(Footprint.of(stage.server.tree()))
    thousands = np.arange(1, points + 1) * (count // points) / 1000
    megabytes = np.array([size.rss_bytes for size in sizes]) / 2**20
    after = sizes[-1]
    stage.facts["rss_mb_per_1000"] = float(np.polyfit(thousands, megabytes, 1)[0])
    stage.facts["rss_growth"] = after.rss_bytes / before.rss_bytes - 1
    for name in ("threads", "processes", "shared"):
        stage.facts[f"{name}_added"] = float(getattr(after, name) - getattr(before, name))
    await stage.asker.client.aclose()
    await asyncio.sleep(1.0)
    idle = Footprint.of(stage.server.tree())
    stage.facts["files_added"] = float(max(0, idle.files - before.files))


async def _ask_next(stage: Stage, stream, count: int) -> None:
    await stage.asker.saturate([next(stream) for _ in range(count)], 8)
    await asyncio.to_thread(stage.asker.verify)


def place_of(stage: Stage) -> tuple[str, int]:
    host, port = stage.server.address.removeprefix("http://").split(":")
    return host, int(port)
