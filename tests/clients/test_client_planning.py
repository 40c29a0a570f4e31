"""Observations, likelihoods and scores by both clients over a scripted server."""

from __future__ import annotations

import asyncio

import httpx
import numpy as np
import pytest

from foreframe_client import (
    AsyncClient,
    Client,
    Constraint,
    Gone,
    InvalidRequest,
    NonFinite,
    Objective,
    Observation,
    ProtocolError,
)

HELD = Observation("o-1", 60.0, "toy")
PICTURE = np.full((4, 5, 3), 9, np.uint8)
GOAL = (Objective.goal_image(PICTURE),)
PLANS = np.arange(150, dtype=np.float64).reshape(3, 2, 25)


def blocking(server, method, *arguments, **options):
    with Client(transport=httpx.MockTransport(server)) as client:
        return getattr(client, method)(*arguments, **options)


def awaiting(server, method, *arguments, **options):
    async def call():
        async with AsyncClient(transport=httpx.MockTransport(server)) as client:
            return await getattr(client, method)(*arguments, **options)

    return asyncio.run(call())


@pytest.fixture(params=[blocking, awaiting])
def call(request):
    return request.param


@pytest.fixture
def uploaded(answer):
    return answer(
        {"observation_id": "o-1", "expires_in_s": 59.5, "frames": 3, "models": [], "bytes": 1, "warnings": []}
    )


def test_a_likelihood_comes_back(call, server, scene, answer, likelihood):
    server.script = [answer(likelihood)]
    read = call(server, "likelihood", scene.frames, scene.states, scene.frames[:2], scene.future_states)
    assert (read.nats_total, read.bits_total, read.nats_per_token, read.bits_per_token) == (24.0, 34.6, 2.0, 2.885)
    assert (read.tokens, read.bits_per_pixel, read.bits_per_frame.tolist()) == (12, 0.9, [14.6, 20.0])
    assert read.grid_frames == ((1,), (2, 3))
    assert (read.surprise.z.tolist(), read.surprise.quantile.tolist()) == ([-1.0, 2.0], [0.1, 0.99])
    assert (read.map.shape, read.map[1, 1, 2]) == ((2, 2, 3), 11.0)
    top = read.top_k_cross_entropy
    assert (top.k, top.definition, top.value, top.escape_mass, top.left_out) == (5, "topk_renormalised", 1.5, 0.125, 3)
    assert server.paths() == ["/v1/models", "/v1/likelihoods"]


def test_what_a_likelihood_was_not_asked_for_is_none(call, server, scene, answer, likelihood):
    likelihood.update(topk_cross_entropy=None, map=None)
    for grid in likelihood["surprise_per_frame"]:
        grid.update(z=None, quantile=None)
    server.script = [answer(likelihood)]
    read = call(server, "likelihood", scene.frames, scene.states, scene.frames[:2], scene.future_states)
    assert (read.top_k_cross_entropy, read.map, read.surprise) == (None, None, None)


def test_a_likelihood_request_says_what_was_asked(call, server, scene, answer, likelihood):
    server.script = [answer(likelihood)]
    call(
        server,
        "likelihood",
        target=scene.frames[:2],
        target_states=scene.future_states,
        observation=HELD,
        scenario="autoregressive",
        top_k=5,
        top_k_definition="full_with_escape",
        surprise_map=True,
        deadline_ms=60_000,
        priority="bulk",
        metadata={"run": 1},
    )
    (body,) = server.posted()
    target = body.pop("target")
    np.testing.assert_array_equal(target.pop("data"), scene.frames[:2])
    np.testing.assert_array_equal(target.pop("state")["values"], scene.future_states.astype(np.float32))
    assert target == {"encoding": "raw_rgb8", "width": 5, "height": 4}
    assert 59_000 < body.pop("deadline_ms") <= 60_000
    assert body == {
        "model": "toy",
        "observation_id": "o-1",
        "scenario": "autoregressive",
        "support": "top_k",
        "top_k": 5,
        "top_k_definition": "full_with_escape",
        "map": True,
        "priority": "bulk",
        "metadata": {"run": 1},
    }
    assert server.paths() == ["/v1/likelihoods"]


