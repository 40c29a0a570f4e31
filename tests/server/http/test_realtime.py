"""The websocket of robots: what it answers, in which order, and what is left of it afterwards."""

import asyncio
import contextlib

import msgpack
import numpy as np
import pytest
import structlog
from pydantic import ValidationError

from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine, toy_contract, toy_tokens
from foreframe_server.app import create_app
from foreframe_server.opening import given
from foreframe_server.realtime_schemas import RealtimeReply
from foreframe_server.routes.telling import Newest
from foreframe_server.settings import Settings

pytestmark = pytest.mark.anyio

PATIENCE_S = 20
MSGPACK = {"accept": "application/msgpack"}
VARYING = {"id", "timings_ms", "observation_id"}


@pytest.fixture
def gated_app(gate):
    """An app whose device the gate holds once it is closed; a forward has two rows."""
    return create_app(Settings(scheduler={"max_rows": 2}), given(ToyRolloutEngine(step_hook=gate)))


@contextlib.asynccontextmanager
async def held(gate, after=0):
    """Hold the device for the block, from the forward after the next `after` ones."""
    gate.close(after)
    try:
        yield
    finally:
        gate.open()


async def entered(gate):
    assert await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)


async def turn_until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what it waits for tells nobody
            await asyncio.sleep(0)


def worker_of(app):
    return app.state.host.model.service._worker


def counted(app, code):
    labels = {"route": "/v1/realtime", "code": code}
    return app.state.host.metrics.registry.get_sample_value("foreframe_requests_total", labels)


def unvarying(body):
    return {name: value for name, value in body.items() if name not in VARYING}


async def test_the_first_message_is_the_model_s_contract(app, client, arriving):
    async with arriving(app, **{"x-request-id": "arm-1"}) as robot:
        greeting = await robot.next()

    assert robot.is_accepted
    assert (greeting["type"], greeting["request_id"]) == ("contract", "arm-1")
    assert greeting["body"] == (await client.get("/v1/models/toy")).json()


@pytest.mark.parametrize("encoding", ["png", "jpeg", "raw", "mp4"])
async def test_a_prediction_is_the_reply_of_http_byte_for_byte(app, client, connecting, toy_request, encoding):
    request = toy_request(
        ensemble={"size": 3}, metadata={"run": "a"}, cache="bypass",
        **{"return": {"encoding": encoding, "members": True}},
    )  # fmt: skip
    over_http = await client.post("/v1/predictions", json=request, headers=MSGPACK)
    async with connecting(app) as robot:
        robot.send("predict", "p-1", **request)
        async with asyncio.timeout(PATIENCE_S):
            data = await robot.outbox.get()
    answer, plain = msgpack.unpackb(data), msgpack.unpackb(over_http.content)

    assert (answer["type"], answer["request_id"], answer["body"]["id"]) == ("done", "p-1", "p-1")
    assert list(answer["body"]) == list(plain)
    assert unvarying(answer["body"]) == unvarying(plain)
    for part in ("frames", "members", "video"):
        packed = msgpack.packb(part) + msgpack.packb(plain[part])
        assert packed in data
        assert packed in over_http.content


async def test_arrays_are_taken_as_openpi_writes_them(app, client, connecting, toy_request, frames):
    request = toy_request(
        observation__cameras={"head": {"frames": frames()}},
        future__values=np.linspace(0, 1, 24, dtype=np.float32).reshape(8, 3),
    )
    async with connecting(app) as robot:
        answer = await robot.ask("predict", **request)

    assert answer["type"] == "done"
    assert [frame["index"] for frame in answer["body"]["frames"]] == list(range(1, 9))


async def test_likelihoods_scores_and_uploads_are_the_replies_of_http(
    token_app, token_client, connecting, toy_request, likelihood_request
):
    observation = toy_request()["observation"]
    scoring = {
        "observation": observation,
        "candidates": {"values": [[[0.1, 0.2, 0.3]] * 4, [[0.2, 0.1, 0.0]] * 4]},
        "objectives": [{"kind": "smoothness", "weight": 1.0}],
        "sampling": {"seed": 1},
    }
    upload = {"observation": observation, "ttl_s": 30}
    asked = {"likelihood": likelihood_request(), "score": scoring, "observe": upload}
    urls = {"likelihood": "/v1/likelihoods", "score": "/v1/scores", "observe": "/v1/observations"}
    async with connecting(token_app) as robot:
        for kind, request in asked.items():
            plain = await token_client.post(urls[kind], json=request, headers=MSGPACK)
            answer = await robot.ask(kind, **request)
            assert (answer["type"], plain.status_code) == ("done", 200)
            assert unvarying(answer["body"]) == unvarying(msgpack.unpackb(plain.content))
        stored = toy_request(observation=..., observation_id=answer["body"]["observation_id"])
        over_http = await token_client.post("/v1/predictions", json=stored)
        by_id = await robot.ask("predict", **stored)

    assert over_http.status_code == 200
    assert by_id["body"]["cache"] == "hit"


