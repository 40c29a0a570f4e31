"""Distances of planned and random hands summed up by strategy."""

import json
from dataclasses import asdict

import pytest

from foreframe_server.experiments.plans import Attempt, GoalResult, name_strategies, summarise_plans


def results(near=0.02, far=0.3):
    """Three goals: `good` always ends near, `bad` always far, `even` at one of them near."""
    return [
        GoalResult(
            seed=seed,
            hand="left",
            start_m=0.15,
            random_m=random_m,
            attempts=(
                Attempt.of("bad", far, 1.0, [2.0, 1.0]),
                Attempt.of("good", near * (seed + 1), 2.0, [0.5, float("nan")]),
                Attempt.of("even", near if seed == 0 else far, 3.0, [1.0]),
            ),
        )
        for seed, random_m in enumerate((0.1, 0.2, 0.3))
    ]


def test_distances_are_means_over_goals_with_intervals_around_them():
    report = summarise_plans(results())
    good = report.strategies["good"]
    assert (report.goals, report.random_m.mean, report.start_m.mean) == (3, 0.2, 0.15)
    assert (good.distance_m.mean, good.median_m) == (0.04, 0.04)
    assert good.distance_m.low < good.distance_m.mean < good.distance_m.high
    assert good.ratio_to_random.mean == pytest.approx(0.2)
    assert (good.ratio_to_random.low, good.ratio_to_random.high) == (0.2, 0.2)  # paired: each goal has the same ratio


def test_a_success_is_half_of_what_random_plans_leave_at_that_goal():
    report = summarise_plans(results())
    shares = {name: found.success.mean for name, found in report.strategies.items()}
    assert shares == {"bad": 0.0, "good": 1.0, "even": pytest.approx(1 / 3, abs=1e-4)}


def test_the_best_strategy_ends_nearest():
    assert summarise_plans(results()).best_strategy == "good"
    assert summarise_plans(results(near=0.9, far=0.1)).best_strategy == "bad"


def test_calls_and_time_are_summed_and_the_report_is_json():
    report = summarise_plans(results())
    assert (report.strategies["bad"].score_calls, report.strategies["bad"].seconds) == (6, 3.0)
    record = json.loads(json.dumps(asdict(report), allow_nan=False))
    assert record["per_goal"][0]["attempts"][1]["best_costs"] == [0.5, None]


def test_every_strategy_is_compared_in_the_same_way():
    strategies = name_strategies("latent")
    assert list(strategies) == ["sample", "mean8", "antithetic", "posterior_mean", "medoid8", "tokens"]
    assert {how.metric for how in strategies.values()} == {"latent", "tokens"}
    assert (strategies["antithetic"].size, strategies["medoid8"].reducer) == (2, "medoid")
    assert strategies["posterior_mean"].size == 1
