"""A guarded server on a plain app, spoken to in raw bytes."""

import asyncio
import contextlib
import json
from dataclasses import dataclass, field

import pytest
import uvicorn

from foreframe_server.protocols.server import ADMIN, PROTOCOLS, PUBLIC, DoorServer, Listener
from foreframe_server.protocols.sockets import open_listener
from foreframe_server.protocols.state import DoorLimits, DoorState
from foreframe_server.protocols.visitors import Visitors
from foreframe_server.protocols.websocket import GuardedWebSocket

PATIENCE_S = 20
UPGRADE = (
    b"GET /line HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@dataclass
class EchoApp:
    """Answers with what it was asked, at /wait once `go_on` is set; says over a websocket what it is told."""

    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    seen: list = field(default_factory=list)

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self.live(receive, send)
        elif scope["type"] == "websocket":
            await self.talk(receive, send)
        else:
            await self.answer(scope, receive, send)

    async def live(self, receive, send):
        for name in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{name}.complete"})

    async def talk(self, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            self.asked.set()
            await self.go_on.wait()
            await send({"type": "websocket.send", "bytes": message["bytes"]})
        self.seen.append(message["code"])

    async def answer(self, scope, receive, send):
        self.asked.set()
        if scope["path"] == "/wait":
            await self.go_on.wait()
        body, message = b"", {"more_body": True}
        while scope["path"] != "/early" and message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
        if message.get("type") == "http.disconnect":
            self.seen.append(scope["state"].get("refusal"))
            return
        if scope["path"] == "/large":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a" * 2**25})
            return
        about = {"path": scope["path"], "length": len(body), "listener": scope["state"]["listener"]}
        text = json.dumps({**about, "headers": len(scope["headers"])}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
        await send({"type": "http.response.body", "body": text})


@dataclass
class Door:
    """A running server and how to speak to it."""

    app: EchoApp
    server: DoorServer
    port: int
    admin_port: int
    serving: asyncio.Task

    async def connect(self, port=None):
        return await asyncio.open_connection("127.0.0.1", port or self.port)

    async def send(self, data, port=None):
        """Send bytes and read until the server ends the connection."""
        reader, writer = await self.connect(port)
        writer.write(data)
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await read_all(reader)
        finally:
            writer.close()


@pytest.fixture
def until():
    """Wait for what no event tells."""

    async def wait(is_so):
        async with asyncio.timeout(PATIENCE_S):
            while not is_so():  # noqa: ASYNC110 - looked at, as nothing tells
                await asyncio.sleep(0.005)

    return wait


async def read_all(reader):
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := await reader.read(65_536):
            received += piece
    return received


@pytest.fixture
def status_of():
    """Read the status of a reply, 0 for none."""
    return lambda reply: int(reply.split(b" ", 2)[1]) if reply else 0


@pytest.fixture(params=sorted(PROTOCOLS))
def parser(request):
    return request.param


def open_state(name, limits, max_connections, max_per_address):
    visitors = Visitors(max_connections=max_connections, max_per_address=max_per_address)
    return Listener(open_listener("127.0.0.1", 0), DoorState(limits, visitors, name))


@pytest.fixture
def serve(parser, until):
    """Serve the plain app with some limits."""

    @contextlib.asynccontextmanager
    async def start(limits=None, *, max_connections=1024, max_per_address=64, lame_duck_s=0.0, drain_s=10):
        app = EchoApp()
        config = uvicorn.Config(
            app,
            http=PROTOCOLS[parser],
            ws=GuardedWebSocket,
            log_config=None,
            access_log=False,
            proxy_headers=False,
            ws_per_message_deflate=False,
            timeout_graceful_shutdown=drain_s,
        )
        limits = limits or DoorLimits()
        public = open_state(PUBLIC, limits, max_connections, max_per_address)
        admin = open_state(ADMIN, limits, max_connections, max_per_address)
        server = DoorServer(config, public, admin, lame_duck_s=lame_duck_s)
        ports = [listener.socket.getsockname()[1] for listener in (public, admin)]
        serving = asyncio.create_task(server._serve([public.socket]))
        await until(lambda: server.started and server._admin_server)
        try:
            yield Door(app, server, *ports, serving)
        finally:
            app.go_on.set()
            server.should_exit = True
            await serving

    return start
