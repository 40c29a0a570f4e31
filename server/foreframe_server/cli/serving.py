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

import structlog
import uvicorn
from fastapi import FastAPI

from foreframe_engines import BundleError, Contract
from foreframe_server.app import create_app
from foreframe_server.cli.faults import Fault
from foreframe_server.errors import ServiceError
from foreframe_server.opening import OpenEngines
from foreframe_server.protocols.head import HeadLimits
from foreframe_server.protocols.server import ADMIN, PROTOCOLS, PUBLIC, DoorServer, Listener
from foreframe_server.protocols.sockets import address_of, affordable_connections, open_listener, remove_path
from foreframe_server.protocols.state import DoorLimits, DoorState
from foreframe_server.protocols.visitors import Visitors
from foreframe_server.protocols.websocket import GuardedWebSocket
from foreframe_server.routes.host import Host
from foreframe_server.settings import HttpSettings, Settings

_POLL_S = 0.02
_SWITCH_S = 0.001
"""How long a busy thread keeps others from running Python: the event loop must answer while numbers are crunched."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Door:
    """An app, the socket it will listen on, and what runs it."""

    app: FastAPI
    socket: socket.socket
    server: DoorServer

    @property
    def host(self) -> Host:
        return self.app.state.host

    def stop(self) -> None:
        self.host.leave()
        self.server.should_exit = True


def serve_until_stopped(
    settings: Settings, announce: Callable[[str, Contract], None], open_engines: OpenEngines | None = None
) -> None:
    """Serve until SIGINT or SIGTERM; `announce` is told the address once questions are answered.

    Raises BundleError for a bad model, Fault for a taken port.
    """
    door = _open(settings, open_engines)
    threading.Thread(target=_announce, args=(door, announce), name="foreframe-announce", daemon=True).start()
    try:
        door.server.run()
    finally:
        _remove_paths(settings.http)
    _check_started(door)


@contextlib.contextmanager
def running_server(settings: Settings, open_engines: OpenEngines | None = None) -> Iterator[str]:
    """Serve in a thread until the block ends; gives the address once questions are answered.

    Raises BundleError for a bad model, Fault for a taken port.
    """
    door = _open(settings, open_engines)
    thread = threading.Thread(target=door.server.run, name="foreframe-server", daemon=True)
    thread.start()
    try:
        while not _is_ready(door):
            if not thread.is_alive():
                raise Fault("the server stopped while it started; its log says why")
            time.sleep(_POLL_S)
        yield address_of(door.socket)
    finally:
        door.stop()
        thread.join()
        _remove_paths(settings.http)


def wait_for_signal() -> None:
    """Wait for SIGINT or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()


def _open(settings: Settings, open_engines: OpenEngines | None) -> _Door:
    app = create_app(settings, open_engines)
    sys.setswitchinterval(_SWITCH_S)
    public = _listen(settings.http, app.state.host, PUBLIC)
    admin = None if settings.http.admin_port is None else _listen(settings.http, app.state.host, ADMIN)
    server = DoorServer(
        _uvicorn_config(app, settings.http),
        public,
        admin,
        lame_duck_s=settings.http.lame_duck_s,
        on_leaving=app.state.host.leave,
    )
    return _Door(app, public.socket, server)


def _uvicorn_config(app: FastAPI, http: HttpSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=PROTOCOLS[http.parser],
        ws=GuardedWebSocket,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(http.trusted_proxies),
        forwarded_allow_ips=http.trusted_proxies,
        timeout_keep_alive=math.ceil(http.keep_alive_s),
        ws_max_size=http.max_message_bytes,
        ws_per_message_deflate=False,  # frames hardly shrink, and the event loop would wait for it
        timeout_graceful_shutdown=math.ceil(max(0.0, http.drain_s - http.lame_duck_s)),
    )


def _listen(http: HttpSettings, host: Host, name: str) -> Listener:
    address, port = (http.host, http.port) if name == PUBLIC else (http.admin_host, http.admin_port or 0)
    try:
        opened = open_listener(address, port)
    except OSError as error:
        raise Fault(f"cannot listen on {address} port {port}: {_reason(error)}") from error
    if name == ADMIN:
        _log.info("operators are answered", address=address_of(opened))
    return Listener(opened, DoorState(_limits(http), _visitors(http, host), name))


def _remove_paths(http: HttpSettings) -> None:
    remove_path(http.host)
    if http.admin_port is not None:
        remove_path(http.admin_host)


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)


def _limits(http: HttpSettings) -> DoorLimits:
    return DoorLimits(
        head=HeadLimits(http.max_head_bytes, http.max_request_line_bytes, http.max_headers),
        header_timeout_s=http.header_timeout_s,
        body_timeout_s=http.body_timeout_s,
        keep_alive_s=http.keep_alive_s,
        min_rate=http.min_rate,
        max_chunks=http.max_chunks,
    )


def _visitors(http: HttpSettings, host: Host) -> Visitors:
    try:
        max_connections = affordable_connections(http.max_connections)
    except OSError as error:
        raise Fault(_reason(error)) from error
    return Visitors(
        max_connections=max_connections,
        max_per_address=http.max_connections_per_address,
        free=[address.strip() for address in http.trusted_proxies.split(",")],
        on_refusal=lambda code: host.metrics.count_request("unmatched", code, 0.0),
    )


def _announce(door: _Door, announce: Callable[[str, Contract], None]) -> None:
    try:
        while not _is_ready(door):
            time.sleep(_POLL_S)
    except (BundleError, Fault):
        door.stop()
        return
    # What stands now stands for good: left out of later collections, it no longer stops the event loop for them.
    gc.collect()
    gc.freeze()
    announce(address_of(door.socket), door.host.open_contract())


def _is_ready(door: _Door) -> bool:
    if not door.server.started:  # nor could it be stopped in order
        return False
    _check_started(door)
    return door.host.is_ready


def _check_started(door: _Door) -> None:
    """Say in one line what the app can only log. Raises BundleError or Fault when no model will ever be open."""
    match door.host.failure:
        case None:
            return
        case BundleError() as error:
            raise error
        case ServiceError() as error:
            raise Fault(error.detail) from error
        case error:
            raise Fault("the model could not be started; the log says why") from error
