"""Bad input at the websocket: what ends the message, what ends the connection, and what never gets one."""

import asyncio
import json

import msgpack
import numpy as np
import pytest
import structlog

from foreframe_engines.testing import ToyRolloutEngine
from foreframe_server.app import create_app
from foreframe_server.codec.arrays import map_for_msgpack
from foreframe_server.opening import given
from foreframe_server.settings import Settings

pytestmark = pytest.mark.anyio

MARKER = "planted-7f3a"
MAX_LAG_S = 0.05
PATIENCE_S = 20
KINDS = ("predict", "score", "likelihood", "observe", "cancel", "ping")


def pack(message):
    return msgpack.packb(message, default=map_for_msgpack)


WHOLE = pack({"type": "ping", "request_id": "r", "payload": MARKER})
BROKEN_ARRAY = {"__ndarray__": True, "data": b"1234567", "dtype": "<f4", "shape": [2]}

FATAL = {
    "text": {"text": json.dumps({"type": "ping", "note": MARKER})},
    "nothing": {"bytes": b""},
    "junk": {"bytes": bytes(range(256))},
    "truncated, its id last": {"bytes": pack({"payload": MARKER, "type": "ping", "request_id": "r"})[:-1]},
    "truncated within its id": {"bytes": pack({"type": "ping", "request_id": "r"})[:-1]},
    "a list": {"bytes": pack(["ping", MARKER])},
    "json": {"bytes": b'{"type": "ping"}'},
    "a broken array and no id before it": {"bytes": pack({"x": BROKEN_ARRAY, "type": "ping", "request_id": "r"})},
}


@pytest.mark.parametrize("case", FATAL)
async def test_what_cannot_be_answered_ends_the_connection(app, client, connecting, case):
    async with connecting(app) as robot:
        robot.inbox.put_nowait({"type": "websocket.receive", **FATAL[case]})
        await robot.ended()

    assert (robot.close_code, robot.outbox.qsize()) == (1011, 0)
    problem = json.loads(robot.text)
    assert set(problem) == {"code", "message"}
    assert problem["code"] == "invalid_request"
    assert MARKER not in robot.text
    assert app.state.host.metrics.registry.get_sample_value(
        "foreframe_requests_total", {"route": "/v1/realtime", "code": "invalid_request"}
    ) == 1  # fmt: skip


async def test_a_whole_message_does_not_end_it(app, client, connecting):
    """The positive control of the test above."""
    async with connecting(app) as robot:
        robot.send_bytes(WHOLE)
        assert (await robot.next())["body"] == {"payload": MARKER}
        assert robot.close_code is None


async def test_what_ends_the_connection_ends_what_is_in_flight(serving, connecting, toy_request, gate):
    app = create_app(Settings(), given(ToyRolloutEngine(step_hook=gate)))
    async with serving(app), connecting(app) as robot:
        worker = app.state.host.model.service._worker
        gate.close()
        robot.send("predict", **toy_request(sampling__steps=50))
        assert await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)
        robot.send_bytes(b"junk")
        await robot.ended()
        assert worker.num_jobs == 0
        gate.open()

    assert (robot.close_code, robot.outbox.qsize()) == (1011, 0)


async def test_a_message_that_is_too_large_closes_with_its_own_code(serving, connecting, toy_request):
    app = create_app(Settings(http={"max_body_bytes": 4096}), given(ToyRolloutEngine()))
    async with serving(app), connecting(app) as robot:
        robot.send("ping", payload=b"\x00" * 4096)
        await robot.ended()

    assert robot.close_code == 1009
    assert json.loads(robot.text) == {"code": "payload_too_large", "message": "A message may have 4096 bytes."}


def test_no_body_s_limit_makes_messages_larger_than_64_mib():
    assert Settings().http.max_message_bytes == 16 * 2**20
    assert Settings(http={"max_body_bytes": 2**30}).http.max_message_bytes == 64 * 2**20


async def test_a_server_that_is_not_ready_says_to_try_again_later(arriving):
    app = create_app(Settings(), given(ToyRolloutEngine()))
    async with arriving(app) as robot:
        await robot.ended()

    assert (robot.is_accepted, robot.close_code, robot.outbox.qsize()) == (True, 1013, 0)
    assert json.loads(robot.text)["code"] == "not_ready"


@pytest.mark.parametrize(
    "origin", ["https://elsewhere.example", "null", "http://localhost.elsewhere.example", "http://["]
)
async def test_pages_of_other_sites_get_no_connection(app, client, arriving, origin):
    async with arriving(app, origin=origin) as robot:
        await robot.ended()

    start, *bodies = robot.denied
    problem = json.loads(b"".join(message["body"] for message in bodies))
    assert not robot.is_accepted
    assert (start["status"], problem["status"], problem["code"]) == (403, 403, "forbidden")
    assert "elsewhere" not in json.dumps(problem)
    assert app.state.host.metrics.registry.get_sample_value(
        "foreframe_requests_total", {"route": "/v1/realtime", "code": "forbidden"}
    ) == 1  # fmt: skip


