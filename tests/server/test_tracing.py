"""Spans: one a request, in the caller's trace, with its stages; and a collector that is away costs nothing."""

import contextlib
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import anyio
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute

from foreframe_engines.testing import ToyRolloutEngine
from foreframe_server.app import create_app
from foreframe_server.metrics import Metrics
from foreframe_server.middleware import RequestLog
from foreframe_server.opening import given
from foreframe_server.settings import Settings, TracingSettings
from foreframe_server.tracing import RequestTrace, open_provider, read_stages

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = f"00-{TRACE}-{PARENT}-01"
NOBODY = "http://127.0.0.1:9/v1/traces"


async def answer(request):
    headers = {"Server-Timing": "queue;dur=1.500, denoise;dur=20.000, total;dur=30"}
    return PlainTextResponse(request.headers.get("traceparent", ""), headers=headers)


async def fail(_request):
    raise RuntimeError("the toy breaks")


async def talk(websocket):
    await websocket.accept()
    await websocket.close()


class Traced:
    """A small app under the server's own log and trace, and the spans that it wrote."""

    def __init__(self, **settings):
        self.exporter = InMemorySpanExporter()
        self.provider = open_provider(TracingSettings(endpoint=NOBODY, **settings), self.exporter)
        routes = [Route("/things/{id}", answer), Route("/broken", fail), Route("/healthz", answer)]
        app = Starlette(routes=[*routes, WebSocketRoute("/line", talk)])
        app.add_middleware(RequestLog, metrics=Metrics())
        app.add_middleware(RequestTrace, provider=self.provider)
        self.app = app

    def ask(self, path, **headers):
        async def get():
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.get(path, headers=headers)

        return anyio.run(get)

    @property
    def spans(self):
        self.provider.force_flush()
        return self.exporter.get_finished_spans()


@pytest.fixture
def traced():
    return Traced()


def test_a_request_continues_the_callers_trace(traced):
    traced.ask("/things/7", traceparent=CALLER, **{"X-Request-Id": "tick-1"})
    (span,) = traced.spans
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert (span.name, span.kind) == ("GET /things/{id}", SpanKind.SERVER)
    told = {"http.route": "/things/{id}", "http.response.status_code": 200, "foreframe.request_id": "tick-1"}
    assert told.items() <= dict(span.attributes).items()
    assert span.resource.attributes["service.name"] == "foreframe"


def test_what_is_inside_sees_the_spans_own_traceparent(traced):
    reply = traced.ask("/things/7", traceparent=CALLER)
    (span,) = traced.spans
    assert reply.text == f"00-{TRACE}-{span.context.span_id:016x}-01"


@pytest.mark.parametrize("traceparent", ["", "00-0-0-01", f"00-{'0' * 32}-{PARENT}-01", "x" * 4000])
def test_a_traceparent_that_is_none_begins_a_new_trace(traced, traceparent):
    traced.ask("/things/7", traceparent=traceparent)
    (span,) = traced.spans
    assert span.parent is None
    assert span.context.is_valid


def test_the_stages_of_a_reply_are_on_its_span(traced):
    traced.ask("/things/7")
    (span,) = traced.spans
    stages = {name: value for name, value in span.attributes.items() if name.startswith("foreframe.stage.")}
    assert stages == {
        "foreframe.stage.queue_ms": 1.5,
        "foreframe.stage.denoise_ms": 20.0,
        "foreframe.stage.total_ms": 30.0,
    }


def test_a_failure_is_an_error_and_a_refusal_is_none(traced):
    traced.ask("/broken")
    traced.ask("/nowhere")
    broken, nowhere = traced.spans
    assert (broken.status.status_code, broken.attributes["foreframe.code"]) == (StatusCode.ERROR, "model_fault")
    assert nowhere.status.status_code is StatusCode.UNSET
    assert nowhere.attributes["http.route"] == "unmatched"


def test_probes_leave_no_span(traced):
    traced.ask("/healthz")
    assert traced.spans == ()


def test_an_unknown_path_is_not_written_into_a_span(traced):
    traced.ask("/secret-of-the-caller")
    (span,) = traced.spans
    assert "secret" not in span.to_json()


def test_nothing_is_kept_of_traces_that_are_not_sampled():
    traced = Traced(sample_ratio=0.0)
    traced.ask("/things/7")
    traced.ask("/things/7", traceparent=CALLER.replace("-01", "-00"))
    assert traced.spans == ()
    traced.ask("/things/7", traceparent=CALLER)
    assert len(traced.spans) == 1


def test_a_websocket_is_one_span(traced):
    async def converse():
        sent = []
        scope = {"type": "websocket", "path": "/line", "headers": [], "query_string": b"", "subprotocols": []}

        async def receive():
            return {"type": "websocket.connect"}

        async def send(message):
            sent.append(message["type"])

        await traced.app(scope, receive, send)
        return sent

    assert anyio.run(converse) == ["websocket.accept", "websocket.close"]
    (span,) = traced.spans
    assert (span.name, span.attributes["http.response.status_code"]) == ("WEBSOCKET /line", 101)


def test_only_plain_stages_are_read():
    header = {"server-timing": 'a;dur=1, B;dur=2, c;desc="x;dur=3", d;dur=1e9, e;dur=4.25'}
    assert read_stages(header) == {"a": 1.0, "d": 1.0, "e": 4.25} | {"x": 3.0}


class _Collector(BaseHTTPRequestHandler):
    """Takes spans as an OpenTelemetry collector does."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def collecting():
    server = HTTPServer(("127.0.0.1", 0), _Collector)
    server.received = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask_for_models(endpoint):
    """Start the whole app on a toy as a server does, ask one thing, and stop it."""
    app = create_app(Settings(tracing=TracingSettings(endpoint=endpoint)), given(ToyRolloutEngine()))

    async def live():
        stopping, messages = anyio.Event(), []

        async def receive():
            if messages:
                await stopping.wait()
                return {"type": "lifespan.shutdown"}
            return {"type": "lifespan.startup"}

        async def send(message):
            messages.append(message["type"])
            if message["type"] == "lifespan.startup.complete":
                await ask()
                stopping.set()

        async def ask():
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                reply = await client.get("/version", headers={"traceparent": CALLER})
            assert reply.status_code == 200, reply.text

        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
        assert messages[-1] == "lifespan.shutdown.complete"

    anyio.run(live)


def test_the_spans_of_a_server_are_at_the_collector_when_it_has_stopped():
    with collecting() as collector:
        ask_for_models(f"http://127.0.0.1:{collector.server_port}/v1/traces")
    ((path, request),) = collector.received
    (span,) = request.resource_spans[0].scope_spans[0].spans
    assert (path, span.name, span.trace_id.hex()) == ("/v1/traces", "GET /version", TRACE)


def test_a_collector_that_is_away_delays_neither_answers_nor_the_stop():
    started = time.monotonic()
    ask_for_models(NOBODY)
    assert time.monotonic() - started < 15