async def test_progress_goes_from_accepted_over_estimate_and_updates_to_the_answer(
    gated_app, serving, connecting, toy_request, gate
):
    request = toy_request(ensemble={"size": 16}, sampling__steps=4, cache="bypass", deadline_ms=60_000)
    async with serving(gated_app), connecting(gated_app) as robot:
        async with held(gate, after=1):
            robot.send("predict", progress=True, **request)
            messages = await robot.until("estimate")
        messages += await robot.until("done")
        plain = await robot.ask("predict", "plain", **request)

    names = [message["type"] for message in messages]
    assert names[:2] == ["accepted", "estimate"]
    assert names[-1] == "done"
    assert set(names[2:-1]) <= {"update"}
    assert {message["request_id"] for message in messages} == {"r"}
    accepted, counts = messages[0]["body"], [message["body"]["members"] for message in messages[2:-1]]
    assert (accepted["id"], accepted["requested"], accepted["deadline_ms"]) == ("r", 16, 60_000)
    assert counts == sorted(set(counts))
    assert unvarying(messages[-1]["body"]) == unvarying(plain["body"])
    assert [message for message in messages if "server_timing" in message] == messages[-1:]


async def test_updates_are_told_while_the_rest_is_computed(gated_app, serving, connecting, toy_request, gate):
    request = toy_request(ensemble={"size": 16}, sampling__steps=4, **{"return": {"encoding": "raw"}})
    async with serving(gated_app), connecting(gated_app) as robot:
        async with held(gate, after=12):
            robot.send("predict", progress=True, **request)
            update = (await robot.until("update"))[-1]["body"]
            assert worker_of(gated_app).num_jobs == 1
        await robot.until("done")
        smaller = toy_request(
            ensemble={"size": update["members"]}, sampling__steps=4, cache="bypass", **{"return": {"encoding": "raw"}}
        )
        plain = await robot.ask("predict", **smaller)

    assert 1 <= update["members"] < 16
    assert update["frames"] == plain["body"]["frames"]
    assert update["standard_error"] == plain["body"]["ensemble"]["standard_error"]


async def test_a_refused_prediction_was_never_accepted(app, client, connecting, toy_request):
    async with connecting(app) as robot:
        robot.send("predict", progress=True, **toy_request(sampling__steps=50))
        app.state.host.model.service._worker._cost.fit({1: 10.0, 2: 20.0, 4: 40.0, 8: 80.0, 16: 160.0})
        (answer,) = await robot.until("error", "done", "accepted")

    assert answer["type"] == "error"
    assert answer["body"]["code"] == "too_expensive"


async def test_answers_come_when_they_are_ready_in_whatever_order(gated_app, serving, connecting, toy_request, gate):
    async with serving(gated_app), connecting(gated_app) as robot:
        await robot.ask("predict", "warm", **toy_request())
        async with held(gate):
            robot.send("predict", "slow", **toy_request(sampling={"seed": 8, "steps": 2}))
            await entered(gate)
            robot.send("predict", "known", **toy_request())
            robot.send("ping", "alive")
            before = [await robot.next(), await robot.next()]
        after = await robot.next()

    assert {answer["request_id"] for answer in before} == {"known", "alive"}
    assert (after["request_id"], after["type"]) == ("slow", "done")


async def test_a_ping_is_echoed(app, client, connecting):
    payload = {"t": 1.5, "note": b"\x00raw", "list": [1, None, True]}
    async with connecting(app) as robot:
        pong = await robot.ask("ping", "p", payload=payload)
        empty = await robot.ask("ping")

    assert (pong["type"], pong["request_id"], pong["body"]) == ("pong", "p", {"payload": payload})
    assert set(pong["server_timing"]) == {"total"}
    assert empty["body"] == {"payload": None}


async def test_an_id_is_echoed_or_drawn(app, client, connecting):
    async with connecting(app) as robot:
        robot.send_bytes(msgpack.packb({b"type": "ping"}))
        robot.send_bytes(msgpack.packb({b"type": "ping"}))
        first, second = await robot.next(), await robot.next()

    assert first["request_id"] != second["request_id"]
    assert len(first["request_id"]) == 16


async def test_a_final_answer_says_what_each_stage_took(app, client, connecting, toy_request):
    async with connecting(app) as robot:
        answer = await robot.ask("predict", **toy_request(ensemble={"size": 2}))

    stages = answer["server_timing"]
    assert set(stages) == set(answer["body"]["timings_ms"]) - {"step_batch_mean", "cold"}
    assert stages["total"] >= stages["denoise"] > 0
    assert stages["receive"] == 0


