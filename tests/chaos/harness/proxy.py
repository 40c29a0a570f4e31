"""A proxy on 127.0.0.1 or a socket's path that does to streams what networks and bad servers do."""

import asyncio
import contextlib
import random

SLICE_BYTES = 7


class Hangup(Exception):
    """The proxy closes the connection."""


class Proxy:
    """Passes bytes on, unless `fault`, an async generator of what becomes of a chunk of an answer, does otherwise.

    A connection keeps the fault that it began with.
    """

    def __init__(self, upstream, path):
        self.upstream = upstream
        self.path = path
        self.url = f"unix://{path}"
        self.fault = passing
        self.connections = set()

    def pass_on(self):
        self.fault = passing

    def spoil(self, seed):
        """Answer with garbage."""
        self.fault = garbage(seed)

    def shift(self, stale):
        """Answer with the answer to the question before; the first with a string of bytes."""
        self.fault = shifted(b"$%d\r\n%s\r\n" % (len(stale), stale))

    def sever(self):
        """Close every connection."""
        for connection in self.connections:
            connection.cancel()

    async def __aenter__(self):
        self.server = await asyncio.start_unix_server(self.serve, self.path)
        return self

    async def __aexit__(self, *_):
        self.server.close()
        self.sever()
        await asyncio.gather(*self.connections, return_exceptions=True)

    async def serve(self, reader, writer):
        self.connections.add(asyncio.current_task())
        fault = self.fault
        with contextlib.suppress(OSError, Hangup, asyncio.CancelledError):
            above_reader, above_writer = await asyncio.open_unix_connection(self.upstream)
            asking = asyncio.create_task(pump(reader, above_writer, passing))
            try:
                await pump(above_reader, writer, fault)
            finally:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
                above_writer.transport.abort()
            if fault is slow_close:
                await asyncio.sleep(1.0)
        writer.transport.abort()


async def pump(reader, writer, fault):
    while chunk := await reader.read(2**20):
        async for piece in fault(chunk):
            writer.write(piece)
            await writer.drain()


async def passing(chunk):
    yield chunk


async def sliced(chunk):
    for start in range(0, len(chunk), SLICE_BYTES):
        yield chunk[start : start + SLICE_BYTES]


async def slow(chunk):
    await asyncio.sleep(1.0)
    yield chunk


async def trickling(chunk):
    for byte in chunk:
        await asyncio.sleep(0.01)
        yield bytes([byte])


async def silent(chunk):
    return
    yield chunk


async def cut(chunk):
    yield chunk[: min(20, len(chunk) - 1)]
    raise Hangup


async def reset(chunk):
    raise Hangup
    yield chunk


async def slow_close(chunk):
    yield chunk[:-1]
    await asyncio.sleep(1.0)
    raise Hangup


def garbage(seed):
    rng = random.Random(seed)

    async def spoiled(chunk):
        yield (
            rng.choice((b"+", b"-", b":", b"$", b"*", b"_", b"%", b"")) + rng.randbytes(rng.randrange(1, 40)) + b"\r\n"
        )
        yield b"\r\n" * rng.randrange(3)

    return spoiled


def shifted(stale):
    waiting = [stale]

    async def late(chunk):
        waiting.append(chunk)
        yield waiting.pop(0)

    return late


FAULTS = {"slow": slow, "trickling": trickling, "silent": silent, "cut": cut, "reset": reset}
HARMLESS = {"passing": passing, "sliced": sliced}
TOXICS = {
    "latency": slow,
    "bandwidth": trickling,
    "slow_close": slow_close,
    "timeout": silent,
    "reset": reset,
    "slicer": sliced,
    "data_limit": cut,
}
"""The seven kinds of fault that Shopify's Toxiproxy has."""
