"""A uvicorn server with the guarded door: a second listener for operators, and a leaving in order.

SIGTERM: not ready, still serving for a while, then no new connection, running requests to their end, exit 0. SIGINT:
the same without the while. A second signal ends the process at once.
"""

import asyncio
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, Final

import structlog
from uvicorn.config import Config
from uvicorn.server import Server

from foreframe_server.protocols.guard import Guard, GuardedH11, GuardedHttpTools
from foreframe_server.protocols.state import DoorState

PUBLIC: Final = "public"
ADMIN: Final = "admin"
_CHECK_S = 0.25
_CLOSE: Final = (b"connection", b"close")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Listener:
    """A socket and what its connections share."""

    socket: socket.socket
    state: DoorState


class DoorServer(Server):
    """Serves an app on a public listener, and perhaps on an admin one.

    lame_duck_s: how long to serve after SIGTERM. on_leaving: is called when a signal comes, in the main thread.
    """

    def __init__(
        self,
        config: Config,
        public: Listener,
        admin: Listener | None = None,
        *,
        lame_duck_s: float = 0.0,
        on_leaving: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(config)
        self.server_state = public.state
        self._public = public
        self._admin = admin
        self._lame_duck_s = lame_duck_s
        self._on_leaving = on_leaving
        self._leave_at_s: float | None = None
        self._is_stopping_said = False
        self._admin_server: asyncio.Server | None = None

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop. The sockets are the listeners'."""
        super().run(sockets=[self._public.socket] if sockets is None else sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the app, then listen."""
        await super().startup(sockets=sockets)
        self._checking = asyncio.create_task(self._check_visitors())
        if self._admin is not None:
            protocol: Callable[..., Any] = self.config.http_protocol_class
            make = partial(protocol, self.config, self._admin.state, self.lifespan.state)
            self._admin_server = await asyncio.get_running_loop().create_server(make, sock=self._admin.socket)

    async def _check_visitors(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_S)
            now_s = asyncio.get_running_loop().time()
            for state in self._states():
                state.visitors.check(now_s)

    def _states(self) -> Sequence[DoorState]:
        return [listener.state for listener in (self._public, self._admin) if listener is not None]

    async def on_tick(self, counter: int) -> bool:
        """Keep the headers of every reply, and say whether to stop."""
        if self._leave_at_s is not None and time.monotonic() >= self._leave_at_s:
            self.should_exit = True
        self._say_stopping()
        is_over = await super().on_tick(counter)
        if self._leave_at_s is not None and _CLOSE not in self.server_state.default_headers:
            # In place: replies that are being made hold this list, and no client may ask on a connection that ends.
            self.server_state.default_headers.append(_CLOSE)
        if self._admin is not None:
            self._admin.state.default_headers = [*self.server_state.default_headers]
        return is_over

    def _say_stopping(self) -> None:
        # Here and not in the handler of the signal, which may interrupt a line that is being written.
        if self._leave_at_s is None or self._is_stopping_said:
            return
        self._is_stopping_said = True
        lame_s = max(0.0, self._leave_at_s - time.monotonic())
        drain_s = self.config.timeout_graceful_shutdown
        limit = "" if drain_s is None else f", up to {math.ceil(lame_s + drain_s)} s"
        _log.info(f"stopping{limit}; again stops now")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, let running requests end, stop the app; operators are answered until then."""
        try:
            await super().shutdown(sockets=sockets)
        finally:
            self._checking.cancel()
            if self._admin_server is not None and self._admin is not None:
                self._admin_server.close()
                for connection in list(self._admin.state.connections):
                    connection.transport.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to leave; at the second signal, end the process."""
        del frame
        if self._leave_at_s is not None:
            logging.getLogger("uvicorn.error").warning("ended by a second signal")
            os._exit(128 + sig)
        self._leave_at_s = time.monotonic() + (self._lame_duck_s if sig == signal.SIGTERM else 0.0)
        self._on_leaving()


PROTOCOLS: Mapping[str, type[Guard]] = {"h11": GuardedH11, "httptools": GuardedHttpTools}
"""The guarded protocol of each parser."""