async def test_the_server_s_own_pages_may_connect(app, client, connecting):
    async with connecting(app, origin="http://localhost") as robot:
        assert (await robot.ask("ping"))["type"] == "pong"


async def test_a_path_without_a_websocket_is_counted_as_not_found(app, client, arriving):
    async with arriving(app, path="/v1/predictions") as robot:
        await robot.ended()

    assert not robot.is_accepted
    assert b'foreframe_requests_total{code="not_found",route="other"} 1.0' in app.state.host.metrics.scrape()


@pytest.mark.parametrize("kind", ["stride", "", None, 7, ["predict"], {"predict": 1}, "x" * 5000])
async def test_an_unknown_type_is_told_the_known_ones(app, client, connecting, kind):
    async with connecting(app) as robot:
        answer = await robot.ask(kind, "r-1")
        assert (await robot.ask("ping"))["type"] == "pong"

    (reason,) = answer["body"]["errors"]
    assert (answer["type"], answer["request_id"], answer["body"]["code"]) == ("error", "r-1", "invalid_request")
    assert reason["pointer"] == "/type"
    assert all(f"'{known}'" in reason["message"] for known in KINDS)


@pytest.mark.parametrize("request_id", ["", "a b", "x" * 65, "ä", 7, b"raw", ["r"]])
async def test_an_id_that_cannot_be_echoed_is_refused_under_another(app, client, connecting, request_id):
    async with connecting(app) as robot:
        answer = await robot.ask("ping", request_id)

    assert answer["body"]["errors"][0]["pointer"] == "/request_id"
    assert answer["request_id"] == answer["body"]["request_id"]
    assert answer["request_id"].isalnum()


BAD_PREDICTIONS = {
    "too few future rows": ({"future__values": []}, "state_dim_mismatch", "/future/values"),
    "too wide": ({"future__values": [[0.1] * 4]}, "state_dim_mismatch", "/future/values/0"),
    "a shape of its own": ({"future__values": np.zeros((2, 2, 3), np.float32)}, "state_dim_mismatch", "/future/values"),
    "not finite": ({"future__values": [[float("nan"), 0, 0]]}, "non_finite", None),
    "unknown camera": ({"observation__cameras": {MARKER: {"frames": []}}}, "camera_missing", "/observation/cameras"),
    "unknown field": ({MARKER: 1}, "invalid_request", ""),
    "no future": ({"future": ...}, "invalid_request", "/future"),
    "too large an ensemble": ({"ensemble": {"size": 33}}, "invalid_request", "/ensemble/size"),
    "a deadline of 0": ({"deadline_ms": 0}, "invalid_request", "/deadline_ms"),
    "progress as text": ({"progress": "yes"}, "invalid_request", "/progress"),
    "progress of a clip": ({"progress": True, "return": {"encoding": "mp4"}}, "invalid_request", "/return/encoding"),
    "another model": ({"model": MARKER}, "unknown_model", "/model"),
    "an observation that is gone": ({"observation": ..., "observation_id": "x"}, "gone", "/observation_id"),
}


@pytest.mark.parametrize("case", BAD_PREDICTIONS)
async def test_a_bad_prediction_gets_the_problem_of_http_and_the_connection_lives(
    app, client, connecting, toy_request, case
):
    fields, code, pointer = BAD_PREDICTIONS[case]
    request = toy_request(**fields)
    async with connecting(app) as robot:
        answer = await robot.ask("predict", **request)
        alive = await robot.ask("predict", **toy_request())
    progress = request.pop("progress", None)
    headers = {"content-type": "application/msgpack", "accept": "text/event-stream" if progress else "*/*"}
    over_http = await client.post("/v1/predictions", content=pack(request), headers=headers)

    assert (answer["type"], answer["body"]["code"], alive["type"]) == ("error", code, "done")
    assert pointer is None or answer["body"]["errors"][0]["pointer"] == pointer
    assert MARKER not in str(answer)
    assert set(answer["server_timing"]) == {"total"}
    if progress != "yes":
        assert {**answer["body"], "request_id": ""} == {**over_http.json(), "request_id": ""}


@pytest.mark.parametrize("kind", ["score", "likelihood", "observe", "ping", "cancel"])
async def test_other_kinds_have_no_progress(token_app, token_client, connecting, kind):
    async with connecting(token_app) as robot:
        answer = await robot.ask(kind, progress=True)

    assert answer["body"]["code"] == "invalid_request"


async def test_what_the_model_cannot_do_is_said_so(app, client, connecting, likelihood_request):
    async with connecting(app) as robot:
        answer = await robot.ask("likelihood", **likelihood_request())

    assert (answer["body"]["code"], answer["body"]["status"]) == ("capability_missing", 409)


