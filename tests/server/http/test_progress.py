"""The event stream of a prediction: what it tells, in which order, and what becomes of it when things go wrong."""

import asyncio
import contextlib
import json
import threading
from dataclasses import replace

import pytest
import structlog

from foreframe_engines.testing import ToyRolloutEngine, toy_contract
from foreframe_server.app import create_app
from foreframe_server.cache import ResultCache
from foreframe_server.codec import KEEP_ALIVE, write_event
from foreframe_server.metrics import Metrics
from foreframe_server.opening import given
from foreframe_server.routes.progress import EventStream
from foreframe_server.routes.telling import Newest
from foreframe_server.settings import Settings

pytestmark = pytest.mark.anyio

URL = "/v1/predictions"
EVENTS = {"accept": "text/event-stream"}
PATIENCE_S = 20


class Gate:
    """A step hook that lets so many forwards run once it is armed, and holds the next until it lets more."""

    def __init__(self, free):
        self.num_rows = 0
        self.is_armed = False
        self.is_open = False
        self.held = threading.Event()
        self.passes = threading.Semaphore(free)

    def __call__(self, rows):
        if not self.is_armed:
            return
        self.num_rows += len(rows)
        if not self.is_open and not self.passes.acquire(blocking=False):
            self.held.set()
            assert self.passes.acquire(timeout=PATIENCE_S)

    def let(self, count):
        self.held.clear()
        self.passes.release(count)

    def open(self):
        self.is_open = True
        self.let(1)

    async def wait(self):
        """Until a forward is held."""
        assert await asyncio.to_thread(self.held.wait, PATIENCE_S)


def parse(body):
    """The events of a whole stream, comments left out: id, name and data of each."""
    blocks = [block for block in body.decode().split("\n\n") if block and not block.startswith(":")]
    fields = [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]
    return [(int(event["id"]), event["event"], json.loads(event["data"])) for event in fields]


def names_of(events):
    return [name for _, name, _ in events]


class Visitor:
    """A client of the app's own interface that reads what is sent while it is sent, and may hang up."""

    def __init__(self, app, request, **headers):
        self.app = app
        self.body = json.dumps(request).encode()
        self.headers = [(name.encode(), value.encode()) for name, value in {**EVENTS, **headers}.items()]
        self.status = 0
        self.sent = asyncio.Queue()
        self.has_left = asyncio.Event()
        self.is_whole = False
        self.is_read = asyncio.Event()
        self.is_read.set()

    async def receive(self):
        if self.body is not None:
            body, self.body = self.body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.has_left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        await self.is_read.wait()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        self.is_whole = not message.get("more_body", False)
        if message.get("body"):
            self.sent.put_nowait(message["body"])

    async def __aenter__(self):
        scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "path": URL, "raw_path": URL.encode(),
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json"), *self.headers],
            "query_string": b"", "scheme": "http", "root_path": "", "asgi": {"version": "3.0", "spec_version": "2.3"},
        }  # fmt: skip
        self.visit = asyncio.create_task(self.app(scope, self.receive, self.send))
        return self

    async def __aexit__(self, *_):
        self.has_left.set()
        async with asyncio.timeout(PATIENCE_S):
            await self.visit

    async def next(self):
        """The next event's name and data; comments are left out."""
        async with asyncio.timeout(PATIENCE_S):
            while (sent := await self.sent.get()) == KEEP_ALIVE:
                pass
        ((_, name, data),) = parse(sent)
        return name, data

    async def until(self, last):
        events = [await self.next()]
        while events[-1][0] != last:
            events.append(await self.next())
        return events


@contextlib.asynccontextmanager
async def gated(serving, free, gate_type=Gate):
    """An app whose engine runs so many forwards of two rows and then waits; it goes on at the end."""
    gate = gate_type(free)
    app = create_app(Settings(scheduler={"max_rows": 2}), given(ToyRolloutEngine(step_hook=gate)))
    async with serving(app) as client:
        gate.is_armed = True
        try:
            yield app, client, gate
        finally:
            gate.open()


