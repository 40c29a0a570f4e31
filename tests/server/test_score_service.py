import asyncio
import contextlib
import time
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest

from foreframe_engines import (
    EnsembleSpec,
    Priority,
    Query,
    Reducer,
    RolloutEngine,
    Sampling,
    Strategy,
    get_schedule,
    reduce_members,
    sample,
)
from foreframe_engines.engine import LikelihoodEngine
from foreframe_engines.reading import greedy_rollout, grid_states, read_history
from foreframe_engines.sampling import initial_member, step_all
from foreframe_engines.testing import (
    LeakyToyEngine,
    LeakyToyLikelihoodEngine,
    ToyLikelihoodEngine,
    ToyRolloutEngine,
    toy_contract,
    toy_tokens,
)
from foreframe_engines.types import StepRow
from foreframe_server.cost_model import CostModel
from foreframe_server.disconnects import ClientLeft
from foreframe_server.errors import DeadlineExceeded, ModelFault, Overloaded, TooExpensive, UnknownModel
from foreframe_server.metrics import Metrics
from foreframe_server.observations import StoredObservation
from foreframe_server.scheduler import Scheduler
from foreframe_server.score_service import ScoreService
from foreframe_server.scores import (
    Candidate,
    CandidateStatus,
    Constraint,
    GoalImage,
    GoalMetric,
    GoalState,
    Likelihood,
    Objective,
    ScoreQuery,
    SeedPolicy,
    Smoothness,
    Spread,
)
from foreframe_server.token_reader import TokenReader
from foreframe_server.worker import EngineWorker

PATIENCE_S = 20
CONTRACT = toy_contract(tokens=toy_tokens())
CONTEXT, HORIZON, DIM = 4, 8, 3
OK, EXPIRED, FAILED, INVALID = (
    CandidateStatus.OK, CandidateStatus.EXPIRED, CandidateStatus.FAILED, CandidateStatus.INVALID
)  # fmt: skip


@dataclass(frozen=True)
class Core:
    rollout: RolloutEngine
    likelihood: LikelihoodEngine
    metrics: Metrics
    worker: EngineWorker
    service: ScoreService

    def count(self, name, **labels):
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@contextlib.asynccontextmanager
async def run_scores(rollout=None, likelihood=None, *, clock=time.monotonic, max_jobs=8, max_pending_rows=None):
    rollout, likelihood = rollout or ToyRolloutEngine(CONTRACT), likelihood or ToyLikelihoodEngine(CONTRACT)
    metrics = Metrics()
    cost = CostModel(CONTRACT.buckets, max_rows=CONTRACT.buckets[-1])
    scheduler = Scheduler(cost, max_pending_s=max_pending_rows or 600)
    worker = EngineWorker(rollout, scheduler, metrics, clock)
    reader = TokenReader(likelihood, worker, metrics, clock=clock)
    worker.start()
    await worker.warm_up()
    if max_pending_rows is not None:
        cost.fit({rows: float(rows) for rows in CONTRACT.buckets})
    await reader.warm_up()
    for engine in (rollout, likelihood):
        engine.calls.clear()
    try:
        yield Core(
            rollout, likelihood, metrics, worker,
            ScoreService(rollout.contract, worker, reader, metrics, clock=clock, max_jobs=max_jobs),
        )  # fmt: skip
    finally:
        await reader.stop(PATIENCE_S)
        await worker.stop(PATIENCE_S)


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def observe(count=CONTEXT, seed=0):
    states = np.random.default_rng(seed + 100).standard_normal((count, DIM), dtype=np.float32)
    return StoredObservation(pictures(count, seed), states)


def draw_plans(count, horizon=HORIZON, seed=1):
    return np.random.default_rng(seed).standard_normal((count, horizon, DIM), dtype=np.float32)


GOAL = pictures(1, seed=5)[0]
PIXEL = GoalImage(GOAL, GoalMetric.PIXEL, HORIZON)
ALL_TERMS = (
    PIXEL,
    GoalImage(GOAL, GoalMetric.LATENT, 3),
    GoalImage(GOAL, GoalMetric.TOKENS, 4),
    GoalState(np.array([0.5, -1.0, 2.0], np.float32), (0, 2)),
    Likelihood(),
    Spread(),
    Smoothness(),
)


