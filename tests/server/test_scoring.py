from dataclasses import replace

import numpy as np
import pytest

from foreframe_engines import EnsembleSpec, NoisePlan, Reducer, Sampling, Strategy, reduce_members, summarise
from foreframe_engines.testing import toy_contract, toy_tokens
from foreframe_server.scores import (
    Constraint,
    GoalImage,
    GoalMetric,
    GoalState,
    Likelihood,
    Measured,
    Objective,
    Score,
    Smoothness,
    Spread,
)
from foreframe_server.scoring import (
    NUM_RESAMPLES,
    Evidence,
    Reading,
    Rollout,
    _draws,
    grid_of_frame,
    latent_distance,
    member_spread,
    name_terms,
    pixel_distance,
    rank,
    rank_stability,
    roughness,
    score_candidate,
    state_distance,
)

SCHEMA = replace(toy_contract().state, std=np.array([0.5, 2.0, 4.0], np.float32))


def predict(members, *, reducer=Reducer.MEAN, seed=0, noise=NoisePlan.ANTITHETIC):
    """A prediction of one frame, 8, from its members `k h w 3`."""
    ensemble = EnsembleSpec(len(members), reducer, noise)
    return summarise(members[:, None], (8,), Sampling(Strategy.SAMPLE, 4, seed), ensemble)


def draw_members(count=5, seed=0, shape=(4, 4, 3)):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def squared_distance(frame, goal):
    return ((frame.astype(np.float64) - goal) ** 2).mean()


def resample(values, reducer, draws):
    """Each draw's squared length, the slow way: reduce the members that were drawn."""
    costs = []
    for draw in draws:
        drawn = values[draw]
        match reducer:
            case Reducer.MEAN:
                costs.append((drawn.mean(axis=0) ** 2).mean())
            case Reducer.MEDIAN:
                costs.append((np.median(drawn, axis=0) ** 2).mean())
            case Reducer.NONE:
                costs.append((drawn**2).mean())
            case Reducer.MEDOID:
                away = ((drawn[:, None] - drawn[None]) ** 2).reshape(len(draw), len(draw), -1).sum(axis=(1, 2))
                costs.append((drawn[away.argmin()] ** 2).mean())
    return np.array(costs)


def score(cost, violation=0.0, resampled=None, spread=None):
    return Score({}, (), Measured(cost, resampled), Measured(violation, spread))


@pytest.mark.parametrize("reducer", [Reducer.MEAN, Reducer.MEDIAN, Reducer.MEDOID])
def test_a_pixel_distance_is_that_of_the_reduced_frame(reducer):
    members, goal = draw_members(), draw_members(1, seed=9)[0]
    reduced = reduce_members(members[:, None], EnsembleSpec(5, reducer))[0]

    measured = pixel_distance(members, goal, predict(members, reducer=reducer))

    assert measured.value == pytest.approx(squared_distance(reduced, goal) / 255**2, rel=1e-12)


def test_without_a_reducer_a_pixel_distance_is_the_mean_of_the_members_own():
    members, goal = draw_members(), draw_members(1, seed=9)[0]
    own = [squared_distance(member, goal) / 255**2 for member in members]

    measured = pixel_distance(members, goal, predict(members, reducer=Reducer.NONE))

    assert measured.value == pytest.approx(np.mean(own), rel=1e-12)


def test_a_single_member_has_no_draws():
    members, goal = draw_members(1), draw_members(1, seed=9)[0]

    assert pixel_distance(members, goal, predict(members)).resampled is None
    assert member_spread(predict(members)).resampled is None


