"""Raw bytes to a server and back: one request, one reply, and what a websocket says. Judges nothing."""

import asyncio
import contextlib
import struct
import time
from dataclasses import dataclass

PATIENCE_S = 10.0
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
UPGRADE = (
    ("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
)  # fmt: skip
_END = b"\r\n\r\n"
_MAX_BYTES = 2**26
_MASK = b"\x5a\xa5\x0f\xf0"
_GOODBYE = b"foreframe-last"
_SILENCE_S = 0.1
"""After its pong a websocket may still answer what it was asked before."""


@dataclass(frozen=True)
class Reply:
    """What came back, and after how long. status: 0 when the server ended the connection without a word.

    is_hung: it neither answered nor ended the connection in time.
    """

    status: int
    head: bytes
    body: bytes
    seconds: float
    is_hung: bool = False

    def is_of(self, media: str) -> bool:
        """Tell whether the body is of a media type."""
        return f"content-type: {media}".encode() in self.head.lower()


async def exchange(
    port: int, data: bytes, messages: tuple[bytes, ...] = (), patience_s: float = PATIENCE_S, host: str = "127.0.0.1"
) -> Reply:
    """Send bytes on a connection of their own and read one reply; tell a websocket messages and wait for its pong."""
    began_s = time.monotonic()
    reader, writer = await asyncio.open_connection(host, port, limit=_MAX_BYTES)
    try:
        async with asyncio.timeout(patience_s):
            sending = asyncio.create_task(_send(writer, data))
            status, head, body = await _read(reader, is_head=data.startswith(b"HEAD "))
            if status == 101:
                await sending
                body += await _talk(reader, writer, messages)
            sending.cancel()
        return Reply(status, head, body, time.monotonic() - began_s)
    except TimeoutError:
        return Reply(0, b"", b"", time.monotonic() - began_s, is_hung=True)
    finally:
        sending.cancel()
        writer.transport.abort()


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        writer.write(data)
        await writer.drain()


async def _read(reader: asyncio.StreamReader, *, is_head: bool) -> tuple[int, bytes, bytes]:
    try:
        head = await reader.readuntil(_END)
        while head.split(b" ", 2)[1:2] == [b"100"]:
            head = await reader.readuntil(_END)
        status = int(head.split(b" ", 2)[1])
        return status, head, b"" if is_head or status in (101, 204, 304) else await _read_body(reader, head.lower())
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0, b"", b""


async def _read_body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    if b"transfer-encoding: chunked" in head:
        return await _read_chunks(reader)
    _, found, rest = head.partition(b"content-length: ")
    return await reader.readexactly(int(rest.split(b"\r", 1)[0])) if found else await reader.read(-1)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")
    return body


async def _talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, messages: tuple[bytes, ...]) -> bytes:
    """Send frames and a ping behind them; return what is said until its pong and a silence, a close or the end."""
    said, silence_s = b"", None
    # The caller's own time limit comes as a cancellation, so a TimeoutError here is the silence.
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, TimeoutError):
        for message in (*messages, frame(PING, _GOODBYE)):
            await _send(writer, message)
        opcode = TEXT
        while opcode != CLOSE:
            async with asyncio.timeout(silence_s):
                opcode, payload = await _read_frame(reader)
            said += payload
            if (opcode, payload) == (PONG, _GOODBYE):
                silence_s = _SILENCE_S
    return said


async def _read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    first, length = await reader.readexactly(2)
    if length >= 126:
        wide = await reader.readexactly(2 if length == 126 else 8)
        length = int.from_bytes(wide, "big")
    return first & 0x0F, await reader.readexactly(length)


def frame(opcode: int, payload: bytes, *, first: int | None = None, said_length: int | None = None) -> bytes:
    """Write a client's frame. first: another first byte; said_length: another length than it has."""
    length = len(payload) if said_length is None else said_length
    if length < 126:
        sized = bytes([0x80 | length])
    elif length < 2**16:
        sized = struct.pack(">BH", 0x80 | 126, length)
    else:
        sized = struct.pack(">BQ", 0x80 | 127, length)
    masked = bytes(byte ^ _MASK[place % 4] for place, byte in enumerate(payload))
    return bytes([0x80 | opcode if first is None else first]) + sized + _MASK + masked