def ask(
    plans,
    *terms,
    observation=None,
    constraints=(),
    size=1,
    reducer=Reducer.MEAN,
    strategy=Strategy.SAMPLE,
    seed=7,
    seed_policy=SeedPolicy.SHARED,
    top_n=0,
    frame_indices=(),
    faults=(),
    model="toy",
):
    return ScoreQuery(
        model=model,
        observation=observation or observe(),
        candidates=tuple(
            Candidate(index, str(index), plan, "is not finite" if index in faults else None)
            for index, plan in enumerate(plans)
        ),
        objectives=tuple(term if isinstance(term, Objective) else Objective(term, 1.0) for term in terms),
        constraints=tuple(constraints),
        sampling=Sampling(strategy, 1 if strategy is Strategy.POSTERIOR_MEAN else 4, seed),
        ensemble=EnsembleSpec(size, reducer),
        seed_policy=seed_policy,
        priority=Priority.CONTROLLER,
        top_n=top_n,
        frame_indices=frame_indices,
    )


def score(query, call, **options):
    async def scenario():
        async with run_scores(**options) as core:
            return await core.service.score(query, call)

    return asyncio.run(scenario())


def costs(answer):
    return [None if outcome.score is None else outcome.score.cost.value for outcome in answer.outcomes]


def statuses(answer):
    return [outcome.status for outcome in answer.outcomes]


def plain_query(query, plan, frame_indices, seed=None):
    """The prediction that a candidate is."""
    sampling = query.sampling if seed is None else replace(query.sampling, seed=seed)
    context, past = query.observation.frames[-CONTEXT:], query.observation.states[-CONTEXT:]
    states = np.concatenate([past, plan])
    return Query("toy", context, states, frame_indices, sampling, query.ensemble)


def plain_latents(query, plan):
    """Every member's finished latents, by the plain loop."""
    engine, asked = ToyRolloutEngine(CONTRACT), plain_query(query, plan, (HORIZON,))
    conditioning = engine.condition(engine.encode(asked.context), asked.states)
    members = [initial_member(engine, conditioning, asked, member) for member in range(asked.ensemble.size)]
    times = get_schedule(asked.sampling.steps, CONTRACT.sampler.shift)
    for start, end in pairwise(times):
        members = step_all(engine, [StepRow(member, start, end, conditioning) for member in members])
    return np.stack(members)


def plain_scores(query, plan, target=None, num_grids=HORIZON):
    """The greedy rollout of a candidate's tokens, by the plain loop."""
    engine, seen = ToyLikelihoodEngine(CONTRACT), query.observation
    context = read_history(engine, engine.tokenize(seen.frames), grid_states(seen.states, CONTRACT.tokens))
    ids = None if target is None else np.repeat(engine.tokenize(target[None]), num_grids, axis=0)
    return greedy_rollout(engine, context, grid_states(plan[:num_grids], CONTRACT.tokens), ids)


def terms_by_hand(query, plan):
    prediction = sample(ToyRolloutEngine(CONTRACT), plain_query(query, plan, (HORIZON,)))
    reduced = prediction.members if query.ensemble.reducer is Reducer.NONE else prediction.frames[None]
    latent = ToyRolloutEngine(CONTRACT).encode(np.repeat(GOAL[None], CONTEXT, axis=0))[-1]
    third = plain_latents(query, plan)[:, CONTEXT + 2].astype(np.float64)
    if query.ensemble.reducer is Reducer.MEAN:
        third = third.mean(axis=0)
    path = np.concatenate([query.observation.states[-1:], plan]).astype(np.float64)
    away = plan[-1].astype(np.float64)[[0, 2]] - [0.5, 2.0]
    return {
        "goal_image": np.mean((reduced[..., 0, :, :, :].astype(np.float64) - GOAL) ** 2) / 255**2,
        "goal_image#2": np.mean((third - latent) ** 2),
        "goal_image#3": -plain_scores(query, plan, GOAL, 4).log_probability[-1].mean(dtype=np.float64),
        "goal_state": np.mean(away**2),
        "likelihood": -plain_scores(query, plan).log_probability.mean(dtype=np.float64),
        "spread": prediction.spread_per_frame[-1],
        "smoothness": np.mean(np.diff(path, n=2, axis=0) ** 2),
    }


