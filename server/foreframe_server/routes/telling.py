"""One prediction, told of as it grows: of what waits to be told only the newest is kept. Knows no door.

What a door writes of it are pieces of news, the last of which is the reply.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from foreframe_server.calls import Answer, Timings
from foreframe_server.codec import Asked, encode_accepted, encode_estimate, encode_update
from foreframe_server.routes.exchange import Opened, close_exchange
from foreframe_server.service import Progress


class Newest:
    """Hears what becomes of a call: one improvement waits to be told, and a newer one takes its place."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._is_settled = asyncio.Event()
        self._stirred = asyncio.Event()

    def on_accepted(self) -> None:
        """Hear that the call is being computed."""
        self._is_settled.set()

    def on_progress(self, progress: Progress) -> None:
        """Let an improvement wait, in place of an older one."""
        self._progress = progress
        self._stirred.set()

    def end(self) -> None:
        """Let whoever waits look around: nothing more comes."""
        self._is_settled.set()
        self._stirred.set()

    async def settled(self) -> None:
        """Wait until the call is being computed, or has ended."""
        await self._is_settled.wait()

    async def take(self, patience_s: float | None) -> Progress | None:
        """Wait, then take the improvement away; None at the end, or when time was up without one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._stirred.wait()
        self._stirred.clear()
        progress, self._progress = self._progress, None
        return progress


@dataclass(frozen=True, slots=True)
class News:
    """One thing to tell: `accepted`, `estimate`, `update` or, with the timings of the whole, `done`."""

    name: str
    body: bytes
    timings: Timings | None = None


class Telling:
    """One prediction on its way. `settle`, then tell the `news`, and `leave` however it ends."""

    def __init__(self, opened: Opened[Asked, Answer]) -> None:
        self._exchange = opened.exchange
        self._opened = opened
        service = opened.exchange.model.open_service()
        self._newest = Newest()
        self._answering = asyncio.create_task(service.predict(opened.asked.query, opened.call, self._newest))
        self._answering.add_done_callback(self._on_answered)

    def _on_answered(self, answering: asyncio.Task[Answer]) -> None:
        if not answering.cancelled():
            answering.exception()  # looked at: when the client has gone, nobody else does
        self._newest.end()

    async def settle(self) -> None:
        """Wait until the prediction is being computed, or answered, and raise what refused it before."""
        await self._newest.settled()
        if self._answering.done():
            self._answering.result()

    async def leave(self) -> None:
        """Let the prediction be: nobody listens any more."""
        if self._answering.cancel():
            await asyncio.wait({self._answering})

    async def news(self, patience_s: float | None = None) -> AsyncGenerator[News | None]:
        """Write piece after piece; None whenever there was nothing for so long. Raises what ended the prediction."""
        asked, call = self._opened.asked, self._opened.call
        yield News("accepted", encode_accepted(asked, self._exchange.contract, call))
        while True:
            progress = await self._newest.take(patience_s)
            if self._answering.done():
                break
            yield None if progress is None else await self._improvement(progress)
        answer = self._answering.result()
        reply = await close_exchange(self._opened, answer)
        yield News("done", reply.body, answer.timings)

    async def _improvement(self, progress: Progress) -> News:
        name, encode = ("estimate", encode_estimate) if progress.is_estimate else ("update", encode_update)
        exchange, opened = self._exchange, self._opened
        body = await exchange.host.compute(encode, opened.asked, progress.prediction, exchange.contract, opened.call)
        return News(name, body)
