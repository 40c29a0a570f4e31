import msgpack
import pytest

from foreframe_engines.testing import ToyLikelihoodEngine
from foreframe_server.codec.arrays import map_for_msgpack
from foreframe_server.settings import ObservationSettings, Settings

pytestmark = pytest.mark.anyio

URL = "/v1/observations"


async def upload(client, request, **fields):
    reply = await client.post(URL, json={"observation": request["observation"], **fields})
    assert reply.status_code == 200
    return reply.json()


async def test_an_upload_says_what_is_held(token_client, toy_request):
    body = await upload(token_client, toy_request(), ttl_s=30)

    assert set(body) == {"observation_id", "expires_in_s", "frames", "models", "bytes", "warnings"}
    assert (body["expires_in_s"], body["frames"], body["models"]) == (30, 4, ["rollout", "likelihood"])
    assert body["bytes"] > 4 * 8 * 8 * 3


async def test_a_prediction_from_an_upload_has_the_same_bytes_and_encodes_nothing(serving, make_token_app, toy_request):
    app = make_token_app(ToyLikelihoodEngine())
    async with serving(app) as client:
        held = await upload(client, toy_request())
        fresh = await client.post("/v1/predictions", json=toy_request(cache="bypass"))
        engine = app.state.host.model.service._worker._engine
        num_encodes = engine.calls["encode"]
        by_id = toy_request(cache="bypass", observation=..., observation_id=held["observation_id"])
        stored = await client.post("/v1/predictions", json=by_id)
        cached = await client.post(
            "/v1/predictions", json=toy_request(observation=..., observation_id=held["observation_id"])
        )
        again = await client.post("/v1/predictions", json=toy_request())

    assert stored.json()["frames"] == fresh.json()["frames"]
    assert engine.calls["encode"] == num_encodes
    assert [cached.json()["cache"], again.json()["cache"]] == ["miss", "hit"]


async def test_a_longer_upload_gives_predictions_its_last_frames(token_client, toy_request, frames):
    long = toy_request()
    states = [[0.1 * row, 0.2, 0.3] for row in range(6)]
    observation = {"cameras": {"head": {"frames": frames(count=6)}}, "state": {"values": states}}
    headers = {"content-type": "application/msgpack"}
    packed = await token_client.post(
        URL, content=msgpack.packb({"observation": observation}, default=map_for_msgpack), headers=headers
    )
    short = {"cameras": {"head": {"frames": frames(count=6)[2:]}}, "state": {"values": states[2:]}}

    by_id = {**long, "observation_id": packed.json()["observation_id"], "cache": "bypass"}
    del by_id["observation"]
    stored = await token_client.post("/v1/predictions", json=by_id)
    sent = await token_client.post(
        "/v1/predictions",
        content=msgpack.packb({**long, "observation": short, "cache": "bypass"}, default=map_for_msgpack),
        headers=headers,
    )

    assert packed.json()["frames"] == 6
    assert stored.json()["frames"] == sent.json()["frames"]


async def test_msgpack_comes_back_where_it_is_asked_for(token_client, toy_request):
    reply = await token_client.post(
        URL, json={"observation": toy_request()["observation"]}, headers={"accept": "application/msgpack"}
    )

    assert reply.headers["content-type"] == "application/msgpack"
    assert msgpack.unpackb(reply.content)["frames"] == 4


class TestGone:
    async def check(self, client, observation_id, toy_request, likelihood_request):
        for url, request in (("/v1/predictions", toy_request()), ("/v1/likelihoods", likelihood_request())):
            del request["observation"]
            reply = await client.post(url, json={**request, "observation_id": observation_id})
            assert (reply.status_code, reply.json()["code"]) == (410, "gone")
            assert reply.json()["errors"][0]["pointer"] == "/observation_id"
            assert observation_id not in reply.text

    async def test_a_deleted_one(self, token_client, toy_request, likelihood_request):
        held = (await upload(token_client, toy_request()))["observation_id"]

        deleted = await token_client.delete(f"{URL}/{held}")
        again = await token_client.delete(f"{URL}/{held}")

        assert (deleted.status_code, deleted.content) == (204, b"")
        assert (again.status_code, again.json()["code"]) == (410, "gone")
        await self.check(token_client, held, toy_request, likelihood_request)

    async def test_one_that_never_was(self, token_client, toy_request, likelihood_request):
        await self.check(token_client, "planted-7f3a", toy_request, likelihood_request)

    async def test_an_expired_one(self, token_app, token_client, toy_request, likelihood_request):
        held = (await upload(token_client, toy_request(), ttl_s=5))["observation_id"]
        store = token_app.state.host.observations
        store._clock = lambda clock=store._clock: clock() + 5

        await self.check(token_client, held, toy_request, likelihood_request)
        assert "foreframe_observations 0.0" in (await token_client.get("/metrics")).text

    async def test_one_that_newer_ones_pushed_out(self, serving, make_token_app, toy_request, likelihood_request):
        settings = Settings(observations=ObservationSettings(max_bytes=4000))
        async with serving(make_token_app(ToyLikelihoodEngine(), settings=settings)) as client:
            ids = [(await upload(client, toy_request()))["observation_id"] for _ in range(4)]
            await self.check(client, ids[0], toy_request, likelihood_request)
            request = likelihood_request()
            del request["observation"]
            last = await client.post("/v1/likelihoods", json={**request, "observation_id": ids[-1]})

        assert last.status_code == 200


async def test_one_larger_than_the_whole_budget_is_refused_with_numbers(serving, make_token_app, toy_request):
    settings = Settings(observations=ObservationSettings(max_bytes=500))
    async with serving(make_token_app(ToyLikelihoodEngine(), settings=settings)) as client:
        reply = await client.post(URL, json={"observation": toy_request()["observation"]})

    assert (reply.status_code, reply.json()["code"]) == (422, "too_expensive")
    assert reply.json()["errors"][0]["expected"] == "at most 500 bytes"
    assert reply.json()["errors"][0]["received"].endswith(" bytes")


async def test_what_is_held_is_measured(token_client, toy_request):
    held = await upload(token_client, toy_request())

    text = (await token_client.get("/metrics")).text

    assert "foreframe_observations 1.0" in text
    assert f"foreframe_observation_bytes {held['bytes']:.1f}" in text


async def test_warnings_come_at_the_upload_and_not_again(token_client, toy_request):
    odd = toy_request(observation__state__values=[[0.0, 9.0, 0.0]] * 4)

    held = await upload(token_client, odd)
    by_id = toy_request(observation=..., observation_id=held["observation_id"])
    stored = await token_client.post("/v1/predictions", json=by_id)

    assert "state_out_of_range" in [warning["code"] for warning in held["warnings"]]
    assert stored.json()["warnings"] == []


async def test_a_model_without_tokens_holds_its_own_encoding(client, toy_request):
    held = await upload(client, toy_request())
    stored = await client.post(
        "/v1/predictions", json=toy_request(observation=..., observation_id=held["observation_id"])
    )

    assert held["models"] == ["rollout"]
    assert stored.status_code == 200
