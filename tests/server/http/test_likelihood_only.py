"""A model that predicts no frames is served all the same: it tells likelihoods and ranks by them."""

import base64
from dataclasses import replace

import numpy as np
import pytest

from foreframe_engines.testing import ToyLikelihoodEngine, toy_contract, toy_tokens
from foreframe_server.app import create_app
from foreframe_server.opening import given
from foreframe_server.settings import Settings

pytestmark = pytest.mark.anyio

CONTRACT = replace(toy_contract(tokens=toy_tokens()), capabilities=("likelihood", "score"))


@pytest.fixture
def engine():
    return ToyLikelihoodEngine(CONTRACT)


@pytest.fixture
def likelihood_app(engine):
    return create_app(Settings(), given(None, engine))


def raw(frames):
    """Write frames as the wire's raw pictures."""
    return {
        "encoding": "raw_rgb8",
        "data": base64.b64encode(np.ascontiguousarray(frames).tobytes()).decode(),
        "width": frames.shape[2],
        "height": frames.shape[1],
    }


def observation(rng, num_frames=2):
    frames = rng.integers(0, 256, (num_frames, 8, 8, 3), dtype=np.uint8)
    states = rng.standard_normal((num_frames, 3)).round(3)
    return {"cameras": {"head": raw(frames)}, "state": {"schema": CONTRACT.state.name, "values": states.tolist()}}


async def test_it_is_ready_and_says_what_it_can(likelihood_app, serving):
    async with serving(likelihood_app) as client:
        assert (await client.get("/readyz")).status_code == 200
        (model,) = (await client.get("/v1/models")).json()["models"]
        assert model["capabilities"] == ["likelihood", "score"]
        assert "foreframe_model_info{" in (await client.get("/metrics")).text


async def test_it_promises_what_its_engine_does(engine, serving):
    engine.determinism = "tolerance"
    async with serving(create_app(Settings(), given(None, engine))) as client:
        assert (await client.get("/v1/models")).json()["models"][0]["determinism"] == "tolerance"


async def test_candidates_are_ranked_by_likelihood(likelihood_app, serving):
    rng = np.random.default_rng(0)
    body = {
        "observation": observation(rng),
        "candidates": {"values": rng.standard_normal((3, 2, 3)).round(3).tolist()},
        "objectives": [{"kind": "likelihood", "weight": 1.0}],
        "return": {"top_n": 3, "frames": "none"},
    }
    async with serving(likelihood_app) as client:
        reply = await client.post("/v1/scores", json=body)
    assert reply.status_code == 200, reply.text
    costs = [each["cost"] for each in reply.json()["candidates"]]
    assert len(set(costs)) == 3
    assert reply.json()["best_index"] == int(np.argmin(costs))


@pytest.mark.parametrize("objective", [{"kind": "spread", "weight": 1.0}])
async def test_what_needs_frames_is_missing_and_not_unready(likelihood_app, serving, toy_request, objective):
    rng = np.random.default_rng(0)
    scores = {
        "observation": observation(rng),
        "candidates": {"values": rng.standard_normal((2, 2, 3)).round(3).tolist()},
        "objectives": [objective],
        "ensemble": {"size": 2},
        "return": {"top_n": 1, "frames": "none"},
    }
    async with serving(likelihood_app) as client:
        for route, body in (("/v1/predictions", toy_request()), ("/v1/scores", scores)):
            reply = await client.post(route, json=body)
            assert (reply.status_code, reply.json()["code"]) == (409, "capability_missing"), reply.text


async def test_an_observation_is_encoded_by_the_model_there_is(likelihood_app, serving, engine):
    async with serving(likelihood_app) as client:
        reply = await client.post("/v1/observations", json={"observation": observation(np.random.default_rng(1))})
        assert reply.status_code == 200, reply.text
        assert engine.calls["read"] > 0
    assert engine.is_closed