def test_a_latent_distance_is_that_of_the_reduced_latent():
    latents = np.random.default_rng(0).standard_normal((5, 2, 3, 3), dtype=np.float32)
    goal = np.random.default_rng(1).standard_normal((2, 3, 3), dtype=np.float32)
    wide = latents.astype(np.float64)
    apart = ((wide[:, None] - wide[None]) ** 2).reshape(5, 5, -1).sum(axis=(1, 2))
    by_hand = {
        Reducer.MEAN: squared_distance(wide.mean(axis=0), goal),
        Reducer.MEDIAN: squared_distance(np.median(wide, axis=0), goal),
        Reducer.MEDOID: squared_distance(latents[apart.argmin()], goal),
        Reducer.NONE: np.mean([squared_distance(latent, goal) for latent in latents]),
    }

    for reducer, value in by_hand.items():
        measured = latent_distance(latents, goal, predict(draw_members(), reducer=reducer))
        assert measured.value == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("reducer", list(Reducer))
def test_the_draws_are_those_of_reducing_the_members_that_were_drawn(reducer):
    members, goal = draw_members(), draw_members(1, seed=9)[0]
    prediction = predict(members, reducer=reducer)
    away = (members.astype(np.float64) - goal) / 255

    measured = pixel_distance(members, goal, prediction)

    assert measured.resampled.shape == (NUM_RESAMPLES,)
    np.testing.assert_allclose(measured.resampled, resample(away, reducer, _draws(prediction)), rtol=1e-9)


def test_medians_of_large_frames_are_drawn_from_an_even_sample_of_their_values():
    members, goal = draw_members(shape=(32, 32, 3)), draw_members(1, seed=9, shape=(32, 32, 3))[0]
    prediction = predict(members, reducer=Reducer.MEDIAN)
    away = (members.astype(np.float64) - goal) / 255

    measured = pixel_distance(members, goal, prediction)

    np.testing.assert_allclose(measured.resampled, resample(away, Reducer.MEDIAN, _draws(prediction)), rtol=0.25)


def test_a_spread_is_the_ensemble_s_and_its_draws_are_estimated_alike():
    members = draw_members()
    prediction = predict(members, noise=NoisePlan.IID)
    drawn = members[_draws(prediction)].astype(np.float64) / 255
    by_hand = np.sqrt(drawn.var(axis=1, ddof=1).mean(axis=(1, 2, 3)))

    measured = member_spread(prediction)

    assert measured.value == prediction.spread_per_frame[-1]
    np.testing.assert_allclose(measured.resampled, by_hand, rtol=1e-6, atol=1e-12)


def test_members_that_agree_have_a_spread_of_zero_without_draws():
    members = np.repeat(draw_members(1), 4, axis=0)

    measured = member_spread(predict(members))

    assert (measured.value, measured.resampled) == (0.0, None)


def test_a_state_distance_counts_chosen_dimensions_in_deviations():
    row, goal = np.array([1.0, 2.0, 3.0], np.float32), np.array([0.0, 6.0, 7.0], np.float32)

    assert state_distance(row, GoalState(goal, (0, 1, 2)), SCHEMA) == pytest.approx((2**2 + 2**2 + 1**2) / 3)
    assert state_distance(row, GoalState(goal, (2,)), SCHEMA) == pytest.approx(1.0)


def test_roughness_is_nothing_for_a_straight_path_and_the_mean_squared_bend_otherwise():
    straight = np.outer(np.arange(5), [1.0, -2.0, 3.0]).astype(np.float32)
    bent = np.array([[0, 0, 0], [0, 0, 0], [1, 0, 0]], np.float32)

    assert roughness(straight, SCHEMA) == 0
    assert roughness(bent, SCHEMA) == pytest.approx((1 / 0.5) ** 2 / 3)


def test_a_cost_is_the_weighted_sum_of_its_terms_and_terms_come_back_unweighted():
    members, goal = draw_members(), draw_members(1, seed=9)[0]
    picture = GoalImage(goal, GoalMetric.PIXEL, 8)
    tokens = GoalImage(goal, GoalMetric.TOKENS, 8)
    prediction = predict(members)
    evidence = Evidence(
        path=np.zeros((4, 3), np.float32),
        rollout=Rollout(prediction, (), 1),
        reading=Reading(0.25, {tokens: 1.5}),
    )
    objectives = [Objective(picture, 10.0), Objective(Likelihood(), -2.0), Objective(tokens, 1.0)]

    scored = score_candidate(objectives, [Constraint(Spread(), 0.1)], evidence, SCHEMA)

    pixel = pixel_distance(members, goal, prediction)
    assert scored.terms == {"goal_image": pixel.value, "likelihood": 0.25, "goal_image#2": 1.5}
    assert scored.cost.value == pytest.approx(10 * pixel.value - 0.5 + 1.5)
    np.testing.assert_allclose(scored.cost.resampled, 10 * pixel.resampled + 1.0)
    (spread,) = scored.constraints
    assert spread.value == prediction.spread_per_frame[-1]
    assert not spread.is_satisfied
    assert not scored.is_feasible
    assert scored.violation.value == pytest.approx(spread.value - 0.1)