def test_ids_are_sent_instead_of_frames(call, server, scene, answer, likelihood):
    server.script = [answer(likelihood)]
    ids = np.arange(12, dtype=np.int32).reshape(2, 6)
    call(server, "likelihood", target=ids, target_states=scene.future_states, observation=HELD)
    (body,) = server.posted()
    assert (body["target"]["ids"].tolist(), body["target"]["ids"].dtype) == (ids.tolist(), np.int64)
    assert "data" not in body["target"]
    assert body["support"] == "full"


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("target", np.zeros((2, 6))),
        ("target", np.zeros((2, 4, 5), np.uint8)),
        ("target", np.zeros(3, np.int64)),
        ("target", None),
        ("target_states", np.zeros(25)),
        ("target_states", np.full((2, 25), np.nan)),
        ("top_k", 1.5),
    ],
)
def test_no_likelihood_is_asked_with_arguments_that_cannot_be_sent(call, server, scene, argument, value):
    arguments = {"target": scene.frames, "target_states": scene.states, "observation": HELD, argument: value}
    with pytest.raises(InvalidRequest, match=argument):
        call(server, "likelihood", **arguments)
    assert server.requests == []


def test_an_observation_is_uploaded_once_and_named_afterwards(call, server, scene, uploaded, answer, prediction):
    server.script = [uploaded]
    held = call(server, "observe", scene.frames, scene.states, ttl_s=60.0)
    assert (held.id, held.expires_in_s, held.model) == ("o-1", 59.5, None)
    (body,) = server.posted()
    np.testing.assert_array_equal(body["observation"]["cameras"]["head"]["data"], scene.frames)
    assert body["ttl_s"] == 60.0
    server.script = [answer(prediction)]
    call(server, "predict", future_states=scene.future_states, observation=held)
    asked = server.posted()[-1]
    assert asked["observation_id"] == "o-1"
    assert not {"observation", "model"} & set(asked)


def test_an_observation_is_forgotten_even_when_it_is_gone(call, server, refuse):
    server.script = [httpx.Response(204), refuse("gone", 410, retryable=False)]
    for _ in range(2):
        assert call(server, "forget", HELD) is None
    assert [(request.method, request.url.path) for request in server.requests] == [
        ("DELETE", "/v1/observations/o-1")
    ] * 2


def test_a_block_forgets_its_observation(server, scene, uploaded):
    server.script = [uploaded, httpx.Response(204)]
    with Client(transport=httpx.MockTransport(server)) as client, client.observe(scene.frames, scene.states) as held:
        assert held.id == "o-1"
    assert server.requests[-1].method == "DELETE"


def test_an_async_block_forgets_its_observation(server, scene, uploaded):
    server.script = [uploaded, httpx.Response(204)]

    async def story():
        async with AsyncClient(transport=httpx.MockTransport(server)) as client:
            held = await client.observe(scene.frames, scene.states)
            async with held:
                return held.id

    assert asyncio.run(story()) == "o-1"
    assert server.requests[-1].method == "DELETE"


def test_an_expired_observation_is_gone(call, server, scene, refuse):
    server.script = [refuse("gone", 410, retryable=False)]
    with pytest.raises(Gone):
        call(server, "predict", future_states=scene.future_states, observation=HELD)


def test_scores_come_back(call, server, scene, answer, scores):
    server.script = [answer(scores)]
    read = call(server, "score", scene.frames, scene.states, PLANS, objectives=GOAL)
    assert (read.best_index, read.rank_stability, read.num_scored, read.num_members) == (1, 0.75, 2, 8)
    assert read.costs.tolist() == [np.inf, 1.5, np.inf]
    broken, best, lost = read.candidates
    assert (broken.is_feasible, broken.rank, broken.constraints[0].excess) == (False, 2, 0.25)
    assert (best.rank, best.terms, best.frame_indices) == (1, {"goal_image": 1.5}, (2,))
    assert (best.frames.shape, best.frames[0, 0, 0, 0]) == ((1, 4, 5, 3), 7)
    assert (lost.status, lost.reason, lost.cost, lost.rank, lost.frames) == ("invalid", "not finite", None, None, None)
    assert (lost.terms, lost.constraints, lost.is_feasible) == ({}, (), None)
    assert server.paths() == ["/v1/models", "/v1/scores"]


