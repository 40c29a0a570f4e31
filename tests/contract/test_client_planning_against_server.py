"""Observations, likelihoods and scores: the real client against the real app with toy engines, field for field."""

import asyncio
import contextlib
import functools
import threading
import typing

import httpx
import numpy as np
import pytest
import uvicorn

from foreframe_client import (
    AsyncClient,
    CapabilityMissing,
    Client,
    Constraint,
    Gone,
    InvalidRequest,
    NonFinite,
    Objective,
    StateDimMismatch,
)
from foreframe_client import _types as words
from foreframe_client.cost_model import ConstrainedCostModel
from foreframe_client.planning import CrossEntropyPlanner, Gaussian
from foreframe_engines.calibration import UNCALIBRATED, Calibration
from foreframe_engines.surprise import calibrate_surprise
from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine, toy_contract, toy_tokens
from foreframe_server.app import create_app
from foreframe_server.opening import given
from foreframe_server.settings import Settings

CONTRACT = toy_contract(tokens=toy_tokens())
RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (5, 8, 8, 3), np.uint8)
STATES = RNG.normal(size=(5, 3)).astype(np.float32)
FUTURE = RNG.normal(size=(8, 3)).astype(np.float32)
HAPPENED = RNG.integers(0, 256, (3, 8, 8, 3), np.uint8)
PLANS = RNG.normal(size=(4, 8, 3)).astype(np.float32)
GOAL = Objective.goal_image(HAPPENED[0])
MEASURED = (FRAMES, STATES)


def make_app(*, has_tokens=True):
    likelihood = ToyLikelihoodEngine() if has_tokens else None
    calibration = Calibration(surprise=calibrate_surprise([[1.0, 8.0, 30.0]] * 2)) if has_tokens else UNCALIBRATED
    contract = CONTRACT if has_tokens else toy_contract()
    return create_app(Settings(), given(ToyRolloutEngine(contract), likelihood, calibration))


def tell(story, app=None):
    """Run a story with a client of a running app."""

    async def run():
        running = app or make_app()
        client = AsyncClient(transport=httpx.ASGITransport(running))
        async with running.router.lifespan_context(running), client, asyncio.timeout(20):
            while not await client.ready():  # noqa: ASYNC110 - readiness is only told to those who ask
                await asyncio.sleep(0)
            return await story(client)

    return asyncio.run(run())


def likelihood(**options):
    given = {"frames": FRAMES, "states": STATES, "target": HAPPENED, "target_states": FUTURE[:3], **options}
    return tell(lambda client: client.likelihood(**given))


def score(**options):
    given = {"frames": FRAMES, "states": STATES, "candidates": PLANS, "objectives": [GOAL], "seed": 7, **options}
    return tell(lambda client: client.score(**given))


def choices(**offered):
    return [(name, word) for name, kind in offered.items() for word in typing.get_args(kind)]


def test_a_likelihood_adds_up():
    read = likelihood(surprise_map=True, top_k=3, top_k_definition="full_with_escape")
    assert read.tokens == 3 * 4
    assert read.nats_total == pytest.approx(read.bits_total * np.log(2))
    assert read.nats_per_token == pytest.approx(read.nats_total / read.tokens)
    assert read.bits_per_token == pytest.approx(read.bits_total / read.tokens)
    assert read.bits_per_frame.sum() == pytest.approx(read.bits_total)
    assert read.grid_frames == ((1,), (2,), (3,))
    np.testing.assert_allclose(read.map.sum(axis=(1, 2)), read.bits_per_frame, rtol=1e-5)
    assert read.surprise.z.shape == read.surprise.quantile.shape == (3,)
    assert (read.top_k_cross_entropy.k, read.top_k_cross_entropy.definition) == (3, "full_with_escape")
    assert read.deadline_met


def test_ids_cost_what_their_frames_cost():
    by_frames = likelihood(surprise_map=True)
    by_ids = likelihood(target=ToyLikelihoodEngine().tokenize(HAPPENED), surprise_map=True)
    np.testing.assert_array_equal(by_ids.map, by_frames.map)


def test_an_uploaded_observation_gives_the_same_answers_until_it_is_forgotten():
    async def story(client):
        held = await client.observe(*MEASURED, ttl_s=30.0)
        async with held:
            answers = (
                await client.likelihood(target=HAPPENED, target_states=FUTURE[:3], observation=held),
                await client.score(candidates=PLANS, objectives=[GOAL], seed=7, observation=held),
                await client.predict(future_states=FUTURE, seed=7, observation=held),
            )
        with pytest.raises(Gone):
            await client.predict(future_states=FUTURE, observation=held)
        await held.forget()
        return held, answers

    held, (counted, scored, predicted) = tell(story)
    assert 0 < held.expires_in_s <= 30.0
    assert counted.bits_total == likelihood().bits_total
    np.testing.assert_array_equal(scored.costs, score().costs)
    plain = tell(lambda client: client.predict(FRAMES[-4:], STATES[-4:], FUTURE, seed=7))
    np.testing.assert_array_equal(predicted.frames, plain.frames)


def test_scores_are_ranked_and_the_best_is_shown():
    read = score(ensemble=4, top_n=2, returned_frames="all", ids=list("abcd"))
    assert read.best_index == int(read.costs.argmin())
    assert [entry.id for entry in read.candidates] == list("abcd")
    assert sorted(entry.rank for entry in read.candidates) == [1, 2, 3, 4]
    assert read.candidates[read.best_index].frames.shape == (8, 8, 8, 3)
    assert sum(entry.frames is not None for entry in read.candidates) == 2
    assert 0.0 <= read.rank_stability <= 1.0
    assert (read.num_scored, read.num_members, read.seed, read.deadline_met) == (4, 4, 7, True)