@pytest.mark.parametrize("reducer", [Reducer.MEAN, Reducer.NONE])
def test_every_term_is_what_the_plain_loops_give(make_call, reducer):
    plans = draw_plans(3)
    query = ask(plans, *ALL_TERMS, size=4, reducer=reducer)

    answer = score(query, make_call())

    assert statuses(answer) == [OK] * 3
    for plan, outcome in zip(plans, answer.outcomes, strict=True):
        assert outcome.score.terms == pytest.approx(terms_by_hand(query, plan), rel=1e-9)
        assert outcome.score.cost.value == pytest.approx(sum(outcome.score.terms.values()))
    assert list(answer.ranking) == np.argsort(costs(answer)).tolist()
    assert answer.members == 4


@pytest.mark.parametrize("reducer", [Reducer.MEDIAN, Reducer.MEDOID])
def test_a_picture_is_compared_with_the_reduced_frame_alone(make_call, reducer):
    plans = draw_plans(2)
    query = ask(plans, GoalImage(GOAL, GoalMetric.PIXEL, 2), PIXEL, size=5, reducer=reducer)

    answer = score(query, make_call())

    for plan, outcome in zip(plans, answer.outcomes, strict=True):
        prediction = sample(ToyRolloutEngine(CONTRACT), plain_query(query, plan, (2, HORIZON)))
        for name, place in (("goal_image", 0), ("goal_image#2", 1)):
            frame = reduce_members(prediction.members[:, place : place + 1], query.ensemble)[0]
            by_hand = np.mean((frame.astype(np.float64) - GOAL) ** 2) / 255**2
            assert outcome.score.terms[name] == pytest.approx(by_hand, rel=1e-12)


def test_a_posterior_mean_is_scored_as_one_member(make_call):
    query = ask(draw_plans(2), PIXEL, strategy=Strategy.POSTERIOR_MEAN)

    answer = score(query, make_call())

    for candidate, cost in zip(query.candidates, costs(answer), strict=True):
        frame = sample(ToyRolloutEngine(CONTRACT), plain_query(query, candidate.rows, (HORIZON,))).frames[0]
        assert cost == pytest.approx(np.mean((frame.astype(np.float64) - GOAL) ** 2) / 255**2)
    assert answer.rank_stability is None


def together_and_alone(plans, call, **engines):
    async def scenario():
        async with run_scores(max_jobs=4, **engines) as core:

            async def run(*rows):
                return costs(await core.service.score(ask(rows, *ALL_TERMS, size=3), call))

            return await run(*plans), [cost for plan in plans for cost in await run(plan)]

    return asyncio.run(scenario())


def test_candidates_cost_the_same_bits_together_and_alone(make_call):
    together, alone = together_and_alone(draw_plans(11), make_call())

    assert together == alone


@pytest.mark.parametrize(
    "leaky",
    [{"rollout": LeakyToyEngine(CONTRACT)}, {"likelihood": LeakyToyLikelihoodEngine(CONTRACT)}],
    ids=["rollout", "likelihood"],
)
def test_a_model_whose_rows_leak_costs_differ_together(make_call, leaky):
    """The planted fault of the test above."""
    together, alone = together_and_alone(draw_plans(11), make_call(), **leaky)

    assert together != alone


def test_permuting_candidates_permutes_the_answer(make_call):
    plans, order = draw_plans(9), np.random.default_rng(3).permutation(9)

    first = score(ask(plans, *ALL_TERMS, size=3), make_call())
    second = score(ask(plans[order], *ALL_TERMS, size=3), make_call())

    assert costs(second) == [costs(first)[index] for index in order]
    assert [order[index] for index in second.ranking] == list(first.ranking)
    assert second.rank_stability == first.rank_stability


def test_equal_plans_tie_under_shared_noise_and_not_under_their_own(make_call):
    plans = np.repeat(draw_plans(1), 3, axis=0)

    shared = score(ask(plans, PIXEL, size=3), make_call())
    own = score(ask(plans, PIXEL, size=3, seed_policy=SeedPolicy.PER_CANDIDATE), make_call())

    assert len(set(costs(shared))) == 1
    assert shared.ranking == (0, 1, 2)
    assert len(set(costs(own))) == 3


