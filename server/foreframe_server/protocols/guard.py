"""uvicorn's HTTP protocols behind a guard that reads first: both parsers get only what both read alike, in time.

Each request is handed on when the one before it was answered. Knows no route.
"""

import asyncio
from typing import TYPE_CHECKING, Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from foreframe_server.errors import RequestTimeout, ServiceError
from foreframe_server.protocols.framing import Framing, Phase
from foreframe_server.protocols.lingering import LingeringTransport
from foreframe_server.protocols.pace import Outflow, Pace
from foreframe_server.protocols.refusals import MalformedRequest, refusal_bytes
from foreframe_server.protocols.state import DoorState

GRACE_S = 2.0
"""What a network may stand still for before the rate counts."""

_LINGER_S = 1.0
"""How long a refused client may go on sending, so that it can read why before its connection breaks."""

_MAX_HELD_BYTES = 64 * 2**10

# The parts that are used are the same in both protocols; one is named for the type checker.
if TYPE_CHECKING:
    _Base = H11Protocol
else:
    _Base = object


class Guard(_Base):
    """What stands before a parser. A connection's `listener` is in the state of its requests."""

    def __init__(
        self,
        config: Config,
        server_state: DoorState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, {**app_state, "listener": server_state.listener}, _loop)
        self._door = server_state
        self._framing = Framing(server_state.limits.head, server_state.limits.max_chunks)
        self._is_refused = False
        self._is_flooded = False
        self._body_since_s = 0.0
        self.num_served = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Let the connection in, or say why not."""
        super().connection_made(cast("asyncio.Transport", LingeringTransport(transport, self._may_send, self._linger)))
        now_s = self.loop.time()
        self._pace, self._outflow = Pace(now_s), Outflow(now_s)
        address = None if self.client is None else self.client[0]
        error = self._door.visitors.enter(self.transport, self, address, now_s)
        if error is not None:
            self.refuse(error)

    def _may_send(self) -> bool:
        return self._is_refused or self._is_flooded or self._framing.phase is Phase.BODY

    def _linger(self) -> None:
        self._is_refused = True
        self._framing.discard()
        self._pace.forgive(self.loop.time())

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._door.visitors.exit(self.transport)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what arrived, and hand on what is a request."""
        self._unset_keepalive_if_required()
        if self._is_refused or self._is_flooded or self.transport.is_closing():
            return
        if self._framing.phase is Phase.HEAD and self._framing.num_held_bytes == 0:
            self._pace.forgive(self.loop.time())
        self._pace.add(len(data))
        self._framing.add(data)
        self._hand_on()

    def _hand_on(self) -> None:
        try:
            while (piece := self._take()) and not self._is_refused:
                super().data_received(piece)
                if self._is_handed_over():
                    return
        except ServiceError as error:
            self.refuse(error)

    def _take(self) -> bytes:
        """Return what the parser may read next. Raises ServiceError."""
        framing = self._framing
        if framing.phase is Phase.WHOLE and not self._is_answering():
            self._start_next()
        if framing.phase is Phase.WHOLE and framing.num_held_bytes > _MAX_HELD_BYTES:
            self._stop_after_answer()
        phase = framing.phase
        piece = framing.take()
        if phase is Phase.HEAD and framing.phase is not Phase.HEAD:
            self._begin_body()
        return piece

    def _begin_body(self) -> None:
        self._body_since_s = self.loop.time()
        self._pace.forgive(self._body_since_s)
        self._pace.add(self._framing.num_held_bytes)
        head = self._framing.head
        if head is not None and head.is_upgrade and self._framing.num_held_bytes:
            raise MalformedRequest("A websocket's frames come after the server has agreed to it.")

    def _start_next(self) -> None:
        head = self._framing.head
        if head is not None and head.is_last:
            self._framing.discard()
            return
        self._framing.start_next()
        self._pace.forgive(self.loop.time())

    def _stop_after_answer(self) -> None:
        """Forget what a client sends far ahead of its answer, and end the connection after that."""
        self._framing.discard()
        self._is_flooded = True
        self.cycle.keep_alive = False

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _is_handed_over(self) -> bool:
        return self.transport.get_protocol() is not self

    def on_response_complete(self) -> None:
        """Go on with what came meanwhile."""
        self.num_served += 1
        super().on_response_complete()
        if not self.transport.is_closing() and self._framing.phase is Phase.WHOLE:
            self._start_next()
            if self._framing.num_held_bytes:
                self._unset_keepalive_if_required()
                self._hand_on()

    @property
    def idle_since_s(self) -> float | None:
        """When it began to wait for a request's head, None while there is a request."""
        is_waiting = self._framing.phase is Phase.HEAD and not self._is_answering()
        return self._pace.since_s if is_waiting or self._is_refused else None

    def leave(self) -> None:
        """End the connection at once."""
        self.transport.abort()

    def check(self, now_s: float) -> None:
        """End the connection if its client sends or reads too slowly."""
        limits = self._door.limits
        num_waiting = self.transport.get_write_buffer_size()
        if self._outflow.is_stuck(num_waiting, now_s, grace_s=limits.body_timeout_s, min_rate=limits.min_rate) or (
            self._is_refused and now_s > self._pace.since_s + _LINGER_S
        ):
            self.transport.abort()
        elif self._framing.phase is Phase.BODY and not self._is_refused:
            self._check_body(now_s)
        elif self.idle_since_s is not None and not self._is_refused:
            self._check_head(now_s)

    def _check_head(self, now_s: float) -> None:
        limits = self._door.limits
        waited_s = now_s - self._pace.since_s
        if self._framing.num_held_bytes == 0:
            if waited_s > limits.keep_alive_s:
                self.transport.close()
        elif waited_s > limits.header_timeout_s:
            self.refuse(_too_slow(f"The headers did not arrive within {limits.header_timeout_s:g} s."))

    def _check_body(self, now_s: float) -> None:
        limits = self._door.limits
        if self.flow.read_paused:
            self._pace.forgive(now_s)
        elif now_s > self._body_since_s + limits.body_timeout_s:
            self.refuse(_too_slow(f"The body did not arrive within {limits.body_timeout_s:g} s."))
        elif self._pace.is_too_slow(now_s, grace_s=GRACE_S, min_rate=limits.min_rate):
            self.refuse(_too_slow(f"The body came with fewer than {limits.min_rate:g} bytes a second."))

    def refuse(self, error: ServiceError) -> None:
        """Say what is wrong in place of an answer, or just end the connection when the answer has begun."""
        self._is_refused, request_id = True, None
        is_begun = self._framing.phase is Phase.BODY or self._is_answering()
        if is_begun and self.cycle is not None:
            if self.cycle.response_started:
                self.transport.abort()
                return
            request_id = self._tell_app(error)
        else:
            self._door.visitors.note(error.code)
        self.transport.write(refusal_bytes(error, request_id))
        self.transport.close()

    def _tell_app(self, error: ServiceError) -> str | None:
        """Let the app see its client gone, and why. Returns the id that it has given the request."""
        state = self.cycle.scope["state"]
        state["refusal"] = error
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        request_id: str | None = state.get("request_id")
        return request_id

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser would not read."""
        del msg  # uvicorn's words for it
        self.refuse(MalformedRequest("The request cannot be read."))

    def shutdown(self) -> None:
        """End the connection, after the answer where there is a request."""
        if self._is_refused:
            self.transport.abort()
        else:
            super().shutdown()


def _too_slow(detail: str) -> RequestTimeout:
    return RequestTimeout(detail, retry_after_ms=1000)


class GuardedH11(Guard, H11Protocol):
    """h11 behind the guard."""


class GuardedHttpTools(Guard, HttpToolsProtocol):  # type: ignore[misc]  # one base is named for both
    """httptools behind the guard."""

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body: one that is read before the next comes is handed on as it is, not copied twice."""
        if self.cycle is not None:
            # Adding to no bytes and making bytes of bytes, as uvicorn goes on to do, copies nothing.
            self.cycle.body = bytearray(self.cycle.body) if self.cycle.body else b""  # type: ignore[assignment]
        super().on_body(body)
