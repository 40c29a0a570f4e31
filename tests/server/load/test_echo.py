"""The server of bytes gives what it is told, as often as it is asked on one connection."""

import asyncio

from foreframe_server.load.door import open_client
from foreframe_server.load.echo import serve_bytes


def test_it_reads_everything_and_answers_with_as_many_bytes():
    async def ask():
        async with serve_bytes(70_000) as address, open_client(address) as client:
            return [await client.post("/", content=bytes(size)) for size in (200_000, 1, 0)]

    replies = asyncio.run(ask())
    assert [(reply.status_code, len(reply.content)) for reply in replies] == [(200, 70_000)] * 3
