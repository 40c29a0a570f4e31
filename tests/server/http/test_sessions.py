"""Sessions over HTTP and over the websocket: what is answered, what is refused, and what is left afterwards."""

import asyncio
import json

import msgpack
import numpy as np
import pytest

from foreframe_engines import builtin_bundle
from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine, toy_contract
from foreframe_server.app import create_app
from foreframe_server.opening import OpenedEngines, given
from foreframe_server.settings import Settings

pytestmark = pytest.mark.anyio

URL = "/v1/sessions"
PATIENCE_S = 20


@pytest.fixture
async def session_id(client, toy_request):
    return await start(client, toy_request)


async def start(client, toy_request, **fields):
    reply = await client.post(URL, json={"observation": toy_request()["observation"], "seed": 7, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()["session_id"]


def step_fields(rows=2, *, first=0.0, **fields):
    values = [[first + 0.1 * row, 0.2, 0.3] for row in range(rows)]
    return {"future": {"values": values}, "sampling": {"steps": 2}, **fields}


async def step(client, session_id, **fields):
    return await client.post(f"{URL}/{session_id}/steps", json=step_fields(**fields))


def observation_of(frames, states):
    camera = {"encoding": "raw_rgb8", "frames": frames}
    return {"cameras": {"head": camera}, "state": {"values": states}}


async def test_a_step_has_the_frames_of_the_prediction_from_the_same_observation(client, session_id, toy_request):
    stepped = (await step(client, session_id, rows=8, step_id=1)).json()
    alone = (
        await client.post("/v1/predictions", json=toy_request(sampling={"seed": 7, "steps": 2}, cache="bypass"))
    ).json()

    assert stepped["frames"] == alone["frames"]
    assert set(stepped) - set(alone) == {"session_id", "step_id", "committed_step_id", "is_repeat"}
    assert (stepped["session_id"], stepped["step_id"], stepped["committed_step_id"]) == (session_id, 1, 1)
    assert stepped["timings_ms"]["total"] > 0


async def test_a_session_says_how_it_stands(client, session_id):
    await step(client, session_id)
    body = (await client.get(f"{URL}/{session_id}")).json()

    assert (body["committed_step_id"], body["rollback_from"], body["frames"], body["seed"]) == (1, 0, 2, 7)
    assert body["state"] == pytest.approx([0.1, 0.2, 0.3])
    assert (body["model"], body["shadow"]["count"]) == ("toy", 0)
    assert body["bytes"] > 4 * 8 * 8 * 3
    assert 599 < body["expires_in_s"] <= 600


async def test_the_same_step_gives_the_same_frames_again_and_another_is_out_of_order(client, session_id):
    first = (await step(client, session_id, step_id=1)).json()
    again = (await step(client, session_id, step_id=1)).json()
    skipped = await step(client, session_id, step_id=3)
    changed = await step(client, session_id, step_id=1, first=0.5)

    assert first["frames"] == again["frames"]
    assert (first["is_repeat"], again["is_repeat"]) == (False, True)
    for refused in (skipped, changed):
        assert (refused.status_code, refused.json()["code"]) == (409, "step_out_of_order")
        assert refused.json()["errors"][0]["pointer"] == "/step_id"


async def test_only_the_frames_that_are_wanted_come_back(client, session_id):
    chosen = (
        await step(client, session_id, rows=5, frames=[2, 5], **{"return": {"variance": "map", "members": True}})
    ).json()
    last = (await step(client, session_id, rows=3, frames="last")).json()

    assert [frame["index"] for frame in chosen["frames"]] == [2, 5]
    assert [len(member) for member in chosen["members"]] == [2]
    assert [frame["index"] for frame in last["frames"]] == [3]


@pytest.mark.parametrize("media", ["video/mp4", "image/png", "image/webp"])
async def test_pictures_come_back_where_they_are_asked_for(client, session_id, media):
    reply = await client.post(f"{URL}/{session_id}/steps", json=step_fields(), headers={"accept": media})

    assert (reply.status_code, reply.headers["content-type"]) == (200, media)
    assert (reply.headers["x-foreframe-step"], reply.headers["x-foreframe-seed"]) == ("1", "7")


async def test_msgpack_goes_in_and_comes_back(client, session_id):
    headers = {"content-type": "application/msgpack", "accept": "application/msgpack"}
    body = msgpack.packb(step_fields(**{"return": {"encoding": "raw"}}))
    reply = msgpack.unpackb((await client.post(f"{URL}/{session_id}/steps", content=body, headers=headers)).content)

    assert reply["frames"][0]["image"][b"shape"] == [8, 8, 3]


async def test_an_uploaded_observation_starts_a_session_without_another_encoding(client, app, engine, toy_request):
    held = (await client.post("/v1/observations", json={"observation": toy_request()["observation"]})).json()
    engine.calls.clear()
    reply = await client.post(URL, json={"observation_id": held["observation_id"], "seed": 7})
    by_id = (await step(client, reply.json()["session_id"])).json()
    assert engine.calls["encode"] == 0

    sent = (await step(client, await start(client, toy_request))).json()
    assert by_id["frames"] == sent["frames"]


async def test_a_clip_of_the_model_s_starts_a_session(serving, toy_request):
    contract = toy_contract(size=64, state_dim=25)
    engine = ToyRolloutEngine(contract)
    app = create_app(Settings(), lambda _: OpenedEngines("toy", engine, folder=builtin_bundle()))
    async with serving(app) as client:
        started = await client.post(URL, json={"clip": 0})
        beyond = await client.post(URL, json={"clip": 10_000})
        stepped = await client.post(
            f"{URL}/{started.json()['session_id']}/steps", json={"future": {"values": [started.json()["state"]]}}
        )

    assert (started.status_code, stepped.status_code) == (200, 200)
    assert (beyond.status_code, beyond.json()["errors"][0]["pointer"]) == (422, "/clip")


async def test_a_model_without_clips_says_so(client):
    reply = await client.post(URL, json={"clip": 0})
    assert (reply.status_code, reply.json()["code"]) == (409, "capability_missing")


async def test_a_fork_goes_its_own_way(client, session_id):
    await step(client, session_id)
    fork = (await client.post(f"{URL}/{session_id}/forks")).json()
    same = [(await step(client, each, step_id=2)).json() for each in (session_id, fork["session_id"])]
    apart = [(await step(client, each, first=at)).json() for at, each in ((0.0, session_id), (1.0, fork["session_id"]))]

    assert fork["committed_step_id"] == 1
    assert same[0]["frames"] == same[1]["frames"]
    assert apart[0]["frames"] != apart[1]["frames"]


async def test_a_rollback_and_a_reset_bring_the_same_frames_again(client, session_id):
    first = [(await step(client, session_id, first=at)).json()["frames"] for at in range(3)]
    back = (await client.post(f"{URL}/{session_id}/rollback", json={"step_id": 1})).json()
    again = [(await step(client, session_id, first=at)).json()["frames"] for at in (1, 2)]
    restarted = (await client.post(f"{URL}/{session_id}/reset")).json()
    anew = (await step(client, session_id, first=0, step_id=1)).json()["frames"]

    assert (back["committed_step_id"], restarted["committed_step_id"]) == (1, 0)
    assert again == first[1:]
    assert anew == first[0]


async def test_a_reset_takes_another_start_and_another_seed(client, session_id, toy_request, frames, base64_of):
    other = toy_request()["observation"]
    other["state"]["values"] = [[0.0, 0.1, 0.2]] * 4
    reset = await client.post(f"{URL}/{session_id}/reset", json={"observation": other, "seed": 8})
    stepped = (await step(client, session_id, rows=8)).json()
    alone = await client.post(
        "/v1/predictions", json=toy_request(observation=other, sampling={"seed": 8, "steps": 2}, cache="bypass")
    )

    assert reset.json()["seed"] == 8
    assert stepped["frames"] == alone.json()["frames"]


async def test_what_arrived_is_compared_and_shows_in_the_metrics(client, session_id, frames, base64_of):
    stepped = (await step(client, session_id, rows=1, **{"return": {"encoding": "png"}})).json()
    arrived = {
        "cameras": {"head": {"encoding": "png", "frames": [stepped["frames"][0]["image"]["data"]]}},
        "state": {"values": [[0.0, 0.2, 0.3]]},
    }
    first = (await client.post(f"{URL}/{session_id}/observations", json={"observation": arrived})).json()
    other = observation_of([base64_of(frame.tobytes()) for frame in frames(count=2)], [[0.0, 0.2, 0.3]] * 2)
    other["cameras"]["head"] |= {"width": 8, "height": 8}
    second = (await client.post(f"{URL}/{session_id}/observations", json={"observation": other})).json()

    assert first["compared"][0]["psnr_db"] == 100
    assert first["compared"][0]["baseline_db"] < 30
    assert [each["psnr_db"] for each in second["compared"]] == [None, None]
    assert (second["shadow"]["count"], second["frames"]) == (1, 3)
    metrics = (await client.get("/metrics")).text
    assert "foreframe_prediction_psnr_db_count 1.0" in metrics
    assert "foreframe_sessions 1.0" in metrics
    assert 'foreframe_session_events_total{event="created"} 1.0' in metrics


async def test_a_deleted_session_is_gone_and_an_unknown_one_was_never_there(client, session_id):
    assert (await client.delete(f"{URL}/{session_id}")).status_code == 204
    for url, code, status in ((session_id, "gone", 410), ("made-up", "unknown_model", 404)):
        for reply in (
            await client.get(f"{URL}/{url}"),
            await client.delete(f"{URL}/{url}"),
            await step(client, url),
            await client.post(f"{URL}/{url}/forks"),
            await client.post(f"{URL}/{url}/reset"),
            await client.post(f"{URL}/{url}/rollback", json={"step_id": 0}),
        ):
            assert (reply.status_code, reply.json()["code"]) == (status, code)
    assert "foreframe_session_bytes 0.0" in (await client.get("/metrics")).text


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({}, "/observation"),
        ({"clip": -1}, "/clip"),
        ({"clip": 0, "observation_id": "x"}, "/observation"),
        ({"seed": -1, "clip": 0}, "/seed"),
        ({"ttl_s": 1e9, "clip": 0}, "/ttl_s"),
        ({"ttl_s": 0, "clip": 0}, "/ttl_s"),
        ({"model": "other", "clip": 0}, "/model"),
        ({"picture": 3}, ""),
    ],
)
async def test_a_start_that_is_no_start_is_refused(client, fields, pointer):
    reply = await client.post(URL, json=fields)

    assert reply.status_code in (404, 422)
    assert reply.json()["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize(
    ("fields", "code", "pointer"),
    [
        ({"step_id": 0}, "invalid_request", "/step_id"),
        ({"step_id": "1"}, "invalid_request", "/step_id"),
        ({"future": {"values": []}}, "state_dim_mismatch", "/future/values"),
        ({"future": {"values": [[1.0]]}}, "state_dim_mismatch", "/future/values/0"),
        ({"future": {"values": [[0.0, 0.0, float("nan")]]}}, "non_finite", "/future/values/0/2"),
        ({"future": {"values": [[0.0, 0.0, 0.0]] * 257}}, "state_dim_mismatch", "/future/values"),
        ({"frames": [9]}, "invalid_request", "/frames"),
        ({"ensemble": {"size": 33}}, "invalid_request", "/ensemble/size"),
        ({"sampling": {"steps": 51}}, "invalid_request", "/sampling/steps"),
        ({"return": {"latents": True}}, "invalid_request", "/return/latents"),
        ({"observation": {}}, "invalid_request", ""),
    ],
)
async def test_a_step_that_does_not_fit_is_refused_and_not_made(client, session_id, fields, code, pointer):
    # Written by hand, because JSON of the client's has no NaN.
    text = json.dumps({**step_fields(), **fields})
    reply = await client.post(f"{URL}/{session_id}/steps", content=text, headers={"content-type": "application/json"})

    assert reply.json()["code"] == code
    assert reply.json()["errors"][0]["pointer"] == pointer
    assert (await client.get(f"{URL}/{session_id}")).json()["committed_step_id"] == 0