@pytest.mark.parametrize(
    "fields",
    [
        {"array": BROKEN_ARRAY},
        {"keys": {str(key): 0 for key in range(65)}},
        {"deep": [[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]},
        {"many": [[0] * 16_000] * 5},
    ],
    ids=["array", "keys", "deep", "many"],
)
async def test_a_document_that_breaks_a_rule_is_answered_when_its_id_stands_first(app, client, connecting, fields):
    async with connecting(app) as robot:
        answer = await robot.ask("predict", "r-1", **fields)
        assert (await robot.ask("ping"))["type"] == "pong"

    assert (answer["request_id"], answer["body"]["code"]) == ("r-1", "invalid_request")


@pytest.mark.parametrize("data", [WHOLE[:-1], WHOLE + WHOLE], ids=["truncated", "twice"])
async def test_what_is_not_one_whole_message_is_answered_when_its_id_stands_first(app, client, connecting, data):
    async with connecting(app) as robot:
        robot.send_bytes(data)
        answer = await robot.next()

    assert (answer["type"], answer["request_id"], answer["body"]["code"]) == ("error", "r", "invalid_request")


async def test_too_many_in_flight_are_refused_one_by_one(serving, connecting, toy_request, gate):
    app = create_app(Settings(realtime={"max_in_flight": 2}), given(ToyRolloutEngine(step_hook=gate)))
    async with serving(app), connecting(app) as robot:
        gate.close()
        for number in range(4):
            robot.send("predict", f"r-{number}", **toy_request(sampling={"seed": number, "steps": 2}))
        refused = [await robot.next(), await robot.next()]
        robot.send("ping", "alive")
        alive = await robot.next()
        gate.open()
        done = [await robot.next(), await robot.next()]
        again = await robot.ask("predict", "r-2", **toy_request())

    assert [(answer["request_id"], answer["body"]["code"]) for answer in refused] == [
        ("r-2", "overloaded"), ("r-3", "overloaded"),
    ]  # fmt: skip
    assert (alive["type"], again["type"]) == ("pong", "done")
    assert {answer["request_id"] for answer in done} == {"r-0", "r-1"}


async def test_two_requests_in_flight_need_two_ids(serving, connecting, toy_request, gate):
    app = create_app(Settings(), given(ToyRolloutEngine(step_hook=gate)))
    async with serving(app), connecting(app) as robot:
        gate.close()
        robot.send("predict", "twin", **toy_request())
        robot.send("predict", "twin", **toy_request())
        refused = await robot.next()
        gate.open()
        done = await robot.next()

    assert (refused["type"], refused["body"]["errors"][0]["pointer"]) == ("error", "/request_id")
    assert (done["type"], done["request_id"]) == ("done", "twin")


async def test_only_what_is_in_flight_can_be_cancelled(app, client, connecting, toy_request):
    async with connecting(app) as robot:
        never = await robot.ask("cancel", "never")
        await robot.ask("predict", "done", **toy_request())
        late = await robot.ask("cancel", "done")

    assert [answer["body"]["code"] for answer in (never, late)] == ["gone", "gone"]


async def test_a_model_that_fails_ends_its_message_only(serving, connecting, toy_request):
    faults = [RuntimeError(MARKER)]

    def fail(rows):
        if armed and faults:
            raise faults.pop()

    armed, app = [], create_app(Settings(), given(ToyRolloutEngine(step_hook=fail)))
    with structlog.testing.capture_logs():
        async with serving(app), connecting(app) as robot:
            armed.append(True)
            answer = await robot.ask("predict", **toy_request())
            alive = await robot.ask("predict", **toy_request())

    assert (answer["body"]["code"], alive["type"]) == ("model_fault", "done")
    assert MARKER not in str(answer)


async def test_a_fault_of_the_server_s_own_is_logged_and_ends_its_message_only(
    app, client, connecting, toy_request, monkeypatch
):
    async def fail(*_):
        raise RuntimeError(MARKER)

    monkeypatch.setattr(app.state.host.model.service, "predict", fail)
    with structlog.testing.capture_logs() as lines:
        async with connecting(app) as robot:
            answer = await robot.ask("predict", **toy_request())
            assert (await robot.ask("ping"))["type"] == "pong"

    assert answer["body"]["code"] == "model_fault"
    assert MARKER not in str(answer)
    assert [line["event"] for line in lines] == ["message failed", "message", "message", "connection"]


@pytest.mark.parametrize(
    "hostile",
    [
        {"type": "ping", "request_id": "r", "payload": [[0] * 16_000] * 1000},
        {"type": "predict", "request_id": "r", "payload": [[[]] * 16_000] * 4},
        {"type": "predict", "request_id": "r", "payload": np.zeros((2**20, 3), np.float32)},
    ],
    ids=["many", "lists", "large"],
)
async def test_large_messages_do_not_hold_the_event_loop_up(app, client, connecting, best_lag, hostile):
    data = pack(hostile)

    async def send():
        async with connecting(app) as robot:
            robot.send_bytes(data)
            assert (await robot.next())["type"] == "error"

    assert await best_lag(send) < MAX_LAG_S
