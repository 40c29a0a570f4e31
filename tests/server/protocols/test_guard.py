"""Slow, silent and too many connections end in time; those of a robot stay."""

import asyncio
import time

import pytest

from foreframe_server.errors import RequestTimeout
from foreframe_server.protocols.state import DoorLimits

pytestmark = pytest.mark.anyio

QUICK = DoorLimits(header_timeout_s=0.5, body_timeout_s=1.0, keep_alive_s=0.5, min_rate=1000)
HEAD = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
CLOSING = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


@pytest.fixture(autouse=True)
def short_grace(monkeypatch):
    monkeypatch.setattr("foreframe_server.protocols.guard.GRACE_S", 0.3)
    monkeypatch.setattr("foreframe_server.protocols.websocket.GRACE_S", 0.3)


async def drip(door, beginning, pieces, every_s=0.05):
    """Send a beginning, then one piece after the other until the server has enough; return what it said."""
    reader, writer = await door.connect()
    writer.write(beginning)
    answer = asyncio.create_task(reader.read())
    for piece in pieces:
        if answer.done():
            break
        writer.write(piece)
        await asyncio.wait({answer}, timeout=every_s)
    async with asyncio.timeout(20):
        reply = await answer
    writer.close()
    return reply


SLOW = {
    "silence": (b"", [], 0),
    "headers that stop": (b"GET /a HTTP/1.1\r\nHost: a\r\n", [], 408),
    "headers in drops": (b"GET /a HTTP/1.1\r\nHost: a\r\n", [b"X-A: b\r\n"] * 100, 408),
    "a body that stops": (HEAD + b"a" * 99, [], 408),
    "a body in drops": (HEAD, [b"a"] * 1000, 408),
    "a body fast enough for the rate and too long": (HEAD, [b"a" * 300] * 1000, 408),
    "chunks in drops": (
        b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        [b"1\r\na\r\n"] * 1000,
        408,
    ),
    "a second request that stops": (GET + b"GET", [], 408),
    "a second request that never comes": (GET, [], 200),
    "a body that nobody waits for": (HEAD.replace(b"/a", b"/early"), [b"a"] * 1000, 200),
}


async def test_slow_clients_are_told_so_and_ended(serve, status_of):
    async with serve(QUICK) as door:
        start_s = time.monotonic()
        replies = await asyncio.gather(*[drip(door, *how[:2]) for how in SLOW.values()])
        assert time.monotonic() - start_s < 5
    last = [reply[reply.rindex(b"HTTP/1.1 ") :] if reply else b"" for reply in replies]
    assert dict(zip(SLOW, map(status_of, last), strict=True)) == {name: how[2] for name, how in SLOW.items()}
    assert door.app.seen
    assert all(isinstance(refusal, RequestTimeout) for refusal in door.app.seen)


async def test_a_steady_body_is_read(serve, status_of):
    async with serve(QUICK) as door:
        head = b"POST /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n"
        assert status_of(await drip(door, head, [b"a" * 100] * 10)) == 200


async def test_a_slow_answer_is_no_slow_client(serve, status_of):
    async with serve(QUICK) as door:
        reader, writer = await door.connect()
        writer.write(GET.replace(b"/a", b"/wait"))
        await door.app.asked.wait()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.5):
                await reader.read(1)
        door.app.go_on.set()
        assert status_of(await reader.read()) == 200
        writer.close()


async def test_slow_clients_do_not_slow_a_robot(serve, status_of):
    async with serve(QUICK) as door:
        patterns = [SLOW[name] for name in ("silence", "headers in drops", "a body in drops", "headers that stop")]
        slow = [asyncio.create_task(drip(door, *patterns[index % 4][:2])) for index in range(120)]
        reader, writer = await door.connect()
        for _ in range(20):
            writer.write(GET)
            assert status_of(await reader.readuntil(b"}")) == 200
            await asyncio.sleep(0.02)
        writer.close()
        assert len(await asyncio.gather(*slow)) == 120


async def test_a_thousand_idle_sockets_keep_nobody_out(serve, status_of):
    async with serve(max_connections=100) as door:
        robot_reader, robot = await door.connect()
        robot.write(GET)
        await robot_reader.readuntil(b"}")
        idle = [(await door.connect())[1] for _ in range(1000)]
        assert len(door.server.server_state.visitors) <= 100
        assert status_of(await door.send(CLOSING)) == 200
        robot.write(GET)
        assert status_of(await robot_reader.readuntil(b"}")) == 200
        for writer in [*idle, robot]:
            writer.close()


async def test_connections_with_requests_are_not_ended_for_newcomers(serve, status_of, until):
    async with serve(max_connections=3) as door:
        busy = [await door.connect() for _ in range(3)]
        for _, writer in busy:
            writer.write(GET.replace(b"/a", b"/wait"))
        await until(lambda: len(door.server.server_state.tasks) == 3)
        refused = await door.send(GET)
        assert (status_of(refused), b"retry-after: 1" in refused) == (503, True)
        assert status_of(await door.send(CLOSING, door.admin_port)) == 200
        door.app.go_on.set()
        for reader, writer in busy:
            assert status_of(await reader.readuntil(b"}")) == 200
            writer.close()


async def test_requests_know_their_listener(serve):
    async with serve() as door:
        assert b'"listener": "public"' in await door.send(CLOSING)
        assert b'"listener": "admin"' in await door.send(CLOSING, door.admin_port)


async def test_a_reply_that_nobody_reads_is_given_up(serve, until):
    async with serve(QUICK) as door:
        _, writer = await door.connect()
        writer.write(GET.replace(b"/a", b"/large"))
        await door.app.asked.wait()
        writer.transport.pause_reading()
        start_s = time.monotonic()
        await until(lambda: len(door.server.server_state.visitors) == 0)
        assert 0.5 < time.monotonic() - start_s < 10
        writer.close()


async def test_clients_that_hang_up_leave_nothing(serve, until):
    async with serve() as door:
        for _ in range(50):
            _, writer = await door.connect()
            writer.write(HEAD + b"a" * 100)
            await writer.drain()
            writer.transport.abort()
        state = door.server.server_state
        await until(lambda: not (state.tasks or state.connections or len(state.visitors)))
