import base64
import json

import msgpack
import numpy as np
import pytest
import structlog

from foreframe_engines import NoisePlan, SpreadCalibration
from foreframe_engines.calibration import Calibration
from foreframe_engines.spread import SpreadScale
from foreframe_engines.testing import ToyRolloutEngine
from foreframe_server.app import create_app
from foreframe_server.codec.arrays import map_for_msgpack
from foreframe_server.opening import given
from foreframe_server.settings import Settings

pytestmark = pytest.mark.anyio

URL = "/v1/predictions"


async def test_json_in_gives_every_field_of_the_reply(client, toy_request):
    request = toy_request(
        ensemble={"size": 3}, client_time=1.5, metadata={"run": "a"}, **{"return": {"variance": "map"}}
    )

    reply = await client.post(URL, json=request)

    body = reply.json()
    assert reply.status_code == 200
    assert set(body) == {
        "id", "model", "revision", "frames", "video", "members", "uncertainty", "ensemble", "degraded", "deadline_met",
        "seed", "determinism", "cache", "timings_ms", "warnings", "client_time", "metadata",
    }  # fmt: skip
    assert (body["model"], body["seed"], body["determinism"], body["cache"]) == ("toy", 7, "bitwise", "miss")
    assert body["ensemble"]["members"] == 3
    assert body["uncertainty"]["verdict"] == "uncalibrated"
    assert body["uncertainty"]["map"]["shape"] == [8, 8, 8]
    assert body["deadline_met"] is True
    assert body["degraded"] is None


@pytest.mark.parametrize(
    ("line", "verdict", "horizon"),
    [((9.0,) * 8, "usual", 8), ((9.0,) * 3 + (1e-9,) * 5, "partly", 3), ((1e-9,) * 8, "unusual", 0)],
)
async def test_a_calibrated_spread_is_judged(serving, toy_request, line, verdict, horizon):
    engine = ToyRolloutEngine()
    scales = (SpreadScale(2, line, (2.0,) * 8),)
    spread = SpreadCalibration(40, 0.9, toy_request()["sampling"]["steps"], 1.0, NoisePlan.ANTITHETIC, scales)
    async with serving(create_app(Settings(), given(engine, calibration=Calibration(spread=spread)))) as client:
        told = (await client.post(URL, json=toy_request(ensemble={"size": 4}))).json()["uncertainty"]
        alone = (await client.post(URL, json=toy_request(ensemble={"size": 1}))).json()["uncertainty"]
        without = toy_request(ensemble={"size": 4}, **{"return": {"variance": "none"}})
        brief = (await client.post(URL, json=without)).json()["uncertainty"]
        counted = (await client.get("/metrics")).text

    assert (told["verdict"], told["trusted_horizon"]) == (verdict, horizon)
    assert told["calibration"]["line_per_frame"] == list(line)
    assert told["calibration"]["error_per_frame"] == [2 * each for each in told["spread_per_frame"]]
    assert told["calibration"]["coverage"] == 0.9
    assert f'foreframe_spread_total{{verdict="{verdict}"}} 2.0' in counted
    assert (alone["verdict"], alone["trusted_horizon"], alone["calibration"]) == ("uncalibrated", None, None)
    assert (brief["verdict"], brief["trusted_horizon"], brief["calibration"]) == (verdict, horizon, None)


async def test_msgpack_and_json_of_one_request_give_equal_frames(client, toy_request, frames):
    asked = {"return": {"encoding": "raw"}}
    array = toy_request(observation__cameras__head={"frames": frames()}, **asked)
    headers = {"content-type": "application/msgpack", "accept": "application/msgpack"}

    packed = await client.post(URL, content=msgpack.packb(array, default=map_for_msgpack), headers=headers)
    plain = await client.post(URL, json=toy_request(**asked))

    assert packed.headers["content-type"] == "application/msgpack"
    assert plain.json()["cache"] == "hit"
    arrays = [frame["image"] for frame in msgpack.unpackb(packed.content)["frames"]]
    texts = [frame["image"] for frame in plain.json()["frames"]]
    assert [array[b"data"] for array in arrays] == [base64.b64decode(text["data"]) for text in texts]
    assert [array[b"shape"] for array in arrays] == [text["shape"] for text in texts] == [[8, 8, 3]] * 8


