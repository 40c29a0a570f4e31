"""Leaving in order: what is running is answered, then websockets and connections end."""

import asyncio
import signal
import struct

import pytest
import structlog

from foreframe_server.protocols.state import DoorLimits

pytestmark = pytest.mark.anyio

GET = b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n"
UPGRADE = (
    b"GET /line HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def frame(payload, opcode=2):
    """Write a small masked frame."""
    return bytes([0x80 | opcode, 0x80 | len(payload), 0, 0, 0, 0]) + payload


async def open_websocket(door):
    reader, writer = await door.connect()
    writer.write(UPGRADE)
    accepted = await reader.readuntil(b"\r\n\r\n")
    assert accepted.startswith(b"HTTP/1.1 101 ")
    assert b"close" not in accepted
    return reader, writer


async def test_a_running_request_is_answered_and_nobody_new_comes_in(serve, status_of):
    async with serve() as door:
        reader, writer = await door.connect()
        writer.write(GET % b"/wait")
        await door.app.asked.wait()
        door.server.handle_exit(signal.SIGTERM, None)
        async with asyncio.timeout(10):
            while True:
                try:
                    (await door.connect())[1].close()
                except ConnectionRefusedError:
                    break
                await asyncio.sleep(0.01)
        door.app.go_on.set()
        assert status_of(await reader.read()) == 200
        writer.close()
        async with asyncio.timeout(10):
            await door.serving
    assert not door.server._captured_signals


async def test_while_it_is_lame_it_serves_and_sends_clients_away(serve, status_of):
    async with serve(lame_duck_s=1.0) as door:
        kept_reader, kept = await door.connect()
        kept.write(GET % b"/a")
        await kept_reader.readuntil(b"}")
        door.server.handle_exit(signal.SIGTERM, None)
        await asyncio.sleep(0.3)
        kept.write(GET % b"/a")
        for reply in (await kept_reader.read(), await door.send(GET % b"/a")):
            assert (status_of(reply), b"connection: close" in reply.lower()) == (200, True)
        websocket = await open_websocket(door)
        websocket[1].close()
        kept.close()
        async with asyncio.timeout(10):
            await door.serving


async def test_the_first_interrupt_does_not_wait(serve):
    async with serve(lame_duck_s=60.0) as door:
        door.server.handle_exit(signal.SIGINT, None)
        async with asyncio.timeout(10):
            await door.serving


@pytest.mark.parametrize(("number", "limit_s"), [(signal.SIGTERM, 13), (signal.SIGINT, 10)])
async def test_the_first_signal_says_how_long_it_may_take(serve, number, limit_s):
    with structlog.testing.capture_logs() as lines:
        async with serve(lame_duck_s=3.0, drain_s=10) as door:
            door.server.handle_exit(number, None)
            await asyncio.sleep(0.3)
    assert [line["event"] for line in lines] == [f"stopping, up to {limit_s} s; again stops now"]


async def test_a_request_that_does_not_end_is_ended(serve):
    async with serve(drain_s=0.3) as door:
        _, writer = await door.connect()
        writer.write(GET % b"/wait")
        await door.app.asked.wait()
        door.server.handle_exit(signal.SIGTERM, None)
        async with asyncio.timeout(10):
            await door.serving
        writer.close()


async def test_a_websocket_is_answered_what_it_asked_then_told_of_the_end(serve):
    async with serve() as door:
        reader, writer = await open_websocket(door)
        writer.write(frame(b"asked"))
        await door.app.asked.wait()
        door.server.handle_exit(signal.SIGTERM, None)
        await asyncio.sleep(0.5)
        door.app.go_on.set()
        assert await reader.readexactly(7) == b"\x82\x05asked"
        header = await reader.readexactly(2)
        code = struct.unpack("!H", (await reader.readexactly(header[1]))[:2])[0]
        assert (header[0], code) == (0x88, 1012)
        writer.write(frame(struct.pack("!H", 1012), opcode=8))
        assert await reader.read() == b""
        writer.close()
        async with asyncio.timeout(10):
            await door.serving
    assert door.app.seen == [1012]


async def test_a_websocket_that_is_left_open_waits_for_as_long_as_it_likes(serve, monkeypatch):
    monkeypatch.setattr("foreframe_server.protocols.websocket.GRACE_S", 0.2)
    quick = DoorLimits(keep_alive_s=0.2, header_timeout_s=0.2, body_timeout_s=0.2, min_rate=1000)
    async with serve(quick) as door:
        door.app.go_on.set()
        reader, writer = await open_websocket(door)
        await asyncio.sleep(0.8)
        writer.write(frame(b"late"))
        assert await reader.readexactly(6) == b"\x82\x04late"
        writer.close()


async def test_a_message_in_drops_ends_a_websocket(serve, monkeypatch):
    monkeypatch.setattr("foreframe_server.protocols.websocket.GRACE_S", 0.2)
    async with serve() as door:
        reader, writer = await open_websocket(door)
        writer.write(frame(b"never whole")[:-4])
        async with asyncio.timeout(10):
            said = await reader.read()
        assert (said[0], struct.unpack("!H", said[2:4])[0]) == (0x88, 1008)
        writer.close()


async def test_frames_before_the_agreement_are_refused(serve, status_of):
    async with serve() as door:
        assert status_of(await door.send(UPGRADE + frame(b"early"))) == 400
