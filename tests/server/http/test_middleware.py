import asyncio
import json

import anyio
import pytest
import structlog
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.responses import PlainTextResponse

from foreframe_server.metrics import Metrics
from foreframe_server.middleware import BodyBounds, RequestLog
from foreframe_server.problems import HANDLERS

pytestmark = pytest.mark.anyio


async def test_a_request_id_is_kept_when_it_is_harmless_and_drawn_otherwise(client):
    kept = await client.get("/healthz", headers={"x-request-id": "robot-7.step:12"})
    drawn = await client.get("/healthz", headers={"x-request-id": "<script>" + "a" * 80})

    assert kept.headers["x-request-id"] == "robot-7.step:12"
    assert len(drawn.headers["x-request-id"]) == 16
    assert drawn.headers["x-request-id"].isalnum()


async def test_every_reply_has_its_time(client):
    assert (await client.get("/healthz")).headers["server-timing"].startswith("total;dur=")
    assert (await client.get("/nowhere")).headers["server-timing"].startswith("total;dur=")


async def test_a_request_is_one_line_with_its_trace(client):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with structlog.testing.capture_logs() as lines:
        await client.get("/v1/models/other", headers={"traceparent": trace})
        await client.get("/v1/models/other", headers={"traceparent": "planted\nline"})

    first, second = lines
    assert (first["route"], first["status"], first["code"]) == ("/v1/models/{id}", 404, "unknown_model")
    assert first["traceparent"] == trace
    assert second["traceparent"] is None


class Receiver:
    """Messages of one request; after them the sender is silent."""

    def __init__(self, *bodies, is_whole=True):
        self.messages = [{"type": "http.request", "body": body, "more_body": True} for body in bodies]
        if is_whole:
            self.messages[-1]["more_body"] = False
        self.num_taken = 0

    async def __call__(self):
        if self.num_taken == len(self.messages):
            await anyio.sleep_forever()
        self.num_taken += 1
        return self.messages[self.num_taken - 1]


async def bounded(receiver, headers=(), body_timeout_s=10.0):
    """Send a request through both middlewares to an app that reads its body; return status and headers."""

    async def read_all(scope, receive, send):
        while (await receive())["more_body"]:
            pass
        await PlainTextResponse("read")(scope, receive, send)

    sent = []

    async def send(message):
        sent.append(message)

    inner = ExceptionMiddleware(read_all, handlers=dict(HANDLERS))
    app = RequestLog(BodyBounds(inner, max_body_bytes=1000, body_timeout_s=body_timeout_s), Metrics())
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": list(headers)}
    await app(scope, receiver, send)
    return sent[0]["status"], dict(sent[0]["headers"])


async def test_a_body_within_the_bounds_is_read():
    assert (await bounded(Receiver(b"a" * 600, b"b" * 400)))[0] == 200


async def test_a_body_that_grows_too_large_is_cut_off():
    receiver = Receiver(*[b"a" * 400] * 50)

    status, headers = await bounded(receiver)

    assert (status, receiver.num_taken) == (413, 3)
    assert headers[b"connection"] == b"close"


async def test_a_body_that_says_it_is_too_large_is_not_read():
    receiver = Receiver(b"a" * 400)

    status, _ = await bounded(receiver, [(b"content-length", b"1001")])

    assert (status, receiver.num_taken) == (413, 0)


async def test_a_body_that_stops_coming_is_given_up():
    status, headers = await bounded(Receiver(b"a", is_whole=False), body_timeout_s=0.02)

    assert status == 408
    assert headers[b"connection"] == b"close"


async def visit_websocket(app, *, metrics=None, headers=()):
    """Let an app serve one websocket through both middlewares; return what it sent."""
    sent = []

    async def send(message):
        sent.append(message)

    bounded_app = BodyBounds(app, max_body_bytes=1, body_timeout_s=0.001)
    scope = {"type": "websocket", "path": "/", "query_string": b"", "headers": list(headers)}
    await RequestLog(bounded_app, metrics or Metrics())(scope, Receiver(b"longer than a body may be"), send)
    return sent


async def test_a_websocket_is_named_and_no_body():
    async def talk(scope, receive, send):
        await send({"type": "websocket.accept"})
        await receive()
        await send({"type": "websocket.send", "bytes": scope["state"]["request_id"].encode()})

    headers = [(b"x-request-id", b"arm-1"), (b"content-length", b"999"), (b"content-encoding", b"br")]
    metrics = Metrics()
    accept, answer = await visit_websocket(talk, metrics=metrics, headers=headers)

    assert accept["headers"] == [(b"x-request-id", b"arm-1")]
    assert answer["bytes"] == b"arm-1"
    assert b"foreframe_requests_total{" not in metrics.scrape()


@pytest.mark.parametrize("is_accepted", [False, True])
async def test_what_nobody_caught_at_a_websocket_ends_it(is_accepted):
    async def fail(scope, receive, send):
        if is_accepted:
            await send({"type": "websocket.accept"})
        raise RuntimeError("planted-words")

    with structlog.testing.capture_logs() as lines:
        *_, last_but_one, last = await visit_websocket(fail)

    assert [line["event"] for line in lines] == ["request failed", "connection"]
    assert "planted" not in str(last_but_one) + str(last)
    if is_accepted:
        assert json.loads(last_but_one["text"])["code"] == "model_fault"
        assert (last["type"], last["code"]) == ("websocket.close", 1011)
    else:
        assert (last_but_one["type"], last_but_one["status"]) == ("websocket.http.response.start", 500)


async def test_what_nobody_caught_is_a_problem_and_no_traceback():
    async def fail(scope, receive, send):
        raise RuntimeError("planted-words")

    sent = []

    async def send(message):
        sent.append(message)

    metrics = Metrics()
    with structlog.testing.capture_logs() as lines:
        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
        await RequestLog(fail, metrics)(scope, Receiver(b""), send)

    assert sent[0]["status"] == 500
    assert b"planted" not in sent[1]["body"]
    assert [line["event"] for line in lines] == ["request failed", "request"]
    assert b'foreframe_requests_total{code="model_fault",route="other"} 1.0' in metrics.scrape()


@pytest.mark.parametrize("is_leaving", [True, False])
async def test_a_cancelled_request_is_answered_when_the_server_leaves(is_leaving):
    sent, entered = [], anyio.Event()

    async def hang(scope, receive, send):
        entered.set()
        await anyio.sleep_forever()

    async def send(message):
        sent.append(message)

    app = RequestLog(hang, Metrics(), is_leaving=lambda: is_leaving)
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
    with structlog.testing.capture_logs() as lines:
        asking = asyncio.create_task(app(scope, Receiver(b""), send))
        await entered.wait()
        asking.cancel()
        await asyncio.wait([asking])

    assert asking.cancelled() is not is_leaving
    assert [message["status"] for message in sent if "status" in message] == ([503] if is_leaving else [])
    assert lines[-1]["code"] == ("not_ready" if is_leaving else "unknown")