async def test_units_and_names_of_a_step_are_its_own(client, session_id):
    future = {"values": [[180.0, 0.0, 0.0]], "units": ["deg", "deg", "deg"]}
    reply = await client.post(f"{URL}/{session_id}/steps", json={"future": future})

    assert [warning["code"] for warning in reply.json()["warnings"]] == ["units_converted"]
    state = (await client.get(f"{URL}/{session_id}")).json()["state"]
    assert state == pytest.approx([np.pi, 0, 0], abs=1e-5)


async def test_a_fork_takes_no_field(client, session_id):
    reply = await client.post(f"{URL}/{session_id}/forks", json={"count": 3})
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_request")


async def test_before_the_model_is_open_and_without_a_rollout_half_there_are_no_sessions(serving):
    async with serving(create_app(Settings(), given(None, ToyLikelihoodEngine()))) as client:
        reply = await client.post(URL, json={"clip": 0})
    assert (reply.status_code, reply.json()["code"]) == (409, "capability_missing")


class TestRealtime:
    async def test_a_robot_starts_steps_and_resets_a_session(self, app, client, arriving, toy_request):
        async with arriving(app) as robot:
            await robot.next()
            started = await robot.ask("reset", observation=toy_request()["observation"], seed=7)
            session_id = started["body"]["session_id"]
            first = await robot.ask("step", session_id=session_id, step_id=1, **step_fields())
            again = await robot.ask("step", session_id=session_id, step_id=1, **step_fields())
            skipped = await robot.ask("step", session_id=session_id, step_id=5, **step_fields())
            reset = await robot.ask("reset", session_id=session_id)
            anew = await robot.ask("step", session_id=session_id, step_id=1, **step_fields())

        assert [each["type"] for each in (started, first, again, skipped, reset)] == ["done"] * 3 + ["error", "done"]
        assert first["body"]["frames"] == again["body"]["frames"] == anew["body"]["frames"]
        assert skipped["body"]["code"] == "step_out_of_order"
        over_http = await step(client, session_id, step_id=1)
        assert over_http.json()["is_repeat"]

    async def test_a_step_without_a_session_is_refused(self, app, client, arriving):
        async with arriving(app) as robot:
            await robot.next()
            refused = await robot.ask("step", **step_fields())
        assert refused["body"]["errors"][0]["pointer"] == "/session_id"

    async def test_a_robot_that_drops_during_a_step_leaves_the_session_free(self, serving, arriving, gate, toy_request):
        app = create_app(Settings(), given(ToyRolloutEngine(step_hook=gate)))
        async with serving(app) as client:
            session_id = await start(client, toy_request)
            async with arriving(app) as robot:
                await robot.next()
                gate.close()
                robot.send("step", session_id=session_id, step_id=1, **step_fields())
                assert await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)
            gate.open()
            async with asyncio.timeout(PATIENCE_S):
                reply = (await step(client, session_id, step_id=1)).json()

        assert (reply["step_id"], reply["is_repeat"]) == (1, False)