async def test_a_stream_tells_of_every_improvement_and_ends_with_the_answer(client, toy_request):
    reply = await client.post(URL, json=toy_request(ensemble={"size": 8}, deadline_ms=60_000), headers=EVENTS)

    events = parse(reply.content)
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert [number for number, _, _ in events] == list(range(1, len(events) + 1))
    assert (names_of(events)[0], names_of(events)[-1]) == ("accepted", "done")
    assert set(names_of(events)[1:-1]) <= {"estimate", "update"}
    accepted = events[0][2]
    assert accepted["id"] == reply.headers["x-request-id"]
    assert (accepted["model"], accepted["requested"], accepted["steps"], accepted["seed"]) == ("toy", 8, 2, 7)
    assert accepted["deadline_ms"] == 60_000
    assert events[-1][2]["ensemble"]["members"] == 8


async def test_the_last_event_is_the_reply_of_an_ordinary_request(client, toy_request):
    request = toy_request(ensemble={"size": 4}, metadata={"run": "a"}, cache="bypass", **{"return": {"members": True}})

    plain = (await client.post(URL, json=request)).json()
    streamed = parse((await client.post(URL, json=request, headers=EVENTS)).content)[-1][2]

    varying = {"id", "timings_ms"}
    assert set(plain) == set(streamed)
    assert {key: plain[key] for key in set(plain) - varying} == {key: streamed[key] for key in set(plain) - varying}


async def test_updates_are_told_while_the_rest_is_computed(serving, toy_request):
    asked = toy_request(ensemble={"size": 32}, sampling__steps=4)
    async with gated(serving, 8) as (app, _, gate), Visitor(app, asked) as visitor:
        await gate.wait()
        events = await visitor.until("update")
        assert not visitor.is_whole
        gate.open()
        events += await visitor.until("done")

    names = [name for name, _ in events]
    updates = [data for name, data in events if name == "update"]
    counts = [data["members"] for data in updates]
    assert visitor.status == 200
    assert visitor.is_whole
    assert names.count("estimate") <= 1
    assert counts == sorted(set(counts))
    assert 1 <= counts[0] < 32
    assert len(updates[0]["frames"]) == 8
    assert updates[0]["frames"][0]["image"]["encoding"] == "png"
    assert all(len(data["spread_per_frame"]) == (8 if data["members"] > 1 else 0) for data in updates)
    assert all(data["elapsed_ms"] > 0 and data["steps"] == 4 for data in updates)


async def test_the_first_step_s_estimate_comes_before_any_member_is_whole(serving, toy_request):
    asked = toy_request(ensemble={"size": 2}, sampling__steps=4)
    async with gated(serving, 1) as (app, _, gate), Visitor(app, asked) as visitor:
        await gate.wait()
        events = await visitor.until("estimate")
        gate.open()
        events += await visitor.until("done")

    assert [name for name, _ in events][:2] == ["accepted", "estimate"]
    assert len(events[1][1]["frames"]) == 8


async def test_an_update_equals_the_answer_of_an_ensemble_of_its_size(serving, toy_request):
    async with gated(serving, 8) as (app, client, gate):
        async with Visitor(app, toy_request(ensemble={"size": 32}, sampling__steps=4)) as visitor:
            await gate.wait()
            _, update = (await visitor.until("update"))[-1]
            gate.open()
            await visitor.until("done")
        asked = toy_request(ensemble={"size": update["members"]}, sampling__steps=4, cache="bypass")
        plain = (await client.post(URL, json=asked)).json()

    assert update["frames"] == plain["frames"]
    assert update["spread_per_frame"] == plain["uncertainty"]["spread_per_frame"]
    assert update["standard_error"] == plain["ensemble"]["standard_error"]


async def test_a_hit_is_accepted_and_done(client, toy_request):
    await client.post(URL, json=toy_request())

    reply = await client.post(URL, json=toy_request(), headers=EVENTS)

    assert names_of(parse(reply.content)) == ["accepted", "done"]
    assert parse(reply.content)[-1][2]["cache"] == "hit"


