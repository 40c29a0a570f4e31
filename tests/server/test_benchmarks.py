"""What is timed is what is said: counted reads, a clock of the test's own, and a planted fault that must show."""

import numpy as np
import pytest

from foreframe_engines.reading import greedy_rollout, read_history
from foreframe_engines.testing import LeakyToyLikelihoodEngine, ToyLikelihoodEngine
from foreframe_server.benchmarks import Plans, measure_history, measure_sharing, score_independent, score_shared


class RowClock:
    """Time passes with rows that are read: `price(row)` seconds each."""

    def __init__(self, price):
        self.now, self.price = 0.0, price

    def __call__(self):
        return self.now

    def charge(self, rows):
        self.now += sum(self.price(row) for row in rows)


def make_plans(history=5, count=6, future=3):
    rng = np.random.default_rng(0)
    states = rng.standard_normal((history, 3), np.float32)
    frames = rng.integers(0, 256, (history, 8, 8, 3), dtype=np.uint8)
    return Plans(frames, states, rng.standard_normal((count, future, 3), np.float32), 4)


def toy(clock=None, kind=ToyLikelihoodEngine):
    return kind(read_hook=clock.charge if clock else None)


def test_both_ways_give_the_costs_of_the_plain_loop():
    plans, engine = make_plans(), toy()
    context = read_history(engine, engine.tokenize(plans.frames), plans.states)
    plain = [-greedy_rollout(engine, context, states).log_probability.sum() for states in plans.candidates]
    np.testing.assert_allclose(score_shared(engine, plans), plain, rtol=1e-6)
    np.testing.assert_allclose(score_independent(engine, plans), plain, rtol=1e-6)
    assert len(set(plain)) == len(plain)


def test_the_ratio_is_that_of_the_rows_read():
    clock = RowClock(lambda row: 0.5)
    plans = make_plans(history=8, count=32, future=8)
    measures = measure_sharing(toy(clock), plans, 3, clock)
    assert measures.reads_ratio == pytest.approx((7 + 32 * 8) / (32 * 15), abs=1e-4)
    assert measures.wall_time_ratio == measures.reads_ratio
    assert measures.wall_time_ratios == [measures.reads_ratio] * 3
    assert measures.shared_ms == 500 * (7 + 32 * 8)
    assert measures.largest_cost_difference_nats == 0


def test_reads_are_no_wider_than_said_on_either_side():
    engine, plans = toy(), make_plans()
    score_shared(engine, plans)
    score_independent(engine, plans)
    assert max(engine.read_rows) == plans.max_rows


def test_what_is_seen_is_tokenised_once_or_once_a_candidate():
    plans = make_plans()
    for score, times in ((score_shared, 1), (score_independent, len(plans.candidates))):
        engine = toy()
        score(engine, plans)
        assert engine.calls["tokenize"] == times


def test_an_engine_whose_rows_touch_is_caught():
    clock = RowClock(lambda row: 1.0)
    measures = measure_sharing(toy(clock, LeakyToyLikelihoodEngine), make_plans(), 1, clock)
    assert measures.largest_cost_difference_nats > 1e-3


def history_of(engine, clock, num_grids=16):
    rng = np.random.default_rng(0)
    ids, states = rng.integers(0, 6, (num_grids, 4)), rng.standard_normal((num_grids, 3), np.float32)
    return measure_history(engine, ids, states, 2, clock)


def test_a_flat_read_is_flat_and_reading_again_grows():
    clock = RowClock(lambda row: 0.25)
    measures = history_of(toy(clock), clock)
    assert measures.history_grids == list(range(1, 16))
    assert measures.kept_ms == [250] * 15
    assert measures.kept_last_over_first_ratio == 1
    assert measures.read_again_ms == [250 * length for length in range(1, 16)]
    assert measures.read_again_last_over_first_ratio == 15
    assert measures.largest_difference_nats == 0


def test_a_read_that_grows_with_its_history_shows():
    clock = RowClock(lambda row: 1 + row.history.num_grids)
    assert history_of(toy(clock), clock).kept_last_over_first_ratio == 15


class Drifting(ToyLikelihoodEngine):
    """A toy with a planted fault: the same row is answered a little differently each time."""

    def read(self, rows):
        scores = super().read(rows)
        for score in scores:
            score.log_probability[...] -= 0.01 * self.calls["read"]
        return scores


def test_kept_keys_and_values_that_differ_are_caught():
    clock = RowClock(lambda row: 1.0)
    engine = Drifting(read_hook=clock.charge)
    assert history_of(engine, clock).largest_difference_nats > 0.01
