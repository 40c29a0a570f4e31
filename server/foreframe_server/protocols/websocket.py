"""uvicorn's websocket protocol with the door's limits: a message must come in time, and a leaving server says so."""

import asyncio
from functools import partial
from typing import Any

from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from foreframe_server.protocols.guard import GRACE_S
from foreframe_server.protocols.pace import Outflow, Pace
from foreframe_server.protocols.refusals import MalformedRequest, refusal_bytes
from foreframe_server.protocols.state import DoorState

SERVICE_RESTART = 1012
_INVALID_DATA = 1007
_POLICY_VIOLATION = 1008


class GuardedWebSocket(WebSocketsSansIOProtocol):
    """A websocket of the guarded door."""

    def __init__(
        self,
        config: Config,
        server_state: DoorState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._door = server_state
        # A leaving server ends its connections with their replies; one that agrees to be a websocket goes on.
        self.default_headers = [field for field in server_state.default_headers if field[0] != b"connection"]
        self.app = partial(self._see_off, config.loaded_app)
        self._pace = Pace(self.loop.time())
        self._outflow = Outflow(self.loop.time())
        self._is_leaving = False
        self._is_failed = False
        self.num_served = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection over."""
        super().connection_made(transport)
        self._door.visitors.enter(transport, self, None, self.loop.time())

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._door.visitors.exit(self.transport)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what arrived."""
        if not self._is_amid_message():
            self._pace.forgive(self.loop.time())
        self._pace.add(len(data))
        super().data_received(data)
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            self._refuse_handshake()

    def handle_connect(self, event: Request) -> None:
        """Agree to be a websocket, or say why not without a word of what was asked."""
        if self.conn.accept(event).status_code == 101:
            super().handle_connect(event)
        else:
            self._refuse_handshake()

    def _refuse_handshake(self) -> None:
        self.handshake_initiated = self.handshake_complete = self.close_sent = True
        error = MalformedRequest("A websocket's handshake has one key of 16 bytes in base64, version 13, and no body.")
        self._door.visitors.note(error.code)
        self.transport.write(refusal_bytes(error))
        self.transport.close()

    def send_receive_event_to_app(self) -> None:
        """Hand a whole message on; text that is none ends the connection."""
        if self.curr_msg_data_type == "text" and not _is_text(b"".join(self.frames)):
            self.conn.fail(_INVALID_DATA, "text is UTF-8")
            self.handle_parser_exception()
        else:
            super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        """End the connection for what its client sent."""
        self._is_failed = True
        super().handle_parser_exception()

    async def send(self, message: ASGISendEvent) -> None:
        """Send what the app says. Raises ClientDisconnected when the connection was ended meanwhile."""
        try:
            await super().send(message)
        except RuntimeError:  # said after the end, which the app cannot know of
            if self._is_failed:
                raise ClientDisconnected from None
            raise

    def _is_amid_message(self) -> bool:
        return bool(self.frames) or len(self.conn.reader.buffer) > 0

    @property
    def idle_since_s(self) -> float | None:
        """Nothing: a websocket is never in the way of newcomers."""
        return None

    def leave(self) -> None:
        """End the connection at once."""
        self.transport.abort()

    def check(self, now_s: float) -> None:
        """End the connection if its client sends or reads a message too slowly."""
        limits = self._door.limits
        num_waiting = self.transport.get_write_buffer_size()
        if self._outflow.is_stuck(num_waiting, now_s, grace_s=limits.body_timeout_s, min_rate=limits.min_rate):
            self.transport.abort()
        elif self.read_paused or not self._is_amid_message():
            self._pace.forgive(now_s)
        elif self._pace.is_too_slow(now_s, grace_s=GRACE_S, min_rate=limits.min_rate):
            self._fail()

    def _fail(self) -> None:
        self.conn.fail(_POLICY_VIOLATION, "a message came too slowly")
        self.handle_parser_exception()
        self._door.visitors.note("request_timeout")

    def shutdown(self) -> None:
        """Tell the app that no message follows, and the client when what it asked is answered."""
        if self.close_sent or not self.handshake_complete:
            super().shutdown()
            return
        self._is_leaving = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": SERVICE_RESTART, "reason": "restart"})

    async def _see_off(
        self, app: ASGI3Application, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        await app(scope, receive, send)
        if self._is_leaving and not self.close_sent and not self.disconnected:
            await send({"type": "websocket.close", "code": SERVICE_RESTART, "reason": "the server stops"})


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