@pytest.mark.parametrize(
    ("fields", "headers", "status", "code"),
    [
        ({"ensemble": {"size": 33}}, {}, 422, "invalid_request"),
        ({"return": {"encoding": "mp4"}}, {}, 422, "invalid_request"),
        ({"model": "other"}, {}, 404, "unknown_model"),
        ({}, {"x-deadline-ms": "0"}, 504, "deadline_exceeded"),
        ({}, {"content-type": "text/plain"}, 415, "unsupported_media"),
    ],
)
async def test_refusals_before_the_first_event_keep_their_status(client, toy_request, fields, headers, status, code):
    body = json.dumps(toy_request(**fields))
    reply = await client.post(URL, content=body, headers={"content-type": "application/json", **EVENTS, **headers})

    assert (reply.status_code, reply.json()["code"]) == (status, code)
    assert reply.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("max_pending_s", "status", "first"),
    [(1e-9, 422, b'"code":"too_expensive"'), (600.0, 200, b"event: accepted")],
    ids=["no room", "room"],
)
async def test_a_refusal_keeps_its_status_however_long_it_takes(serving, toy_request, max_pending_s, status, first):
    """With room for it the same request is accepted, which is the positive control."""
    app = create_app(Settings(scheduler={"max_pending_s": max_pending_s}), given(ToyRolloutEngine()))
    async with serving(app):
        cache = app.state.host.model.service._cache = SlowCache(Metrics())
        async with Visitor(app, toy_request()) as visitor, asyncio.timeout(PATIENCE_S):
            await cache.is_asked.wait()
            for _ in range(1000):
                await asyncio.sleep(0)
            assert (visitor.status, visitor.sent.qsize()) == (0, 0), "nothing is known yet"
            cache.answers.set()
            assert first in await visitor.sent.get()

    assert visitor.status == status


class SlowCache(ResultCache):
    """A cache that holds nothing, and says so when it is let."""

    def __init__(self, metrics):
        super().__init__(metrics)
        self.is_asked, self.answers = asyncio.Event(), asyncio.Event()

    async def get(self, key, size):
        self.is_asked.set()
        await self.answers.wait()
        return await super().get(key, size)


async def test_what_replies_take_is_kept_free_before_deadlines(app, client, toy_request):
    await client.post(URL, json=toy_request(), headers=EVENTS)

    assert app.state.host.model.service._reply_s.value > 0


async def test_mp4_is_refused_by_name(client, toy_request):
    reply = await client.post(URL, json=toy_request(**{"return": {"encoding": "mp4"}}), headers=EVENTS)

    assert reply.json()["errors"][0]["pointer"] == "/return/encoding"


async def test_a_server_that_is_not_ready_says_so_with_its_status(toy_request):
    app = create_app(Settings(), given(ToyRolloutEngine()))
    async with Visitor(app, toy_request()) as visitor:
        await visitor.visit

    assert visitor.status == 503
    assert json.loads(visitor.sent.get_nowait())["code"] == "not_ready"


async def test_what_fails_after_the_first_event_is_the_last_one(serving, toy_request):
    class FailingGate(Gate):
        def __call__(self, rows):
            super().__call__(rows)
            if self.is_open:
                raise RuntimeError("planted-words")

    asked = toy_request(ensemble={"size": 4})
    with structlog.testing.capture_logs() as lines:
        async with gated(serving, 1, FailingGate) as (app, _, gate), Visitor(app, asked) as visitor:
            await gate.wait()
            await visitor.until("estimate")
            gate.open()
            events = await visitor.until("error")

    problem = events[-1][1]
    assert (visitor.status, visitor.is_whole) == (200, True)
    (line,) = [line for line in lines if line["event"] == "request"]
    assert (problem["code"], problem["status"], problem["request_id"]) == ("model_fault", 500, line["request_id"])
    assert "planted" not in json.dumps(problem)
    assert (line["status"], line["code"]) == (200, "model_fault")


async def test_a_fault_of_the_server_s_own_ends_the_stream_with_a_problem_and_a_log(serving, toy_request):
    engine = ToyRolloutEngine(replace(toy_contract(), fps=0.0))  # frames of such a model have no time
    app = create_app(Settings(), given(engine))
    async with serving(app):
        with structlog.testing.capture_logs() as lines:
            async with Visitor(app, toy_request()) as visitor:
                events = await visitor.until("error")

    assert events[-1][1]["code"] == "model_fault"
    assert "division" not in json.dumps(events[-1][1])
    assert [line["event"] for line in lines] == ["request failed", "request"]
    assert lines[-1]["code"] == "model_fault"