def test_a_score_request_says_what_was_asked(call, server, answer, scores):
    server.script = [answer(scores)]
    call(
        server,
        "score",
        candidates=PLANS,
        observation=HELD,
        objectives=[
            Objective.goal_image(PICTURE, metric="latent", frame=2, weight=2),
            Objective.goal_state(np.arange(25), dims=["a", np.int64(1)]),
            Objective.likelihood(weight=-1.0),
            Objective.smoothness(),
        ],
        constraints=[Constraint(Objective.spread(), 0.25)],
        ids=("x", "y", "z"),
        ensemble=8,
        reducer="medoid",
        seed=3,
        seed_policy="per_candidate",
        top_n=2,
        returned_frames="last",
        deadline_ms=60_000,
    )
    (body,) = server.posted()
    np.testing.assert_array_equal(body["candidates"].pop("values"), PLANS.astype(np.float32))
    image = body["objectives"][0]["params"].pop("image")
    np.testing.assert_array_equal(image.pop("data"), PICTURE)
    assert image == {"encoding": "raw_rgb8", "width": 5, "height": 4}
    assert body["objectives"][1]["params"].pop("values").tolist() == list(range(25))
    assert 59_000 < body.pop("deadline_ms") <= 60_000
    assert body == {
        "model": "toy",
        "observation_id": "o-1",
        "candidates": {"ids": ["x", "y", "z"]},
        "objectives": [
            {"kind": "goal_image", "weight": 2.0, "params": {"metric": "latent", "frame": 2}},
            {"kind": "goal_state", "weight": 1.0, "params": {"dims": ["a", 1]}},
            {"kind": "likelihood", "weight": -1.0, "params": {}},
            {"kind": "smoothness", "weight": 1.0, "params": {}},
        ],
        "constraints": [{"kind": "spread", "params": {}, "max": 0.25}],
        "ensemble": {"size": 8, "reducer": "medoid", "noise": "antithetic"},
        "sampling": {"strategy": "sample", "seed": 3},
        "seed_policy": "per_candidate",
        "return": {"top_n": 2, "frames": "last", "encoding": "raw"},
        "priority": "controller",
    }


def test_a_candidate_that_is_not_finite_is_the_servers_to_judge(call, server, answer, scores):
    server.script = [answer(scores)]
    plans = PLANS.copy()
    plans[2, 0, 0] = np.nan
    call(server, "score", candidates=plans, observation=HELD, objectives=GOAL)
    assert np.isnan(server.posted()[0]["candidates"]["values"][2, 0, 0])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"candidates": PLANS[0]}, InvalidRequest, "candidates must have axes k H d"),
        ({"candidates": None}, InvalidRequest, "candidates"),
        ({"objectives": []}, InvalidRequest, "objectives"),
        ({"objectives": [Objective.goal_image(PICTURE[None])]}, InvalidRequest, "image"),
        ({"objectives": [Objective.goal_image(PICTURE.astype(float))]}, InvalidRequest, "image"),
        ({"objectives": [Objective.goal_state([[1.0]])]}, InvalidRequest, "goal_state"),
        ({"objectives": [Objective.goal_state([1.0], dims="a")]}, InvalidRequest, "dims"),
        ({"objectives": [Objective.spread(weight=float("nan"))]}, NonFinite, "weight"),
        ({"constraints": [Constraint(Objective.spread(), "1")]}, InvalidRequest, "maximum"),
        ({"top_n": 1.0}, InvalidRequest, "top_n"),
        ({"frames": PICTURE[None]}, InvalidRequest, "beside an observation"),
    ],
)
def test_nothing_is_scored_with_arguments_that_cannot_be_sent(call, server, change, error, words):
    with pytest.raises(error, match=words):
        call(server, "score", **{"candidates": PLANS, "observation": HELD, "objectives": GOAL, **change})
    assert server.requests == []


@pytest.mark.parametrize(("name", "value"), [("grid_frames", [1]), ("grid_frames", [["a"]]), ("bits_total", None)])
def test_a_likelihood_that_is_not_on_the_wire_is_a_protocol_error(server, scene, answer, likelihood, name, value):
    server.script = [answer({**likelihood, name: value})]
    with pytest.raises(ProtocolError, match=name):
        blocking(server, "likelihood", target=scene.frames, target_states=scene.states, observation=HELD)


@pytest.mark.parametrize(("name", "value"), [("candidates", {}), ("scored", None), ("best_index", "1")])
def test_scores_that_are_not_on_the_wire_are_a_protocol_error(server, answer, scores, name, value):
    server.script = [answer({**scores, name: value})]
    with pytest.raises(ProtocolError, match=name):
        blocking(server, "score", candidates=PLANS, observation=HELD, objectives=GOAL)
