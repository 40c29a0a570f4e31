"""Planners against a written-out cost: no server, no model."""

from __future__ import annotations

import numpy as np
import pytest

from foreframe_client import CandidateScore, ConstraintValue, Scores
from foreframe_client.planning import CrossEntropyPlanner, Gaussian, NothingScored, random_shooting

TARGET = np.array([0.3, -0.2])
WIDE = Gaussian(np.zeros(2), np.full(2, 0.4))


def decode(actions):
    """Rows that go straight to the action, and a third dimension that stays."""
    path = np.linspace(0.25, 1.0, 4)[None, :, None] * actions[:, None]
    return np.concatenate([path, np.ones_like(path[..., :1])], axis=-1).astype(np.float32)


def scores_of(costs, excesses=None, lost=()):
    """Rank as the server does: what exceeds least first, then the cheapest."""
    excesses = np.zeros(len(costs)) if excesses is None else excesses
    order = [index for index in np.lexsort((costs, np.maximum(excesses, 0))) if index not in lost]
    entries = []
    for index, cost in enumerate(costs):
        is_lost, excess = index in lost, excesses[index]
        bound = ConstraintValue("spread", float(excess), 0.0, bool(excess <= 0))
        entries.append(
            CandidateScore(
                index=index,
                id=str(index),
                status="invalid" if is_lost else "ok",
                reason=None,
                cost=None if is_lost else float(cost),
                terms={},
                constraints=() if is_lost else (bound,),
                is_feasible=None if is_lost else bool(excess <= 0),
                rank=None if is_lost else order.index(index) + 1,
                frames=None,
                frame_indices=(),
            )
        )
    best = int(order[0]) if order else None
    return Scores("s", "toy", "r", best, None, tuple(entries), len(order), 0, 1, True, {}, ())


def away(candidates):
    return np.linalg.norm(candidates[:, -1, :2] - TARGET, axis=-1)


class Scorer:
    """Scores by a function of the candidates and keeps what it was asked."""

    def __init__(self, judge=lambda candidates: scores_of(away(candidates))):
        self.judge, self.asked = judge, []

    def __call__(self, *, candidates):
        self.asked.append(candidates)
        return self.judge(candidates)


def planner(**options):
    return CrossEntropyPlanner(decode, WIDE, **options)


def test_rounds_come_nearer_to_the_target():
    score = Scorer()
    plan = planner(rounds=5).plan(score)
    assert [len(asked) for asked in score.asked] == [32] * 5
    assert (np.diff(plan.best_costs) <= 1e-6).all()
    assert plan.cost == plan.best_costs[-1] < 0.25 * plan.best_costs[0]
    np.testing.assert_allclose(plan.action, TARGET, atol=0.05)
    np.testing.assert_array_equal(plan.states, decode(plan.action[None])[0])
    assert (plan.proposal.std < 0.1).all()


def test_a_cost_that_says_nothing_leads_nowhere():
    """The control: without a signal the planner has no other way to the target."""
    rng = np.random.default_rng(5)
    plan = planner(rounds=5).plan(Scorer(lambda candidates: scores_of(rng.random(len(candidates)))))
    assert np.linalg.norm(plan.action - TARGET) > 0.1


def test_a_seed_is_one_plan():
    plans = [planner().plan(Scorer(), seed=seed) for seed in (4, 4, 5)]
    np.testing.assert_array_equal(plans[0].action, plans[1].action)
    assert not np.array_equal(plans[0].action, plans[2].action)


def test_a_plan_starts_from_the_last_one():
    first = planner(rounds=4).plan(Scorer())
    second = planner(rounds=1).plan(Scorer(), start=first.proposal)
    assert second.cost < planner(rounds=1).plan(Scorer()).cost
    np.testing.assert_allclose(second.rounds[0].actions.mean(axis=0), TARGET, atol=0.1)


def test_the_proposal_gets_no_narrower_than_asked():
    plan = planner(rounds=8, min_std=0.05).plan(Scorer())
    assert (plan.proposal.std >= 0.05).all()


def test_what_is_infeasible_is_taken_only_when_nothing_else_is_there():
    def judge(candidates):
        return scores_of(away(candidates), excesses=0.1 - candidates[:, -1, 0])  # the target's half is feasible

    plan = planner().plan(Scorer(judge))
    assert plan.score.is_feasible
    assert plan.action[0] >= 0.1

    def judge_all(candidates):
        return scores_of(away(candidates), excesses=5.0 - candidates[:, -1, 0])

    plan = planner(rounds=4).plan(Scorer(judge_all))
    assert not plan.score.is_feasible
    assert plan.action[0] > WIDE.std[0]  # it went where least is exceeded


def test_what_was_not_scored_is_passed_over():
    def judge(candidates):
        return scores_of(away(candidates), lost=set(range(0, len(candidates), 2)))

    plan = planner(rounds=4).plan(Scorer(judge))
    assert plan.score.status == "ok"
    np.testing.assert_allclose(plan.action, TARGET, atol=0.1)


def test_a_round_without_any_score_keeps_the_proposal():
    def judge(candidates):
        return scores_of(away(candidates), lost=set() if len(score.asked) > 1 else set(range(len(candidates))))

    score = Scorer(judge)
    plan = planner(rounds=2).plan(score)
    assert np.isnan(plan.best_costs[0])
    assert plan.rounds[0].best is None
    assert plan.cost == plan.best_costs[1]


@pytest.mark.parametrize("search", ["planner", "shooting"])
def test_no_plan_without_any_score(search):
    score = Scorer(lambda candidates: scores_of(away(candidates), lost=set(range(len(candidates)))))
    with pytest.raises(NothingScored):
        planner().plan(score) if search == "planner" else random_shooting(
            score, lambda rng, count: decode(np.ones((count, 2)))
        )


def test_random_shooting_takes_the_best_of_what_a_callable_proposes():
    score = Scorer()
    plan = random_shooting(
        score, lambda rng, count: decode(rng.normal(0, 0.4, (count, 2))), num_candidates=16, rounds=3
    )
    assert [len(asked) for asked in score.asked] == [16] * 3
    costs = np.concatenate([away(asked) for asked in score.asked])
    assert plan.cost == pytest.approx(costs.min())
    assert away(plan.states[None])[0] == pytest.approx(plan.cost)
    assert (plan.action, plan.proposal) == (None, None)
    assert not np.array_equal(score.asked[0], score.asked[1])


@pytest.mark.parametrize("options", [{"num_elites": 0}, {"num_elites": 33}, {"rounds": 0}])
def test_a_planner_that_cannot_plan_is_not_made(options):
    with pytest.raises(ValueError, match="elites"):
        planner(**options)