async def test_a_client_that_hangs_up_ends_its_work(serving, toy_request):
    async with gated(serving, 8) as (app, client, gate):
        with structlog.testing.capture_logs() as lines:
            async with Visitor(app, toy_request(ensemble={"size": 32}, sampling__steps=50)) as visitor:
                await gate.wait()
            gate.open()
        await client.post(URL, json=toy_request(sampling={"seed": 8, "steps": 1}))

    assert gate.num_rows < 32 * 50 / 4
    assert visitor.sent.qsize() <= 2
    assert lines[-1]["code"] == "client_left"


async def test_a_reader_that_is_slow_gets_the_newest_and_holds_nothing_up(serving, toy_request, monkeypatch):
    put, answered = asyncio.Queue(), asyncio.Event()

    class Recorder(Newest):
        def on_progress(self, progress):
            put.put_nowait(progress.prediction.num_members)
            super().on_progress(progress)

        def end(self):
            answered.set()
            super().end()

    monkeypatch.setattr("foreframe_server.routes.telling.Newest", Recorder)
    asked = toy_request(ensemble={"size": 32}, sampling__steps=4)
    async with gated(serving, 1) as (app, _, gate), Visitor(app, asked) as visitor, asyncio.timeout(PATIENCE_S):
        await visitor.until("estimate")
        visitor.is_read.clear()
        seen = [await put.get()]
        for _ in range(3):
            gate.let(4)
            seen.append(await put.get())
        gate.open()
        await answered.wait()
        visitor.is_read.set()
        events = await visitor.until("done")

    assert seen == [1, 2, 4, 6], "an estimate and three waves to tell of"
    assert [name for name, _ in events].count("update") <= 1
    assert events[-1][1]["ensemble"]["members"] == 32


async def test_a_stream_is_one_request_of_its_route_and_times_its_stages(app, client, toy_request):
    reply = await client.post(URL, json=toy_request(ensemble={"size": 2}), headers=EVENTS)

    scraped = app.state.host.metrics.scrape().decode()
    assert 'foreframe_requests_total{code="ok",route="/v1/predictions"} 1.0' in scraped
    assert 'foreframe_stage_seconds_count{stage="respond"} 1.0' in scraped
    stages = dict(part.split(";dur=") for part in reply.headers["server-timing"].split(", "))
    assert {name: float(value) >= 0 for name, value in stages.items()} == {"receive": True, "decode": True}
    assert reply.headers["cache-control"] == "no-store"


async def test_silence_is_filled_with_comments(serving, toy_request, monkeypatch):
    monkeypatch.setattr("foreframe_server.routes.progress._KEEP_ALIVE_S", 0.01)
    asked = toy_request()
    async with gated(serving, 0) as (app, _, gate), Visitor(app, asked) as visitor:
        await gate.wait()
        async with asyncio.timeout(PATIENCE_S):
            sent = [await visitor.sent.get() for _ in range(3)]
        gate.open()
        await visitor.until("done")

    assert parse(sent[0])[0][1] == "accepted"
    assert sent[1:] == [KEEP_ALIVE, KEEP_ALIVE]


async def test_the_newest_improvement_takes_the_place_of_an_older_one():
    newest = Newest()
    newest.on_progress("older")
    newest.on_progress("newer")

    assert await newest.take(PATIENCE_S) == "newer"
    assert await newest.take(0.001) is None


async def test_the_end_and_being_accepted_are_no_improvements():
    newest = Newest()
    newest.on_accepted()
    await newest.settled()
    assert await newest.take(0.001) is None
    newest.end()
    assert await newest.take(None) is None


async def test_a_stream_that_breaks_is_left_and_counted():
    left = []

    async def events():
        yield b"one"

    async def send(message):
        if message["type"] == "http.response.body":
            raise BrokenPipeError

    async def leave():
        left.append(True)

    scope = {"type": "http", "state": {}}
    await EventStream(events(), {}, leave)(scope, None, send)

    assert left == [True]
    assert scope["state"]["problem_code"] == "client_left"


def test_an_event_is_its_number_its_name_and_one_line_of_data():
    assert write_event(3, "update", b'{"members":2}') == b'id: 3\nevent: update\ndata: {"members":2}\n\n'