def test_every_kind_of_term_is_understood():
    terms = [
        GOAL,
        Objective.goal_image(HAPPENED[1], metric="latent", frame=2),
        Objective.goal_image(HAPPENED[1], metric="tokens"),
        Objective.goal_state(FUTURE[0], dims=["joint_0", 2]),
        Objective.likelihood(weight=0.5),
        Objective.spread(weight=-1.0),
        Objective.smoothness(),
    ]
    bounds = [Constraint(Objective.smoothness(), 100.0), Constraint(Objective.goal_state(FUTURE[0]), -1.0)]
    read = score(objectives=terms, constraints=bounds, ensemble=2)
    for entry in read.candidates:
        assert len(entry.terms) == len(terms)
        weighted = zip((term.weight for term in terms), entry.terms.values(), strict=True)
        assert entry.cost == pytest.approx(sum(weight * value for weight, value in weighted))
        assert [bound.is_satisfied for bound in entry.constraints] == [True, False]
        assert not entry.is_feasible
    assert np.isinf(read.costs).all()


def test_a_candidate_that_is_not_finite_fails_alone():
    plans = PLANS.copy()
    plans[1, 3, 0] = np.nan
    read = score(candidates=plans)
    assert [entry.status for entry in read.candidates] == ["ok", "invalid", "ok", "ok"]
    assert np.isinf(read.costs).tolist() == [False, True, False, False]
    with pytest.raises(NonFinite):
        score(candidates=np.full_like(PLANS, np.nan))


@pytest.mark.parametrize(
    ("name", "word"), choices(scenario=words.Scenario, top_k_definition=words.TopKDefinition, priority=words.Priority)
)
def test_every_word_of_a_likelihood_is_understood(name, word):
    assert likelihood(**{name: word}).id


@pytest.mark.parametrize(
    ("name", "word"),
    choices(
        reducer=words.Reducer,
        noise=words.Noise,
        strategy=words.Strategy,
        seed_policy=words.SeedPolicy,
        returned_frames=words.ReturnedFrames,
        priority=words.Priority,
    ),
)
def test_every_word_of_a_score_is_understood(name, word):
    assert score(**{"ensemble": 1 if word == "posterior_mean" else 2, "deadline_ms": 20_000, name: word}).id


@pytest.mark.parametrize(
    ("change", "error", "pointer"),
    [
        ({"candidates": PLANS[:, :, :2]}, StateDimMismatch, "/candidates/values"),
        ({"objectives": [Objective.goal_image(HAPPENED[0, :4])]}, InvalidRequest, "/objectives/0/params/image"),
        ({"objectives": [Objective.goal_state(FUTURE[0], dims=["elbow"])]}, InvalidRequest, "/objectives/0/params"),
        ({"constraints": [Constraint(GOAL, 2e9)]}, InvalidRequest, "/constraints/0/max"),
        ({"ids": ["a"]}, InvalidRequest, "/candidates/ids"),
    ],
)
def test_a_refused_score_names_what_was_wrong(change, error, pointer):
    with pytest.raises(error) as caught:
        score(**change)
    assert caught.value.reasons[0].pointer.startswith(pointer)


@pytest.mark.parametrize(
    ("change", "error", "pointer"),
    [
        ({"target": np.full((3, 4), 6)}, InvalidRequest, "/target/ids"),
        ({"target_states": FUTURE[:2]}, InvalidRequest, "/target/state/values"),
        ({"top_k": 7}, InvalidRequest, "/top_k"),
    ],
)
def test_a_refused_likelihood_names_what_was_wrong(change, error, pointer):
    with pytest.raises(error) as caught:
        likelihood(**change)
    assert caught.value.reasons[0].pointer.startswith(pointer)


def test_a_model_without_tokens_has_no_likelihoods():
    async def story(client):
        return await client.likelihood(FRAMES[-4:], STATES[-4:], HAPPENED, FUTURE[:3])

    with pytest.raises(CapabilityMissing):
        tell(story, make_app(has_tokens=False))


@contextlib.contextmanager
def served():
    """Serve the app over a socket, for the blocking client."""
    server = uvicorn.Server(uvicorn.Config(make_app(), port=0, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with Client(f"http://127.0.0.1:{port}") as client:
            while not client.ready():
                thread.join(0.01)
            yield client
    finally:
        server.should_exit = True
        thread.join()


def test_a_planner_and_a_cost_model_plan_with_scores_alone():
    target = np.array([0.5, -0.4, 0.2], np.float32)

    def decode(actions):
        return np.repeat(actions[:, None], 8, axis=1).astype(np.float32)

    with served() as client:
        with client.observe(*MEASURED) as held:
            ask = functools.partial(client.score, observation=held, objectives=[Objective.goal_state(target)], seed=0)
            planner = CrossEntropyPlanner(decode, Gaussian(np.zeros(3), np.ones(3)), rounds=6)
            plan = planner.plan(ask)
        model = ConstrainedCostModel(
            functools.partial(client.score, seed=0), constraints=[Constraint(Objective.smoothness(), 1e-9)]
        )
        info = {"pixels": FRAMES[None], "state": STATES[None], "goal": HAPPENED[None, 0]}
        costs, excess = model.get_cost(info, PLANS[None]), model.get_constraints(info, PLANS[None])
    np.testing.assert_allclose(plan.action, target, atol=0.1)
    assert plan.best_costs[-1] < 0.2 * plan.best_costs[0]
    assert np.isinf(costs).all()
    assert (excess.shape, (excess > 0).all()) == ((1, 4, 1), True)