def test_a_candidate_with_its_own_noise_is_that_of_the_seed_plus_its_index(make_call):
    plans = draw_plans(3)

    own = score(ask(plans, PIXEL, size=2, seed=7, seed_policy=SeedPolicy.PER_CANDIDATE), make_call())
    third = score(ask(plans[2:], PIXEL, size=2, seed=9), make_call())

    assert costs(own)[2] == costs(third)[0]


def test_a_plan_that_is_better_in_every_member_is_stably_first(make_call):
    still, wild = np.zeros((HORIZON, DIM), np.float32), np.full((HORIZON, DIM), 3.0, np.float32)
    query = ask([wild, still], PIXEL, size=8)
    frames = sample(ToyRolloutEngine(CONTRACT), plain_query(query, still, (HORIZON,))).frames
    goal = GoalImage(frames[0], GoalMetric.PIXEL, HORIZON)

    sure = score(ask([wild, still], goal, size=8), make_call())
    close = still.copy()
    close[-1, 0] += 0.001
    near = score(ask([still, close], goal, size=8, seed_policy=SeedPolicy.PER_CANDIDATE), make_call())

    assert (sure.ranking, sure.rank_stability) == ((1, 0), 1.0)
    assert 0 < near.rank_stability < 1


def test_weights_turn_a_ranking_round(make_call):
    plans = draw_plans(4)

    down = score(ask(plans, Objective(Smoothness(), 2.0)), make_call())
    up = score(ask(plans, Objective(Smoothness(), -0.5)), make_call())

    assert down.ranking == up.ranking[::-1]
    assert costs(down) == [-4 * cost for cost in costs(up)]


def test_what_breaks_a_constraint_comes_after_all_that_break_none(make_call):
    plans = draw_plans(6)
    free = score(ask(plans, PIXEL), make_call())
    bends = score(ask(plans, Smoothness()), make_call())
    limit = float(np.median(costs(bends)))

    answer = score(ask(plans, PIXEL, constraints=[Constraint(Smoothness(), limit)]), make_call())

    feasible = [index for index in free.ranking if costs(bends)[index] <= limit]
    broken = [index for index in bends.ranking if costs(bends)[index] > limit]
    assert list(answer.ranking) == feasible + broken
    for outcome, bend in zip(answer.outcomes, costs(bends), strict=True):
        (result,) = outcome.score.constraints
        assert (result.value, result.is_satisfied) == (bend, bend <= limit)
    assert costs(answer) == costs(free)


def test_a_faulty_candidate_is_invalid_and_changes_nothing_for_the_others(make_call):
    plans = draw_plans(4)
    whole = score(ask(plans, *ALL_TERMS, size=2), make_call())
    plans[1, 2, 0] = np.nan

    answer = score(ask(plans, *ALL_TERMS, size=2, faults={1}), make_call())

    assert statuses(answer) == [OK, INVALID, OK, OK]
    assert answer.outcomes[1].reason == "is not finite"
    assert [costs(answer)[index] for index in (0, 2, 3)] == [costs(whole)[index] for index in (0, 2, 3)]
    assert 1 not in answer.ranking


def calls_for(query, call):
    async def scenario():
        async with run_scores() as core:
            await core.service.score(query, call)
            return dict(core.rollout.calls), dict(core.likelihood.calls), core.likelihood.read_rows

    return asyncio.run(scenario())


def test_only_the_models_that_terms_need_are_run(make_call):
    plans, call = draw_plans(3), make_call()

    assert calls_for(ask(plans, ALL_TERMS[3], Smoothness()), call)[:2] == ({}, {})
    assert calls_for(ask(plans, Likelihood()), call)[0] == {}
    assert calls_for(ask(plans, PIXEL), call)[1] == {}


def test_an_observation_is_encoded_and_its_history_read_once(make_call):
    rollout, likelihood, _ = calls_for(ask(draw_plans(20), PIXEL, Spread(), Likelihood(), size=2), make_call())

    assert rollout["encode"] == 1
    assert rollout["condition"] == 20
    assert likelihood["tokenize"] == 1