@pytest.mark.parametrize(
    ("accept", "start"),
    [("video/mp4", b"\0\0\0\x20ftyp"), ("image/png", b"\x89PNG"), ("image/webp", b"RIFF")],
)
async def test_accept_chooses_pictures(client, toy_request, accept, start):
    reply = await client.post(URL, json=toy_request(), headers={"accept": accept})

    assert reply.headers["content-type"] == accept
    assert reply.content.startswith(start)
    assert reply.headers["x-foreframe-seed"] == "7"


async def test_an_absent_seed_comes_back_and_repeats_the_answer(client, toy_request):
    first = (await client.post(URL, json=toy_request(sampling={}))).json()
    again = (await client.post(URL, json=toy_request(sampling={"seed": first["seed"]}, cache="bypass"))).json()

    assert again["frames"] == first["frames"]


async def test_timings_are_in_the_body_and_in_the_header(client, toy_request):
    reply = await client.post(URL, json=toy_request())

    stages = dict(part.split(";dur=") for part in reply.headers["server-timing"].split(", "))
    timings = reply.json()["timings_ms"]
    assert set(stages) | {"step_batch_mean", "cold"} == set(timings)
    assert timings["total"] >= timings["receive"] + timings["decode"] + timings["respond"]
    assert float(stages["total"]) >= timings["total"]


@pytest.mark.parametrize(
    ("field", "header", "outcome"),
    [(None, None, 200), (600_000, None, 200), (600_000, "0", 504), (600_000, "600000", 200), (None, "0", 504)],
)
async def test_the_earliest_deadline_wins(client, toy_request, field, header, outcome):
    request = toy_request() if field is None else toy_request(deadline_ms=field)
    headers = {} if header is None else {"x-deadline-ms": header}

    reply = await client.post(URL, json=request, headers=headers)

    assert reply.status_code == outcome


async def test_a_model_that_fails_is_a_problem_without_its_words(serving, toy_request):
    def fail(rows):
        raise RuntimeError("planted-words at 0x7f00")

    engine = ToyRolloutEngine()
    async with serving(create_app(Settings(), given(engine))) as client:
        engine._step_hook = fail
        reply = await client.post(URL, json=toy_request())

    assert (reply.status_code, reply.json()["code"]) == (500, "model_fault")
    assert "planted" not in reply.text


async def test_a_client_that_leaves_ends_its_work(app, client, engine, toy_request):
    body = json.dumps(toy_request(sampling={"steps": 50}, ensemble={"size": 32})).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]
    sent = []

    async def receive():
        return messages.pop(0) if len(messages) > 1 else messages[0]

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": URL, "raw_path": URL.encode(),
        "query_string": b"", "headers": headers, "scheme": "http", "root_path": "",
    }  # fmt: skip
    with structlog.testing.capture_logs() as lines:
        await app(scope, receive, send)

    assert sent[0]["status"] == 499
    assert engine.calls["decode"] < 32
    assert [(line["status"], line["code"]) for line in lines if line["event"] == "request"] == [(499, "client_left")]
    counted = {"route": URL, "code": "client_left"}
    assert app.state.host.metrics.registry.get_sample_value("foreframe_requests_total", counted) == 1


async def test_states_out_of_range_are_served_with_a_warning(client, toy_request):
    reply = await client.post(URL, json=toy_request(future__values=np.full((8, 3), 9.0).tolist()))

    assert reply.status_code == 200
    assert {warning["code"] for warning in reply.json()["warnings"]} == {"state_out_of_range"}
    assert all(warning["sigma"] == 9.0 for warning in reply.json()["warnings"])
