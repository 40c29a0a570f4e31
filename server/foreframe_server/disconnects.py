"""Watching whether the client of a call is still there. It knows calls only."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from foreframe_server.calls import Call
from foreframe_server.errors import RequestTimeout

_POLL_S = 0.05


class ClientLeft(RequestTimeout):
    """The client hung up before its answer was ready; nobody reads this."""


@contextlib.asynccontextmanager
async def watching(call: Call) -> AsyncIterator[asyncio.Task[None]]:
    """Watch for the client's hanging up: the task ends when it has."""
    watch = asyncio.create_task(_until_disconnected(call))
    try:
        yield watch
    finally:
        watch.cancel()


async def _until_disconnected(call: Call) -> None:
    if call.is_disconnected is None:
        await asyncio.Event().wait()
        return
    while not await call.is_disconnected():  # noqa: ASYNC110 - a connection tells only when it is asked
        await asyncio.sleep(_POLL_S)