def test_the_reads_are_those_of_the_history_and_of_each_candidate(make_call):
    async def scenario(*terms):
        async with run_scores() as core:
            before = len(core.likelihood.read_rows)
            await core.service.score(ask(draw_plans(5), *terms), make_call())
            return sum(core.likelihood.read_rows[before:])

    goal = GoalImage(GOAL, GoalMetric.TOKENS, 3)
    assert asyncio.run(scenario(Likelihood())) == CONTEXT - 1 + 5 * HORIZON
    assert asyncio.run(scenario(goal)) == CONTEXT - 1 + 5 * 3
    assert asyncio.run(scenario(Likelihood(), goal)) == CONTEXT - 1 + 5 * (HORIZON + 1)


def test_what_was_encoded_before_is_not_encoded_again(make_call):
    plans, seen = draw_plans(3), observe()
    likelihood = ToyLikelihoodEngine(CONTRACT)
    ids, states = likelihood.tokenize(seen.frames), grid_states(seen.states, CONTRACT.tokens)
    stored = replace(
        seen,
        latents=ToyRolloutEngine(CONTRACT).encode(seen.frames),
        tokens=read_history(likelihood, ids, states),
    )
    query = ask(plans, PIXEL, Likelihood())

    answer = score(query, make_call())
    again = score(replace(query, observation=stored), make_call())
    rollout, tokens, _ = calls_for(replace(query, observation=stored), make_call())

    assert costs(again) == costs(answer)
    assert "encode" not in rollout
    assert "tokenize" not in tokens


def test_a_longer_observation_is_cut_for_the_rollout_model_and_read_whole_by_the_token_model(make_call):
    seen, plans = observe(6), draw_plans(2)
    last = StoredObservation(seen.frames[-CONTEXT:], seen.states[-CONTEXT:])

    longer = score(ask(plans, PIXEL, Likelihood(), observation=seen), make_call())
    shorter = score(ask(plans, PIXEL, Likelihood(), observation=last), make_call())

    for one, other in zip(longer.outcomes, shorter.outcomes, strict=True):
        assert one.score.terms["goal_image"] == other.score.terms["goal_image"]
        assert one.score.terms["likelihood"] != other.score.terms["likelihood"]


def test_no_more_candidates_than_allowed_are_in_the_queue_at_once(make_call):
    seen = []

    async def scenario():
        rollout = ToyRolloutEngine(CONTRACT, step_hook=lambda _: seen.append(core.worker.num_jobs) if core else None)
        async with run_scores(rollout, max_jobs=3) as core_now:
            nonlocal core
            core = core_now
            return await core.service.score(ask(draw_plans(10), PIXEL, size=2), make_call())

    core = None
    answer = asyncio.run(scenario())

    assert statuses(answer) == [OK] * 10
    assert max(seen) == 3


class Ticking:
    """A hook that moves a fake clock by a second at each forward or read while it is on."""

    def __init__(self, clock):
        self.clock = clock
        self.is_on = False

    def __call__(self, rows):
        if self.is_on:
            self.clock.now += 1.0


def late_scores(clock, query, call, *, max_jobs=2):
    hook = Ticking(clock)

    async def scenario():
        engines = ToyRolloutEngine(CONTRACT, step_hook=hook), ToyLikelihoodEngine(CONTRACT, read_hook=hook)
        async with run_scores(*engines, clock=clock, max_jobs=max_jobs) as core:
            hook.is_on = True
            answer = await core.service.score(query, call)
            return answer, core.count("foreframe_deadline_total", outcome="degraded")

    return asyncio.run(scenario())


def test_a_deadline_leaves_the_candidates_that_were_rolled_out(make_call, fake_clock):
    plans = draw_plans(6)
    whole = score(ask(plans, PIXEL), make_call())

    # Two candidates a wave, 4 steps of a second for both: the third wave begins at 8 s and does not end.
    answer, num_degraded = late_scores(fake_clock, ask(plans, PIXEL), make_call(deadline_s=fake_clock.now + 9.5))

    assert statuses(answer) == [OK] * 4 + [EXPIRED] * 2
    assert costs(answer)[:4] == costs(whole)[:4]
    assert set(answer.ranking) == {0, 1, 2, 3}
    assert "deadline" in answer.outcomes[5].reason
    assert num_degraded == 1


def test_a_deadline_leaves_the_candidates_that_were_read(make_call, fake_clock):
    # 3 reads of history, then 8 for each wave: the second wave ends at 19 s.
    answer, _ = late_scores(fake_clock, ask(draw_plans(6), Likelihood()), make_call(deadline_s=fake_clock.now + 20.5))

    assert statuses(answer) == [OK] * 4 + [EXPIRED] * 2
    assert not answer.deadline_met


