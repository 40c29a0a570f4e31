"""What surrounds every request and websocket: its id, its line in the log, its place in the metrics, a body's bounds.

Plain ASGI, so that bodies are bounded while they arrive and no reply is copied. Knows no route.
"""

import asyncio
import contextlib
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foreframe_server.calls import REQUEST_ID
from foreframe_server.errors import PayloadTooLarge, RequestTimeout, ServiceError, UnsupportedMedia
from foreframe_server.metrics import Metrics
from foreframe_server.problems import NotFound, closing_messages, cut_off, error_response, unexpected_error

_REQUEST_ID = re.compile(REQUEST_ID)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

_STARTS = frozenset({"http.response.start", "websocket.http.response.start"})
_SWITCHING_PROTOCOLS = 101

_log = structlog.get_logger("foreframe.requests")


def _new_id() -> str:
    # Not from the system's source: to ask it is to let another thread run Python first.
    return f"{random.getrandbits(64):016x}"


def _matching(pattern: re.Pattern[str], text: str | None) -> str | None:
    return text if text is not None and pattern.fullmatch(text) else None


@dataclass(slots=True)
class _Visit:
    """One request on its way through, or one websocket from its opening to its end."""

    scope: Scope
    send: Send
    request_id: str
    received_s: float
    clock: Callable[[], float]
    status: int = 0

    async def relay(self, message: Message) -> None:
        """Pass a message on, with the headers that every reply has."""
        if message["type"] in _STARTS:
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.request_id
            headers["X-Content-Type-Options"] = "nosniff"
            headers.setdefault("Server-Timing", f"total;dur={self.elapsed_s() * 1000:.3f}")
        elif message["type"] == "websocket.accept":
            self.status = _SWITCHING_PROTOCOLS
            message.setdefault("headers", [])
            MutableHeaders(scope=message)["X-Request-Id"] = self.request_id
        elif message["type"] == "websocket.close" and self.status == 0:
            # A websocket that no route took: servers answer it so.
            self.status, self.scope["state"]["problem_code"] = 403, NotFound.code
        await self.send(message)

    def elapsed_s(self) -> float:
        """Seconds since the first byte."""
        return self.clock() - self.received_s

    def is_websocket(self) -> bool:
        """Whether this is a websocket."""
        return self.scope["type"] == "websocket"

    def route(self) -> str:
        """Template of the route that answered."""
        return getattr(self.scope.get("route"), "path", "unmatched")

    def key(self) -> str | None:
        """Id of the key that was shown and was right, where one is needed."""
        return getattr(self.scope["state"].get("caller"), "key_id", None) or None

    def code(self) -> str:
        """`ok` or the code of the problem."""
        # A stream whose status was good may still end in a problem.
        is_fine = 0 < self.status < 400
        return str(self.scope["state"].get("problem_code", "ok" if is_fine else "unknown"))


class RequestLog:
    """Names, times, counts and logs every request, and answers for what nobody else caught.

    A websocket is one line in the log, and counted where it is refused; its messages are counted by their route.
    is_leaving: whether the server was told to stop, so that what is cancelled was cut off and is told so.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        is_leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._clock = clock
        self._is_leaving = is_leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request or websocket."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        visit = self._open(scope, send)
        try:
            await self._app(scope, receive, visit.relay)
        except asyncio.CancelledError:
            if not self._is_leaving():
                raise
            # Raised on, it would become a traceback and a reply without a problem document.
            await self._answer_failure(visit, receive, cut_off())
        except Exception:  # noqa: BLE001 - the border of a request: logged, counted, answered
            _log.exception("request failed", request_id=visit.request_id)
            await self._answer_failure(visit, receive, unexpected_error())
        finally:
            self._close(visit)

    def _open(self, scope: Scope, send: Send) -> _Visit:
        given = _matching(_REQUEST_ID, Headers(scope=scope).get("x-request-id"))
        visit = _Visit(scope, send, given or _new_id(), self._clock(), self._clock)
        state = scope.setdefault("state", {})
        state["request_id"], state["received_s"] = visit.request_id, visit.received_s
        return visit

    async def _answer_failure(self, visit: _Visit, receive: Receive, error: ServiceError) -> None:
        visit.scope["state"]["problem_code"] = error.code
        if visit.status == 0:
            await error_response(error, visit.scope)(visit.scope, receive, visit.relay)
        elif visit.is_websocket():
            with contextlib.suppress(OSError, RuntimeError):  # it may be closed already
                for message in closing_messages(error):
                    await visit.relay(message)

    def _close(self, visit: _Visit) -> None:
        seconds, traceparent = visit.elapsed_s(), Headers(scope=visit.scope).get("traceparent")
        if visit.status != _SWITCHING_PROTOCOLS:
            self._metrics.count_request(visit.route(), visit.code(), seconds)
        _log.info(
            "connection" if visit.is_websocket() else "request",
            request_id=visit.request_id,
            method=visit.scope.get("method", "GET"),
            route=visit.route(),
            status=visit.status,
            code=visit.code(),
            duration_ms=round(seconds * 1000, 3),
            key=visit.key(),
            traceparent=_matching(_TRACEPARENT, traceparent),
        )


class BodyBounds:
    """Refuses bodies that are too large, too slow or compressed, before they are whole."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, body_timeout_s: float) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        error = self._refusal(Headers(scope=scope))
        if error is not None:
            scope["state"]["problem_code"] = error.code
            await error_response(error, scope)(scope, receive, send)
            return
        await self._app(scope, _BoundedReceive(receive, self._max_body_bytes, self._body_timeout_s), send)

    def _refusal(self, headers: Headers) -> ServiceError | None:
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            return UnsupportedMedia("Compressed request bodies are not read.")
        length = headers.get("content-length", "0")
        # More digits than any limit has: compared as text, so that no header costs a large number.
        if len(length) > 15 or (length.isdecimal() and int(length) > self._max_body_bytes):
            return _too_large(self._max_body_bytes)
        return None


def _too_large(max_body_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"A request body may have {max_body_bytes} bytes.")


class _BoundedReceive:
    """A request's `receive` that counts bytes and time until the body is whole, then only passes messages on."""

    def __init__(self, receive: Receive, max_body_bytes: int, timeout_s: float) -> None:
        self._receive = receive
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s
        self._deadline_s = asyncio.get_running_loop().time() + timeout_s
        self._num_bytes = 0
        self._is_whole = False

    async def __call__(self) -> Message:
        if self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline_s):
                message = await self._receive()
        except TimeoutError:
            detail = f"The body did not arrive within {self._timeout_s:g} s."
            raise RequestTimeout(detail, retry_after_ms=1000) from None
        self._count(message)
        return message

    def _count(self, message: Message) -> None:
        self._num_bytes += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        if self._num_bytes > self._max_body_bytes:
            raise _too_large(self._max_body_bytes)
