"""A server inside this process: in the main thread until a signal, or in a thread for as long as a block runs."""

import contextlib
import gc
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI

from foreframe_engines import Bundle, Contract, builtin_bundle
from foreframe_server.app import create_app
from foreframe_server.cli.faults import Fault
from foreframe_server.opening import OpenEngines
from foreframe_server.routes.host import Host
from foreframe_server.settings import HttpSettings, Settings

_POLL_S = 0.02
_SWITCH_S = 0.001
"""How long a busy thread keeps others from running Python: the event loop must answer while numbers are crunched."""


@dataclass(frozen=True, slots=True, eq=False)
class _Door:
    """An app, the socket it will listen on, and what runs it."""

    app: FastAPI
    socket: socket.socket
    server: uvicorn.Server

    @property
    def host(self) -> Host:
        return self.app.state.host

    @property
    def address(self) -> str:
        name, port = self.socket.getsockname()[:2]
        return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"

    def run(self) -> None:
        self.server.run(sockets=[self.socket])

    def stop(self) -> None:
        self.server.should_exit = True


def serve_until_stopped(
    settings: Settings, announce: Callable[[str, Contract], None], open_engines: OpenEngines | None = None
) -> None:
    """Serve until SIGINT or SIGTERM; `announce` is told the address once questions are answered.

    Raises BundleError for a bad model, Fault for a taken port.
    """
    door = _open(settings, open_engines)
    threading.Thread(target=_announce, args=(door, announce), name="foreframe-announce", daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn stops in order, then raises the signal again
        door.run()
    _check_started(door)


@contextlib.contextmanager
def running_server(settings: Settings, open_engines: OpenEngines | None = None) -> Iterator[str]:
    """Serve in a thread until the block ends; gives the address once questions are answered.

    Raises BundleError for a bad model, Fault for a taken port.
    """
    door = _open(settings, open_engines)
    thread = threading.Thread(target=door.run, name="foreframe-server", daemon=True)
    thread.start()
    try:
        while not _is_ready(door):
            if not thread.is_alive():
                raise Fault("the server stopped while it started; its log says why")
            time.sleep(_POLL_S)
        yield door.address
    finally:
        door.stop()
        thread.join()


def wait_for_signal() -> None:
    """Wait for SIGINT or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()


def _open(settings: Settings, open_engines: OpenEngines | None) -> _Door:
    # The app opens its model beside the door and can only log what is wrong; a person gets one line instead.
    if open_engines is None or settings.engine.bundle is not None:
        Bundle.open(settings.engine.bundle or builtin_bundle())
    app = create_app(settings, open_engines)
    sys.setswitchinterval(_SWITCH_S)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="websockets-sansio",
        ws_max_size=settings.http.max_message_bytes,
        ws_per_message_deflate=False,  # frames hardly shrink, and the event loop would wait for it
        timeout_graceful_shutdown=math.ceil(settings.http.drain_s),
    )
    return _Door(app, _listen(settings.http), uvicorn.Server(config))


def _listen(http: HttpSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
    try:
        return socket.create_server((http.host, http.port), family=family, backlog=2048)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise Fault(f"cannot listen on {http.host} port {http.port}: {reason}") from error


def _announce(door: _Door, announce: Callable[[str, Contract], None]) -> None:
    try:
        while not _is_ready(door):
            time.sleep(_POLL_S)
    except Fault:
        door.stop()
        return
    # What stands now stands for good: left out of later collections, it no longer stops the event loop for them.
    gc.collect()
    gc.freeze()
    announce(door.address, door.host.open_contract())


def _is_ready(door: _Door) -> bool:
    _check_started(door)
    return door.server.started and door.host.is_ready


def _check_started(door: _Door) -> None:
    if door.host.has_failed:
        raise Fault("the model could not be started; the log says why")