def test_a_deadline_that_leaves_no_candidate_is_an_error(make_call, fake_clock):
    with pytest.raises(DeadlineExceeded):
        late_scores(fake_clock, ask(draw_plans(3), PIXEL), make_call(deadline_s=fake_clock.now + 2.5))
    with pytest.raises(DeadlineExceeded):
        late_scores(fake_clock, ask(draw_plans(3), Smoothness()), make_call(deadline_s=fake_clock.now))


def fail_far(rows):
    """Fail for plans that end far away."""
    for row in rows:
        end = row.conditioning.tables["drive"][0, -1] if isinstance(row, StepRow) else row.states[1, 0]
        if end > 0.99:
            raise RuntimeError("planted")


@pytest.mark.parametrize("term", [PIXEL, Likelihood()], ids=["rollout", "likelihood"])
def test_a_candidate_that_a_model_fails_on_fails_alone(make_call, term):
    plans = np.tanh(draw_plans(5)) * 0.3
    whole = score(ask(plans, term), make_call())
    plans[2] = 1000.0
    engines = {
        "rollout": ToyRolloutEngine(CONTRACT, step_hook=fail_far),
        "likelihood": ToyLikelihoodEngine(CONTRACT, read_hook=fail_far),
    }
    observation = StoredObservation(observe().frames, np.zeros((CONTEXT, DIM), np.float32))
    sound = score(ask(plans[[0, 1, 3, 4]], term, observation=observation), make_call())

    answer = score(ask(plans, term, observation=observation), make_call(), **engines)

    assert statuses(answer) == [OK, OK, FAILED, OK, OK]
    assert answer.outcomes[2].reason == "The model failed on this request."
    assert [cost for cost in costs(answer) if cost is not None] == costs(sound)
    assert len(whole.ranking) == 5


def test_a_model_that_fails_on_every_candidate_fails_the_call(make_call):
    plans = np.full((2, HORIZON, DIM), 1000.0, np.float32)
    observation = StoredObservation(observe().frames, np.zeros((CONTEXT, DIM), np.float32))

    with pytest.raises(ModelFault):
        score(
            ask(plans, PIXEL, observation=observation),
            make_call(),
            rollout=ToyRolloutEngine(CONTRACT, step_hook=fail_far),
        )


def test_a_model_that_fails_on_the_goal_fails_the_call(make_call):
    class Blind(ToyRolloutEngine):
        def encode(self, context):
            if (context == GOAL).all():
                raise RuntimeError("planted")
            return super().encode(context)

    with pytest.raises(ModelFault):
        score(ask(draw_plans(2), ALL_TERMS[1]), make_call(), rollout=Blind(CONTRACT))


def test_a_client_that_leaves_ends_the_work(make_call, gate):
    async def scenario():
        has_left = asyncio.Event()

        async def is_disconnected():
            return has_left.is_set()

        async with run_scores(ToyRolloutEngine(CONTRACT, step_hook=gate)) as core:
            gate.close()
            call = make_call(is_disconnected=is_disconnected)
            scoring = asyncio.create_task(core.service.score(ask(draw_plans(20), PIXEL, size=8), call))
            assert await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)
            has_left.set()
            with pytest.raises(ClientLeft):
                await scoring
            gate.open()
            return core.worker.num_jobs

    assert asyncio.run(scenario()) == 0


def test_the_best_come_back_with_their_frames(make_call):
    plans = draw_plans(5)
    query = ask(plans, PIXEL, size=3, top_n=2, frame_indices=(2, HORIZON))

    answer = score(query, make_call())

    assert set(answer.frames) == set(answer.ranking[:2])
    for index, frames in answer.frames.items():
        prediction = sample(ToyRolloutEngine(CONTRACT), plain_query(query, plans[index], (2, HORIZON)))
        assert frames.tobytes() == prediction.frames.tobytes()
    assert answer.missing_frames == 0


def test_frames_of_plans_that_no_rollout_was_needed_for_are_predicted_for_the_best_alone(make_call):
    query = ask(draw_plans(5), Smoothness(), top_n=1, frame_indices=(HORIZON,))

    rollout, _, _ = calls_for(query, make_call())

    assert rollout["condition"] == 1


