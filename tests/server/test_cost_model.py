import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreframe_server.cost_model import CostModel, SlowQuantile

BUCKETS = (1, 2, 4, 8)
TWO_LANES = {1: 0.100, 2: 0.102, 4: 0.203, 8: 0.405}


def test_before_anything_is_observed_every_prediction_is_zero():
    cost = CostModel(BUCKETS)
    assert (cost.prepare_s, cost.row_s, cost.step_s(3), cost.decode_s(9), cost.error_ratio) == (0, 0, 0, 0, 0)
    assert cost.max_rows == 8


@pytest.mark.parametrize(
    ("seconds", "max_rows"),
    [
        (TWO_LANES, 2),
        ({1: 0.1, 2: 0.2, 4: 0.4, 8: 0.8}, 1),
        ({1: 0.100, 2: 0.101, 4: 0.103, 8: 0.110}, 8),
        ({1: 0.10, 2: 0.11, 4: 0.12, 8: 0.233}, 4),
        ({1: 0.1, 2: 0.3, 4: 0.1, 8: 0.9}, 4),
        ({1: 0.109, 2: 0.2, 4: 0.4, 8: 0.8}, 1),
        ({1: 0.113, 2: 0.2, 4: 0.4, 8: 0.8}, 2),
    ],
    ids=[
        "two lanes",
        "one lane",
        "many lanes",
        "a little better is not worth it",
        "padding up to four",
        "within a tenth of the best",
        "more than a tenth below the best",
    ],
)
def test_forwards_are_as_small_as_the_best_rate_allows(seconds, max_rows):
    cost = CostModel(BUCKETS)
    cost.fit(seconds)
    assert cost.max_rows == max_rows
    assert cost.row_s == pytest.approx(seconds[max_rows] / max_rows)


def test_a_start_beside_others_leaves_no_lane_idle():
    busy = {1: 0.0107, 2: 0.0213, 4: 0.0427}
    cost = CostModel(BUCKETS)
    cost.fit(busy, num_lanes=2)
    assert cost.max_rows == 2
    cost.fit(busy, num_lanes=1)
    assert cost.max_rows == 1, "another engine has taken over"
    cost = CostModel((1,))
    cost.fit({1: 0.01}, num_lanes=2)
    assert cost.max_rows == 1


@pytest.mark.parametrize(
    ("forward_s", "fixed", "roomy_rows"),
    [(0.015, None, 4), (0.012, None, 8), (0.001, None, 8), (0.03, None, 2), (0.2, None, 2), (0.015, 2, 2)],
    ids=["a few", "more", "at most the largest size", "one", "a slow device", "a fixed size"],
)
def test_where_nobody_waits_forwards_are_longer(forward_s, fixed, roomy_rows):
    cost = CostModel(BUCKETS, max_rows=fixed)
    cost.fit({1: forward_s, 2: forward_s, 4: 2 * forward_s})
    assert (cost.max_rows, cost.roomy_rows) == (2, roomy_rows)


def test_members_are_decoded_for_about_as_long_as_a_forward_takes():
    cost = CostModel(BUCKETS)
    assert cost.turn_members(8, is_roomy=True) == 1
    cost.fit(TWO_LANES)
    cost.observe_decode(1, 0.05)
    assert [cost.turn_members(frames, is_roomy=False) for frames in (1, 2, 8)] == [2, 1, 1]
    cost = CostModel(BUCKETS)
    cost.fit({1: 0.015, 2: 0.015, 4: 0.03})
    cost.observe_decode(8, 0.016)
    assert [cost.turn_members(8, is_roomy=is_roomy) for is_roomy in (False, True)] == [1, 3]


def test_a_fixed_size_stays_whatever_is_measured():
    cost = CostModel(BUCKETS, max_rows=8)
    cost.fit(TWO_LANES)
    assert cost.max_rows == 8


@pytest.mark.parametrize("seconds", [{}, {1: 0.0, 8: 0.0}])
def test_a_clock_that_saw_nothing_changes_no_size(seconds):
    cost = CostModel(BUCKETS)
    cost.fit(seconds)
    assert cost.max_rows == 8


def test_a_size_that_was_not_seen_costs_what_the_next_larger_one_does():
    cost = CostModel(BUCKETS)
    cost.fit(TWO_LANES)
    assert cost.step_s(3) == TWO_LANES[4]
    cost.observe_step(3, 0.15)
    assert cost.step_s(3) == 0.15


@given(st.lists(st.tuples(st.integers(1, 8), st.floats(0.001, 10)), max_size=30))
def test_predictions_stay_within_what_was_seen(forwards):
    cost = CostModel(BUCKETS)
    cost.fit(TWO_LANES)
    for rows, seconds in forwards:
        cost.observe_step(rows, seconds)
    seen = [*TWO_LANES.values(), *(seconds for _, seconds in forwards)]
    for rows in range(1, 9):
        assert 0.98 * min(seen) <= cost.step_s(rows) <= 1.04 * max(seen)


def test_an_estimate_settles_where_three_of_four_values_are_lower():
    values = np.random.default_rng(0).lognormal(0.0, 0.5, 20_000)
    estimate, seen = SlowQuantile(), []
    for value in values:
        estimate.observe(value)
        seen.append(estimate.value)
    assert np.mean(seen[1000:]) == pytest.approx(np.quantile(values, 0.75), rel=0.05)


def test_one_stall_changes_an_estimate_little():
    cost = CostModel(BUCKETS)
    cost.fit(TWO_LANES)
    cost.observe_step(2, 60.0)
    assert cost.step_s(2) < 1.05 * TWO_LANES[2]


@pytest.mark.parametrize(("factor", "num_forwards"), [(2.0, 30), (0.5, 80)])
def test_a_device_that_changes_its_pace_is_followed_up_faster_than_down(factor, num_forwards):
    cost = CostModel(BUCKETS)
    cost.fit(TWO_LANES)
    for _ in range(num_forwards):
        cost.observe_step(2, factor * TWO_LANES[2])
    assert cost.step_s(2) == pytest.approx(factor * TWO_LANES[2], rel=0.1)


def test_the_error_is_what_predictions_are_off_by_on_the_average():
    cost = CostModel(BUCKETS)
    cost.fit(TWO_LANES)
    for _ in range(300):
        cost.observe_step(2, 0.102)
    assert cost.error_ratio < 0.05
    for _ in range(5):
        cost.observe_step(2, 10.0)
    assert cost.error_ratio == pytest.approx(1 - 0.95**5, abs=0.05)


def test_preparing_and_decoding_are_learned_by_the_job_and_by_the_frame():
    cost = CostModel(BUCKETS)
    cost.observe_prepare(0.3)
    cost.observe_decode(6, 0.12)
    assert cost.prepare_s == 0.3
    assert cost.decode_s(3) == pytest.approx(0.06)