async def test_every_message_is_as_its_schema_says(gated_app, serving, connecting, arriving, toy_request):
    async with serving(gated_app), arriving(gated_app) as robot:
        messages = [await robot.next()]
        robot.send("predict", progress=True, **toy_request(ensemble={"size": 4}, **{"return": {"variance": "map"}}))
        messages += await robot.until("done")
        messages += [await robot.ask("ping"), await robot.ask("nonsense")]

    for message in messages:
        RealtimeReply.model_validate(message)
    with pytest.raises(ValidationError):
        RealtimeReply.model_validate({**messages[0], "type": "planted"})


async def test_cancel_ends_one_request_and_no_other(gated_app, serving, connecting, toy_request, gate):
    async with serving(gated_app), connecting(gated_app) as robot:
        async with held(gate):
            robot.send("predict", "kept", **toy_request())
            robot.send("predict", "cut", progress=True, **toy_request(sampling={"seed": 9, "steps": 50}))
            await turn_until(lambda: worker_of(gated_app).num_jobs == 2)
            robot.send("cancel", "cut")
            (answer,) = [(await robot.until("error"))[-1]]
            assert worker_of(gated_app).num_jobs == 1
        done = await robot.next()

    assert (answer["request_id"], answer["body"]["code"], answer["body"]["status"]) == ("cut", "cancelled", 499)
    assert (done["type"], done["request_id"]) == ("done", "kept")
    assert counted(gated_app, "cancelled") == 1


@pytest.mark.parametrize("kind", ["likelihood", "score"])
async def test_reads_of_tokens_can_be_cancelled(serving, make_token_app, connecting, likelihood_request, gate, kind):
    engine = ToyLikelihoodEngine(toy_contract(tokens=toy_tokens()), read_hook=gate)
    app = make_token_app(engine)
    likelihood = likelihood_request()
    scoring = {
        "observation": likelihood["observation"],
        "candidates": {"values": [[[0.1, 0.2, 0.3]] * 4] * 8},
        "objectives": [{"kind": "likelihood", "weight": 1.0}],
    }
    async with serving(app), connecting(app) as robot:
        async with held(gate):
            robot.send(kind, "cut", **(likelihood if kind == "likelihood" else scoring))
            await entered(gate)
            robot.send("cancel", "cut")
            answer = await robot.next()
        assert answer["body"]["code"] == "cancelled"
        assert app.state.host.model.reader.pending_s == 0


async def test_an_id_may_be_used_again_once_it_is_answered(app, client, connecting, toy_request):
    async with connecting(app) as robot:
        answers = [await robot.ask("predict", **toy_request()) for _ in range(3)]

    assert [answer["type"] for answer in answers] == ["done"] * 3


async def test_hanging_up_ends_everything_in_flight(gated_app, serving, connecting, toy_request, gate):
    async with serving(gated_app):
        before = asyncio.all_tasks()
        async with connecting(gated_app) as robot, held(gate):
            for number in range(4):
                request = toy_request(sampling={"seed": number, "steps": 50}, ensemble={"size": 8})
                robot.send("predict", f"r-{number}", progress=number % 2 == 0, **request)
            await turn_until(lambda: worker_of(gated_app).num_jobs == 4)
            assert connections(gated_app) == 1
            robot.hang_up()
            await robot.ended()
            await turn_until(lambda: worker_of(gated_app).num_jobs == 0)
            await turn_until(lambda: asyncio.all_tasks() == before)
        assert worker_of(gated_app)._scheduler.pending_s == 0

    assert counted(gated_app, "client_left") == 4
    assert connections(gated_app) == 0
    assert gated_app.state.host.codec_slots.borrowed_tokens == 0


def connections(app):
    return app.state.host.metrics.registry.get_sample_value("foreframe_connections")


async def test_without_a_hang_up_the_work_would_go_on(gated_app, serving, connecting, toy_request, gate):
    """The positive control of the test above: what it waits for does not come by itself."""
    async with serving(gated_app), connecting(gated_app) as robot, held(gate):
        robot.send("predict", **toy_request(sampling__steps=50))
        await turn_until(lambda: worker_of(gated_app).num_jobs == 1)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert worker_of(gated_app).num_jobs == 1


async def test_a_newer_request_of_a_stream_takes_the_place_of_one_that_waits(
    gated_app, serving, connecting, toy_request, gate
):
    async with serving(gated_app), connecting(gated_app) as robot:
        async with held(gate):
            robot.send("predict", "first", **toy_request())
            await entered(gate)
            for number in (1, 2):
                asked = toy_request(stream_id="arm", sampling={"seed": number, "steps": 2})
                robot.send("predict", f"arm-{number}", **asked)
                await turn_until(lambda number=number: worker_of(gated_app).num_jobs >= 2 or robot.outbox.qsize())
            superseded = await robot.next()
        answers = {answer["request_id"]: answer["type"] for answer in [await robot.next(), await robot.next()]}

    assert (superseded["request_id"], superseded["body"]["code"]) == ("arm-1", "superseded")
    assert answers == {"first": "done", "arm-2": "done"}


