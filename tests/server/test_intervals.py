"""Bootstrap intervals: right width, whole episodes, paired."""

import numpy as np
import pytest

from foreframe_server.intervals import Interval, Resamples


def test_an_interval_is_as_wide_as_theory_says():
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, 400)
    interval = Resamples.of(range(400)).mean(values)
    expected = 1.96 * values.std() / np.sqrt(400)
    assert interval.mean == pytest.approx(values.mean(), abs=1e-5)
    assert (interval.high - interval.low) / 2 == pytest.approx(expected, rel=0.1)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    intervals = [Resamples.of(range(60), seed).mean(rng.normal(0, 1, 60)) for seed in range(200)]
    covered = sum(interval.low <= 0 <= interval.high for interval in intervals)
    assert 0.88 < covered / 200 < 0.99


def test_copies_of_a_clip_in_one_episode_tell_nothing_new():
    values = np.random.default_rng(0).normal(0, 1, 30)
    alone = Resamples.of(range(30)).mean(values)
    copied = Resamples.of(np.repeat(np.arange(30), 10)).mean(values.repeat(10))
    blind = Resamples.of(range(300)).mean(values.repeat(10))
    assert (copied.high - copied.low) == pytest.approx(alone.high - alone.low, rel=0.05)
    assert (blind.high - blind.low) < 0.5 * (alone.high - alone.low)


def test_episodes_of_different_length_weigh_by_their_clips():
    resamples = Resamples.of([7, 7, 7, 9])
    assert resamples.mean(np.array([1.0, 1, 1, 5])).mean == 2
    np.testing.assert_allclose(resamples.weights.sum(axis=1), 1)


def test_a_paired_difference_is_surer_than_its_sides():
    rng = np.random.default_rng(0)
    hard = rng.normal(10, 5, 100)
    better = hard - 0.5 + rng.normal(0, 0.1, 100)
    resamples = Resamples.of(range(100))
    difference = resamples.mean(better - hard)
    assert difference.high < -0.4
    assert resamples.mean(better).high > resamples.mean(hard).low


def test_a_ratio_is_one_of_means():
    resamples = Resamples.of(range(3))
    ratio = resamples.ratio(np.array([1.0, 2, 3]), np.array([2.0, 4, 6]))
    assert ratio == Interval(0.5, 0.5, 0.5)
    assert resamples.ratio(np.array([0.0, 0, 3]), np.array([1.0, 1, 1])).mean == 1


def test_columns_get_an_interval_each():
    values = np.random.default_rng(0).normal(size=(20, 3))
    resamples = Resamples.of(range(20))
    assert resamples.means(values) == [resamples.mean(column) for column in values.T]


def test_equal_seeds_draw_the_same():
    values = np.random.default_rng(0).normal(size=20)
    first = Resamples.of(range(20), 1).mean(values)
    assert Resamples.of(range(20), 1).mean(values) == first
    assert Resamples.of(range(20), 2).mean(values) != first
