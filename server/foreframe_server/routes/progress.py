"""The progress of one prediction as server-sent events: the newest is told, none is queued. Knows no pixels.

Refusals that are known before the first event are ordinary problem responses; later ones are the last event.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from foreframe_server.calls import Answer
from foreframe_server.codec import (
    KEEP_ALIVE,
    Asked,
    Media,
    decode_streamed,
    encode_accepted,
    encode_estimate,
    encode_prediction,
    encode_update,
    write_event,
)
from foreframe_server.disconnects import ClientLeft
from foreframe_server.errors import ServiceError
from foreframe_server.problems import problem_response
from foreframe_server.routes.exchange import Opened, close_exchange, open_exchange
from foreframe_server.routes.host import host_of
from foreframe_server.service import PredictionService, Progress

_KEEP_ALIVE_S = 5.0
_REFUSAL_WAIT_S = 0.25
"""How long the first event waits for a refusal, which then keeps its status."""


class Newest:
    """The improvement that waits to be told: one place, and a newer one takes it."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._stirred = asyncio.Event()

    def put(self, progress: Progress) -> None:
        """Let an improvement wait, in place of an older one."""
        self._progress = progress
        self._stirred.set()

    def wake(self) -> None:
        """Let whoever waits look around."""
        self._stirred.set()

    async def wait(self, timeout_s: float) -> None:
        """Wait until there is something to look at, or time is up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._stirred.wait()

    async def take(self, timeout_s: float) -> Progress | None:
        """Wait, then take the improvement away; None when woken or timed out without one."""
        await self.wait(timeout_s)
        self._stirred.clear()
        progress, self._progress = self._progress, None
        return progress


class EventStream(StreamingResponse):
    """Sends events as they come; `leave` is called at the end, however it comes."""

    media_type = Media.EVENTS.value

    def __init__(self, events: AsyncIterator[bytes], headers: Mapping[str, str], leave: Callable[[], object]) -> None:
        super().__init__(events, headers=headers)
        self._leave = leave

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Send the stream. Who is gone is not told so."""
        try:
            await self.stream_response(send)
        except OSError:
            scope["state"]["problem_code"] = ClientLeft.code
        finally:
            self._leave()


class _Telling:
    """One prediction on its way, and how its events are written."""

    def __init__(self, request: Request, service: PredictionService, opened: Opened[Asked]) -> None:
        self._request = request
        self._contract = service.contract
        self._opened = opened
        self._newest = Newest()
        self._num_sent = 0
        self._answering = asyncio.create_task(service.predict(opened.asked.query, opened.call, self._newest.put))
        self._answering.add_done_callback(self._on_answered)

    def _on_answered(self, answering: asyncio.Task[Answer]) -> None:
        if not answering.cancelled():
            answering.exception()  # looked at: when the client has gone, nobody else does
        self._newest.wake()

    async def settle(self) -> None:
        """Wait a moment for a refusal, and raise it."""
        try:
            await self._newest.wait(_REFUSAL_WAIT_S)
            if self._answering.done():
                self._answering.result()
        except asyncio.CancelledError:
            self.leave()
            raise

    def leave(self) -> None:
        """Let the prediction be: nobody listens any more."""
        self._answering.cancel()

    async def events(self) -> AsyncGenerator[bytes]:
        """Write event after event."""
        asked, call = self._opened.asked, self._opened.call
        yield self._event("accepted", encode_accepted(asked, self._contract, call))
        try:
            async for event in self._improvements():
                yield event
            reply = await close_exchange(
                self._request, self._contract, self._opened, self._answering.result(), encode_prediction
            )
            yield self._event("done", reply.body)
        except ClientLeft as error:
            self._request.state.problem_code = error.code
        except ServiceError as error:
            yield self._problem(error)
        except Exception:
            yield self._problem(ServiceError("The server failed; the request id finds the cause in its log."))
            raise

    async def _improvements(self) -> AsyncGenerator[bytes]:
        while True:
            progress = await self._newest.take(_KEEP_ALIVE_S)
            if self._answering.done():
                return
            yield KEEP_ALIVE if progress is None else await self._improvement(progress)

    async def _improvement(self, progress: Progress) -> bytes:
        name, encode = ("estimate", encode_estimate) if progress.is_estimate else ("update", encode_update)
        asked, call = self._opened.asked, self._opened.call
        data = await host_of(self._request).compute(encode, asked, progress.prediction, self._contract, call)
        return self._event(name, data)

    def _problem(self, error: ServiceError) -> bytes:
        self._request.state.problem_code = error.code
        return self._event("error", bytes(problem_response(error, self._opened.call.request_id).body))

    def _event(self, name: str, data: bytes) -> bytes:
        self._num_sent += 1
        return write_event(self._num_sent, name, data)


async def stream_prediction(request: Request, service: PredictionService) -> Response:
    """Answer a prediction request event by event. Raises what is known before the first of them."""
    opened = await open_exchange(request, service.contract, decode_streamed, (Media.EVENTS,))
    telling = _Telling(request, service, opened)
    await telling.settle()
    return EventStream(telling.events(), _headers(opened), telling.leave)


def _headers(opened: Opened[Asked]) -> dict[str, str]:
    return {
        "Server-Timing": f"receive;dur={opened.receive_ms:.3f}, decode;dur={opened.decode_ms:.3f}",
        "Cache-Control": "no-store",
        "Vary": "Accept",
        "X-Accel-Buffering": "no",  # nginx would hold events back
    }
