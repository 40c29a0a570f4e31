"""A server that knows no model: reads a body and sends as many bytes back as it is told. What transfer alone costs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def serve_bytes(reply_bytes: int) -> AsyncIterator[str]:
    """Answer every POST with that many bytes for as long as the block runs; gives the address."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: {reply_bytes}\r\n\r\n"
    reply = head.encode() + bytes(reply_bytes)
    doors: set[asyncio.StreamWriter] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        doors.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readexactly(_body_bytes(await reader.readuntil(b"\r\n\r\n")))
                writer.write(reply)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.close()
        for writer in doors:
            writer.close()
        await server.wait_closed()


def _body_bytes(head: bytes) -> int:
    lines = (line.partition(b":") for line in head.lower().split(b"\r\n"))
    return next((int(value) for name, _, value in lines if name == b"content-length"), 0)