async def test_a_deadline_counts_from_the_arrival_of_its_message(gated_app, serving, connecting, toy_request, gate):
    async with serving(gated_app), connecting(gated_app) as robot, held(gate):
        robot.send("predict", "first", **toy_request())
        await entered(gate)
        robot.send("predict", "late", **toy_request(sampling={"seed": 3}, deadline_ms=40, on_deadline="fail"))
        late = await robot.next()

    assert (late["request_id"], late["body"]["code"]) == ("late", "deadline_exceeded")
    assert 20 < late["server_timing"]["total"] < 1000 * PATIENCE_S


async def test_a_reader_that_is_slow_gets_the_newest_and_holds_nothing_up(
    gated_app, serving, connecting, toy_request, gate, monkeypatch
):
    answered = asyncio.Event()

    class Recorder(Newest):
        def end(self):
            answered.set()
            super().end()

    monkeypatch.setattr("foreframe_server.routes.telling.Newest", Recorder)
    asked = toy_request(ensemble={"size": 32}, sampling__steps=4)
    async with serving(gated_app), connecting(gated_app) as robot:
        async with held(gate, after=1):
            robot.send("predict", progress=True, **asked)
            await robot.until("estimate")
            robot.is_reading.clear()
        async with asyncio.timeout(PATIENCE_S):
            await answered.wait()
        robot.is_reading.set()
        messages = await robot.until("done")

    assert [message["type"] for message in messages].count("update") <= 1
    assert messages[-1]["body"]["ensemble"]["members"] == 32


async def test_of_a_robot_that_does_not_read_no_more_is_taken(app, client, connecting):
    async with connecting(app) as robot:
        robot.is_reading.clear()
        for _ in range(100):
            robot.send("ping", payload=b"x" * 1000)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert robot.inbox.qsize() == 99
        robot.is_reading.set()
        assert [(await robot.next())["type"] for _ in range(100)] == ["pong"] * 100


async def test_a_robot_that_never_reads_is_given_up(gated_app, serving, connecting, toy_request, gate, monkeypatch):
    monkeypatch.setattr("foreframe_server.routes.line._PATIENCE_S", 0.05)
    with structlog.testing.capture_logs() as lines:
        async with serving(gated_app), connecting(gated_app) as robot:
            robot.is_reading.clear()
            async with held(gate):
                robot.send("predict", "held", **toy_request(sampling__steps=50))
                await turn_until(lambda: worker_of(gated_app).num_jobs == 1)
                robot.send("ping", "stuck")
                await robot.ended()
                await turn_until(lambda: worker_of(gated_app).num_jobs == 0)

    codes = {line.get("kind", line["event"]): line["code"] for line in lines if "code" in line}
    assert codes == {"predict": "client_left", "ping": "client_left", "connection": "client_left"}


async def test_messages_are_counted_and_logged_one_by_one(app, client, connecting, toy_request):
    with structlog.testing.capture_logs() as lines:
        async with connecting(app, **{"x-request-id": "arm-1"}) as robot:
            await robot.ask("predict", "a", **toy_request())
            await robot.ask("predict", "b", **toy_request(model="other"))
            await robot.ask("ping", "c")

    messages = [line for line in lines if line["event"] == "message"]
    (connection,) = [line for line in lines if line["event"] == "connection"]
    assert [(line["request_id"], line["kind"], line["code"]) for line in messages] == [
        ("a", "predict", "ok"), ("b", "predict", "unknown_model"), ("c", "ping", "ok"),
    ]  # fmt: skip
    assert {line["connection"] for line in messages} == {"arm-1"}
    assert (connection["request_id"], connection["route"], connection["status"]) == ("arm-1", "/v1/realtime", 101)
    assert (counted(app, "ok"), counted(app, "unknown_model")) == (2, 1)


async def test_no_word_of_a_robot_becomes_a_label(app, client, connecting):
    async with connecting(app) as robot:
        await robot.ask("planted-kind", "planted-id", planted_field=1)

    assert b"planted" not in app.state.host.metrics.scrape()


async def test_what_replies_take_is_kept_free_before_deadlines(app, client, connecting, toy_request):
    service = app.state.host.model.service
    assert service._reply_s.value == 0
    async with connecting(app) as robot:
        robot.send("predict", progress=True, **toy_request())
        await robot.until("done")

    assert service._reply_s.value > 0
