"""Watching whether the client of a call is still there. It knows calls only."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable

from starlette.types import Message

from foreframe_server.calls import Call
from foreframe_server.errors import ServiceError

_POLL_S = 0.05


class ClientLeft(ServiceError):
    """The client hung up before its answer was ready; nobody reads this."""

    code, status, title = "client_left", 499, "The client left"


def has_left(receiving: Awaitable[Message]) -> bool:
    """Say whether an ASGI `receive` tells at once that the client has left; a message of another kind is lost.

    As starlette's `Request.is_disconnected`, which opens and cancels a scope for each look.
    """
    waiting = receiving.__await__()
    try:
        next(waiting)
    except StopIteration as received:
        return bool(received.value["type"] == "http.disconnect")
    waiting.close()
    return False


@contextlib.asynccontextmanager
async def watching(call: Call) -> AsyncIterator[asyncio.Future[None]]:
    """Watch for the client's hanging up: the future is done when it has. Short calls are over before a second look."""
    watch = _Watch(call)
    try:
        await watch.look()
        yield watch.left
    finally:
        watch.end()


class _Watch:
    """Asks again and again whether one client has left."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asking: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def look(self) -> None:
        """Look now, and again and again from a while later on where the client is there."""
        is_disconnected = self._call.is_disconnected
        if is_disconnected is None:
            return
        if await is_disconnected():
            self._say_left()
        else:
            self._timer = asyncio.get_running_loop().call_later(_POLL_S, self._begin)

    def end(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._asking is not None:
            self._asking.cancel()

    def _begin(self) -> None:
        self._asking = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        is_disconnected = self._call.is_disconnected
        while is_disconnected is not None and not await is_disconnected():  # noqa: ASYNC110 - it tells only when asked
            await asyncio.sleep(_POLL_S)
        self._say_left()

    def _say_left(self) -> None:
        if not self.left.done():
            self.left.set_result(None)
