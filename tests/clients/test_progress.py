"""Streamed predictions over a scripted server: both clients tell the same, and end as an ordinary call would."""

from __future__ import annotations

import asyncio
import base64
import inspect
import json

import httpx
import numpy as np
import pytest

from foreframe_client import (
    AsyncClient,
    Client,
    InvalidRequest,
    ModelFault,
    Prediction,
    Progress,
    ProtocolError,
    TimedOut,
    TransportError,
    UnsupportedMedia,
)
from foreframe_client._arrays import array_of_json
from foreframe_client._progress import EventReader, Hearing

STREAM = {"content-type": "text/event-stream; charset=utf-8"}


def blocking(server, *arguments, **options):
    """Read one whole stream of a fresh Client."""
    with Client(transport=httpx.MockTransport(server), sleep=lambda _: None) as client:
        return list(client.predict_stream(*arguments, **options))


def awaiting(server, *arguments, **options):
    """Read one whole stream of a fresh AsyncClient."""

    async def sleep(_: float) -> None:
        pass

    async def call():
        async with AsyncClient(transport=httpx.MockTransport(server), sleep=sleep) as client:
            return [item async for item in client.predict_stream(*arguments, **options)]

    return asyncio.run(call())


@pytest.fixture(params=[blocking, awaiting])
def call(request):
    return request.param


def as_json(value):
    """Write arrays as a JSON reply has them."""
    if isinstance(value, dict) and "__ndarray__" in value:
        data = base64.b64encode(bytes(value["data"])).decode()
        return {"dtype": value["dtype"], "shape": value["shape"], "data": data}
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, list) else value


def event(name, document):
    return b"id: 1\nevent: %s\ndata: %s\n\n" % (name.encode(), json.dumps(as_json(document)).encode())


def stream(*events):
    return httpx.Response(200, content=b"".join(events), headers=STREAM)


def problem_event(code, status, *, retryable):
    body = {"detail": f"It is {code}.", "code": code, "status": status, "request_id": "r-9", "errors": []}
    return event("error", {**body, "retryable": retryable, "retry_after_ms": None})


@pytest.fixture
def estimate(prediction):
    return event("estimate", {"frames": prediction["frames"], "elapsed_ms": 3.0})


@pytest.fixture
def update(prediction):
    fields = {"members": 2, "steps": 6, "spread_per_frame": [0.25, 0.5], "standard_error": None, "elapsed_ms": 7.5}
    return event("update", {"frames": prediction["frames"], **fields})


@pytest.fixture
def done(prediction):
    return event("done", prediction)


ACCEPTED = event("accepted", {"id": "p-1", "requested": 3})


def test_progress_comes_first_and_the_prediction_last(call, server, scene, estimate, update, done):
    server.script = [stream(ACCEPTED, estimate, b": alive\n\n", update, done)]

    first, second, last = call(server, *scene.arrays)

    assert isinstance(first, Progress)
    assert isinstance(last, Prediction)
    assert (first.is_estimate, first.num_members, first.spread_per_frame) == (True, 0, None)
    assert (second.is_estimate, second.num_members, second.elapsed_ms) == (False, 2, 7.5)
    assert second.spread_per_frame.tolist() == [0.25, 0.5]
    assert second.frames.dtype == np.uint8
    assert second.frames[:, 0, 0, 0].tolist() == last.frames[:, 0, 0, 0].tolist() == [10, 20]
    assert second.frame_indices.tolist() == [1, 2]
    assert last.variance.shape == (2, 4, 5)
    assert last.members.shape == (2, 2, 4, 5, 3)


def test_the_request_is_that_of_an_ordinary_call(call, server, scene, done):
    server.script = [stream(done)]
    call(server, *scene.arrays, ensemble=8, seed=3)
    with Client(transport=httpx.MockTransport(server)) as client:
        server.script = [httpx.Response(200, content=b"{}", headers={"content-type": "application/json"})]
        with pytest.raises(ProtocolError):
            client.predict(*scene.arrays, ensemble=8, seed=3)

    streamed, plain = (request for request in server.requests if request.method == "POST")
    assert streamed.headers["accept"] == "text/event-stream"
    assert streamed.content == plain.content


def test_nothing_is_sent_when_an_argument_cannot_be(call, server, scene):
    with pytest.raises(InvalidRequest, match=r"^ensemble "):
        call(server, *scene.arrays, ensemble=1.5)
    assert server.requests == []


def test_a_refusal_before_the_stream_is_raised_by_its_class(call, server, scene, refuse):
    server.script = [refuse("unsupported_media", 415, retryable=False)]
    with pytest.raises(UnsupportedMedia) as caught:
        call(server, *scene.arrays)
    assert caught.value.request_id == "r-9"


def test_a_refusal_in_the_stream_is_raised_by_its_class(call, server, scene, update):
    server.script = [stream(ACCEPTED, update, problem_event("model_fault", 500, retryable=False))]
    with pytest.raises(ModelFault) as caught:
        call(server, *scene.arrays)
    assert (caught.value.status, caught.value.request_id) == (500, "r-9")


def test_a_refusal_in_the_stream_that_may_pass_is_tried_again(call, server, scene, update, done):
    server.script = [stream(update, problem_event("worker_crashed", 500, retryable=True)), stream(update, done)]

    items = call(server, *scene.arrays)

    assert [type(item) for item in items] == [Progress, Progress, Prediction]
    assert len(server.posted()) == 2


