"""The progress of one prediction as server-sent events. Knows no pixels.

Refusals that are known before the first event are ordinary problem responses; later ones are the last event.
"""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from foreframe_server.calls import Answer
from foreframe_server.codec import KEEP_ALIVE, Asked, Media, write_event
from foreframe_server.disconnects import ClientLeft
from foreframe_server.errors import ServiceError
from foreframe_server.problems import problem_response, unexpected_error
from foreframe_server.routes.exchange import Offer, Opened, open_request
from foreframe_server.routes.host import host_of
from foreframe_server.routes.telling import Telling

_KEEP_ALIVE_S = 5.0


class EventStream(StreamingResponse):
    """Sends events as they come; `leave` is called at the end, however it comes."""

    media_type = Media.EVENTS.value

    def __init__(
        self, events: AsyncIterator[bytes], headers: Mapping[str, str], leave: Callable[[], Awaitable[object]]
    ) -> None:
        super().__init__(events, headers=headers)
        self._leave = leave

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Send the stream. Who is gone is not told so."""
        try:
            await self.stream_response(send)
        except OSError:
            scope["state"]["problem_code"] = ClientLeft.code
        finally:
            await self._leave()


class _Events:
    """Writes one prediction's news as events."""

    def __init__(self, request: Request, telling: Telling) -> None:
        self._request = request
        self._telling = telling
        self._num_sent = 0

    async def write(self) -> AsyncGenerator[bytes]:
        """Write event after event, and comments where there are none."""
        try:
            async for news in self._telling.news(_KEEP_ALIVE_S):
                yield KEEP_ALIVE if news is None else self._event(news.name, news.body)
        except ClientLeft as error:
            self._request.state.problem_code = error.code
        except ServiceError as error:
            yield self._problem(error)
        except Exception:
            yield self._problem(unexpected_error())
            raise

    def _problem(self, error: ServiceError) -> bytes:
        self._request.state.problem_code = error.code
        return self._event("error", bytes(problem_response(error, self._request.state.request_id).body))

    def _event(self, name: str, data: bytes) -> bytes:
        self._num_sent += 1
        return write_event(self._num_sent, name, data)


async def stream_prediction(request: Request, offer: Offer[Asked, Answer]) -> Response:
    """Answer a prediction request event by event. Raises what is known before the first of them."""
    async with contextlib.AsyncExitStack() as stack:
        loan = stack.enter_context(host_of(request).models.loan())
        opened = await open_request(request, offer, (Media.EVENTS,), loan)
        telling = Telling(opened)
        stack.push_async_callback(telling.leave)
        await telling.settle()
        leave = stack.pop_all().aclose
    return EventStream(_Events(request, telling).write(), _headers(opened), leave)


def _headers(opened: Opened[Asked, Answer]) -> dict[str, str]:
    return {
        "Server-Timing": f"receive;dur={opened.receive_ms:.3f}, decode;dur={opened.decode_ms:.3f}",
        "Cache-Control": "no-store",
        "Vary": "Accept",
        "X-Accel-Buffering": "no",  # nginx would hold events back
    }