def test_frames_that_the_deadline_leaves_no_time_for_are_counted(make_call, fake_clock):
    query = ask(draw_plans(2), PIXEL, top_n=2, frame_indices=(HORIZON,))

    answer, _ = late_scores(fake_clock, query, make_call(deadline_s=fake_clock.now + 5.5))

    assert statuses(answer) == [OK, OK]
    assert (answer.frames, answer.missing_frames) == ({}, 2)


def test_a_spread_is_told_for_the_frames_that_terms_looked_at(make_call):
    early = GoalImage(GOAL, GoalMetric.PIXEL, 2)

    many = score(ask(draw_plans(1), early, size=3), make_call()).outcomes[0].spreads
    one = score(ask(draw_plans(1), early), make_call()).outcomes[0].spreads
    none = score(ask(draw_plans(1), Likelihood()), make_call()).outcomes[0].spreads

    assert (many.frame_indices, len(many.spread_per_frame), many.members) == ((2, HORIZON), 2, 3)
    assert (one.spread_per_frame, one.members) == ((), 1)
    assert none is None


def test_a_wave_that_the_queue_cannot_hold_at_once_goes_in_parts(make_call):
    plans = draw_plans(8)

    # 16 steps of members a candidate: two fit.
    answer = score(ask(plans, PIXEL, size=4), make_call(), max_pending_rows=40)

    assert costs(answer) == costs(score(ask(plans, PIXEL, size=4), make_call()))


def test_a_candidate_that_could_never_fit_into_the_queue_is_too_expensive(make_call):
    with pytest.raises(TooExpensive):
        score(ask(draw_plans(2), PIXEL, size=32), make_call(), max_pending_rows=100)


def test_a_queue_that_is_full_of_other_work_refuses_the_call_at_once(make_call, gate):
    seen = observe()
    stored = replace(seen, latents=ToyRolloutEngine(CONTRACT).encode(seen.frames))
    other = plain_query(ask(draw_plans(1), Spread(), size=8), draw_plans(1)[0], (1,))

    async def scenario():
        async with run_scores(ToyRolloutEngine(CONTRACT, step_hook=gate), max_pending_rows=40) as core:
            gate.close()
            running = asyncio.create_task(core.worker.submit(other, make_call()))
            assert await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)
            with pytest.raises(Overloaded) as refused:
                await core.service.score(ask(draw_plans(3), Spread(), size=4, observation=stored), make_call())
            gate.open()
            await running
            return refused.value.retry_after_ms, core.count("foreframe_rejected_total", reason="overloaded")

    retry_after_ms, num_rejected = asyncio.run(scenario())
    assert retry_after_ms >= 1
    assert num_rejected == 1


def test_another_model_s_name_is_refused(make_call):
    with pytest.raises(UnknownModel):
        score(ask(draw_plans(1), Smoothness(), model="other"), make_call())


def test_windows_of_several_frames_are_scored_grid_by_grid(make_call):
    tokens = toy_tokens(window_frames=3, window_grids=2)
    contract = toy_contract(tokens=tokens)
    engine, goal = ToyLikelihoodEngine(contract), GoalImage(GOAL, GoalMetric.TOKENS, 5)
    seen, plans = observe(6), draw_plans(2, horizon=6)

    answer = score(
        ask(plans, goal, Likelihood(), observation=seen),
        make_call(),
        rollout=ToyRolloutEngine(contract),
        likelihood=ToyLikelihoodEngine(contract),
    )

    context = read_history(engine, engine.tokenize(seen.frames), grid_states(seen.states, tokens))
    ids = engine.tokenize(np.repeat(GOAL[None], 3, axis=0))
    for plan, outcome in zip(plans, answer.outcomes, strict=True):
        states = grid_states(plan, tokens)
        own = greedy_rollout(engine, context, states).log_probability
        target = greedy_rollout(engine, context, states, np.concatenate([ids, ids])).log_probability
        # Frame 5 is the second of the second window: its last grid, the fourth in all.
        assert outcome.score.terms["goal_image"] == pytest.approx(-target[3].mean(dtype=np.float64))
        assert outcome.score.terms["likelihood"] == pytest.approx(-own.mean(dtype=np.float64))