def test_a_stream_without_an_answer_is_a_broken_connection(call, server, scene, update):
    server.script = [stream(ACCEPTED, update, b"event: done\ndata: {")]
    with pytest.raises(TransportError, match="before its answer"):
        call(server, *scene.arrays)


@pytest.mark.parametrize(
    ("error", "expected"), [(httpx.ReadTimeout("slow"), TimedOut), (httpx.ReadError("reset"), TransportError)]
)
def test_failures_of_the_network_are_translated(call, server, scene, error, expected):
    server.script = [error]
    with pytest.raises(TransportError) as caught:
        call(server, *scene.arrays)
    assert type(caught.value) is expected
    assert caught.value.__cause__ is error


def test_a_server_that_answers_at_once_is_understood(call, server, scene, answer, prediction):
    server.script = [answer(prediction)]

    (item,) = call(server, *scene.arrays)

    assert item.id == "p-1"


@pytest.mark.parametrize("data", [b"{", b'{"frames": []}', b"[]", b'{"frames": 3}'])
def test_an_event_that_is_not_what_the_wire_says_is_told(call, server, scene, data):
    server.script = [stream(b"event: update\ndata: " + data + b"\n\n")]
    with pytest.raises(ProtocolError):
        call(server, *scene.arrays)


def test_leaving_the_loop_hangs_up(server, scene, update, done):
    closed = []

    class Body(httpx.SyncByteStream):
        def __iter__(self):
            yield update
            yield done

        def close(self):
            closed.append(True)

    server_of_streams = server_with(server, lambda: httpx.Response(200, stream=Body(), headers=STREAM))
    with Client(transport=httpx.MockTransport(server_of_streams)) as client:
        items = client.predict_stream(*scene.arrays)
        next(items)
        assert not closed
        items.close()
    assert closed == [True]


def test_leaving_the_asynchronous_loop_hangs_up(server, scene, update, done):
    closed = []

    class Body(httpx.AsyncByteStream):
        async def __aiter__(self):
            yield update
            yield done

        async def aclose(self):
            closed.append(True)

    async def leave():
        server_of_streams = server_with(server, lambda: httpx.Response(200, stream=Body(), headers=STREAM))
        async with AsyncClient(transport=httpx.MockTransport(server_of_streams)) as client:
            items = client.predict_stream(*scene.arrays)
            await items.__anext__()
            assert not closed
            await items.aclose()

    asyncio.run(leave())
    assert closed == [True]


def server_with(server, make_answer):
    return lambda request: server(request) if request.method == "GET" else make_answer()


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_events_are_the_same_however_the_stream_is_cut(size, line_end):
    lines = [
        b": hello",
        b"",
        b"id: 1",
        b"event: update",
        b"data: one",
        b"data:two",
        b"",
        b"",
        b"data: three",
        b"",
        b"x",
    ]
    body = line_end.join(lines)
    reader = EventReader()

    events = [event for at in range(0, len(body), size) for event in reader.feed(body[at : at + size])]

    assert [(event.name, event.data) for event in events] == [("update", b"one\ntwo"), ("message", b"three")]


def test_comments_alone_do_not_hold_a_caller_for_ever():
    now = [0.0]
    hearing = Hearing(60.0, lambda: now[0])
    for now[0] in range(0, 61, 5):
        assert list(hearing.feed(b": alive\n\n")) == []
    assert hearing.outcome is None
    now[0] = 60.5
    assert list(hearing.feed(b": alive\n\n")) == []
    assert isinstance(hearing.outcome, TimedOut)


def test_a_caller_that_takes_its_time_is_not_the_server_s_fault(update):
    now = [0.0]
    hearing = Hearing(60.0, lambda: now[0])
    for _ in hearing.feed(update):
        now[0] += 100.0
    assert list(hearing.feed(b": alive\n\n")) == []
    assert hearing.outcome is None


def test_a_connection_that_breaks_after_the_answer_changes_nothing(done):
    hearing = Hearing(60.0, lambda: 0.0)
    assert list(hearing.feed(done)) == []
    hearing.fail(TransportError("late"))
    assert not isinstance(hearing.end(), TransportError)


@pytest.mark.parametrize(
    "fields", [{"dtype": "|u1", "shape": [3], "data": "AAE="}, {"dtype": "|O", "shape": [1], "data": "AAE="}]
)
def test_arrays_that_do_not_add_up_are_refused(fields):
    with pytest.raises(ValueError, match="array"):
        array_of_json(fields)


@pytest.mark.parametrize("fields", [{}, {"dtype": "a", "shape": "b", "data": "c"}, {"encoding": "png", "data": "AA=="}])
def test_maps_that_are_no_arrays_stay_maps(fields):
    assert array_of_json(fields) is fields


def test_help_says_what_is_iterated_over():
    made = {Client: "Generator[Union[Progress, Prediction], None, None]"}
    made[AsyncClient] = "AsyncGenerator[Union[Progress, Prediction], None]"
    for kind, iterated in made.items():
        method = kind.predict_stream
        assert method.__name__ == "predict_stream"
        assert "last item is its answer" in method.__doc__
        assert inspect.signature(method).return_annotation == iterated
        assert inspect.signature(method).parameters == inspect.signature(kind.predict).parameters