def test_a_constraint_is_satisfied_at_its_bound():
    evidence = Evidence(np.zeros((3, 3), np.float32))

    scored = score_candidate([Objective(Smoothness(), 1.0)], [Constraint(Smoothness(), 0.0)], evidence, SCHEMA)

    assert scored.is_feasible
    assert scored.violation.value == 0


def test_a_term_without_its_evidence_is_a_fault_of_the_program():
    with pytest.raises(RuntimeError, match="evidence"):
        score_candidate([Objective(Spread(), 1.0)], [], Evidence(np.zeros((3, 3), np.float32)), SCHEMA)


def test_terms_of_one_kind_are_numbered():
    terms = [Spread(), Smoothness(), Spread(), Spread()]

    assert name_terms([Objective(term, 1.0) for term in terms]) == ["spread", "smoothness", "spread#2", "spread#3"]


def test_feasible_candidates_come_first_then_the_least_violation_then_the_least_cost_then_the_first():
    scores = [score(0.0, 2.0), score(5.0), score(-9.0, 1.0), score(3.0), score(3.0), score(-10.0, 1.0)]

    assert rank(scores) == [3, 4, 1, 5, 2, 0]


def test_a_ranking_that_every_member_supports_is_stable():
    goal = np.zeros((4, 4, 3), np.uint8)
    near, far = draw_members() // 8, 128 + draw_members(seed=1) // 8
    scores = [score_of(members, goal) for members in (far, near)]

    assert rank(scores) == [1, 0]
    assert rank_stability(scores) == 1.0


def test_a_near_tie_is_less_stable_and_the_same_every_time():
    goal = np.full((4, 4, 3), 128, np.uint8)
    scores = [score_of(draw_members(seed=seed), goal) for seed in (1, 2, 3)]

    stability = rank_stability(scores)

    assert 0 < stability < 0.95
    assert stability == rank_stability([score_of(draw_members(seed=seed), goal) for seed in (1, 2, 3)])
    assert stability != rank_stability([score_of(draw_members(seed=seed), goal, draw=5) for seed in (1, 2, 3)])


def test_a_constraint_that_some_members_break_makes_a_ranking_less_stable():
    draws = np.random.default_rng(0).random(NUM_RESAMPLES) * 0.02 - 0.01
    scores = [score(1.0, 0.0, spread=np.maximum(draws, 0)), score(2.0)]

    assert rank(scores) == [0, 1]
    assert rank_stability(scores) == pytest.approx((draws <= 0).mean())


def test_costs_without_members_have_no_stability():
    assert rank_stability([score(1.0), score(2.0)]) is None
    assert rank_stability([]) is None


def score_of(members, goal, draw=0):
    measured = pixel_distance(members, goal, predict(members, seed=draw))
    return score(measured.value, resampled=measured.resampled)


@pytest.mark.parametrize(("frame", "grid"), [(1, 0), (2, 1), (9, 1), (10, 2), (17, 2), (18, 3), (19, 4), (34, 5)])
def test_a_window_of_17_frames_has_a_grid_for_its_first_frame_and_one_for_each_8_after_it(frame, grid):
    assert grid_of_frame(frame, toy_tokens(window_frames=17, window_grids=3)) == grid


def test_a_window_of_one_frame_is_a_grid():
    assert [grid_of_frame(frame, toy_tokens()) for frame in (1, 2, 3)] == [0, 1, 2]
