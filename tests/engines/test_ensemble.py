from itertools import permutations

import numpy as np
import pytest

from foreframe_engines import EnsembleSpec, EnsembleStatistics, NoisePlan, Reducer, Sampling, Strategy
from foreframe_engines.ensemble import median_frames, medoid_index, reduce_members, summarise


def draw_members(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 2, 4, 5, 3), dtype=np.uint8)


def as_bytes(statistics: EnsembleStatistics) -> tuple[int, bytes, bytes]:
    return statistics.count, statistics.total.tobytes(), statistics.squares.tobytes()


def test_merging_is_exact_in_any_order() -> None:
    members = draw_members(7)
    parts = [EnsembleStatistics.of(part) for part in (members[:1], members[1:3], members[3:])]
    whole = as_bytes(EnsembleStatistics.of(members))
    for first, second, third in permutations(parts):
        assert as_bytes(first.merge(second).merge(third)) == whole
        assert as_bytes(first.merge(second.merge(third))) == whole


def test_adding_one_member_at_a_time_equals_summing_at_once() -> None:
    members = draw_members(6)
    statistics = EnsembleStatistics.of(members[:1])
    for member in members[1:]:
        statistics = statistics.add(member)
    assert as_bytes(statistics) == as_bytes(EnsembleStatistics.of(members))


def test_white_members_do_not_overflow() -> None:
    white = np.full((300, 1, 1, 1, 3), 255, np.uint8)
    statistics = EnsembleStatistics.of(white)
    assert statistics.squares.max() == 300 * 255**2
    assert statistics.mean_frames().min() == 255
    assert statistics.variance(NoisePlan.IID).max() == 0


def test_the_mean_is_rounded_halves_up() -> None:
    members = np.zeros((2, 1, 1, 1, 3), np.uint8)
    members[1, 0, 0, 0] = (1, 2, 3)
    assert EnsembleStatistics.of(members).mean_frames().tolist() == [[[[1, 1, 2]]]]


def test_the_iid_variance_is_the_sample_variance_in_units_of_white() -> None:
    members = draw_members(5)
    expected = (members / 255).var(axis=0, ddof=1).mean(axis=-1)
    np.testing.assert_allclose(EnsembleStatistics.of(members).variance(NoisePlan.IID), expected, rtol=1e-6)


@pytest.mark.parametrize("plan", NoisePlan)
@pytest.mark.parametrize("count", [2, 3, 4, 5, 8])
def test_the_variance_is_unbiased_under_its_noise_plan(plan: NoisePlan, count: int) -> None:
    rng = np.random.default_rng(count)
    pixels = (1, 150, 150, 3)
    if plan is NoisePlan.IID:
        noise = rng.standard_normal((count, *pixels))
    else:
        pairs = rng.standard_normal(((count + 1) // 2, *pixels))
        noise = np.stack([pairs, -pairs], axis=1).reshape(-1, *pixels)[:count]
    members = np.rint(128 + 20 * noise).clip(0, 255).astype(np.uint8)
    variance = EnsembleStatistics.of(members).variance(plan).mean()
    assert variance == pytest.approx((20 / 255) ** 2, rel=0.02)


def test_the_wrong_plan_is_told_apart_by_that_check() -> None:
    pair = np.random.default_rng(0).standard_normal((1, 1, 150, 150, 3))
    members = np.rint(128 + 20 * np.concatenate([pair, -pair])).clip(0, 255).astype(np.uint8)
    variance = EnsembleStatistics.of(members).variance(NoisePlan.IID).mean()
    assert variance > 1.9 * (20 / 255) ** 2


@pytest.mark.parametrize("plan", NoisePlan)
def test_one_member_has_no_spread(plan: NoisePlan) -> None:
    statistics = EnsembleStatistics.of(draw_members(1))
    assert statistics.variance(plan).max() == 0
    assert statistics.spread_per_frame(plan) == (0.0, 0.0)


def test_the_spread_of_a_frame_is_the_root_of_its_mean_variance() -> None:
    statistics = EnsembleStatistics.of(draw_members(4))
    variance = statistics.variance(NoisePlan.IID)
    assert statistics.spread_per_frame(NoisePlan.IID) == pytest.approx(np.sqrt(variance.mean(axis=(1, 2))).tolist())


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7])
def test_the_median_is_numpys_rounded_halves_up(count: int) -> None:
    members = draw_members(count)
    expected = np.floor(np.median(members, axis=0) + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(median_frames(members), expected)


def test_the_medoid_has_the_least_squared_distance_to_the_others() -> None:
    members = draw_members(9)
    flat = members.reshape(9, -1).astype(float)
    cost = ((flat[:, None] - flat[None]) ** 2).sum(axis=(1, 2))
    assert medoid_index(members) == cost.argmin()


def test_the_medoid_of_equals_is_the_first() -> None:
    assert medoid_index(np.repeat(draw_members(1), 4, axis=0)) == 0
    assert medoid_index(draw_members(2)) == 0


def test_reducers_take_the_member_or_statistic_they_name() -> None:
    members = draw_members(5)
    expected = {
        Reducer.MEAN: EnsembleStatistics.of(members).mean_frames(),
        Reducer.MEDIAN: median_frames(members),
        Reducer.MEDOID: members[medoid_index(members)],
        Reducer.NONE: members[0],
    }
    for reducer in Reducer:
        np.testing.assert_array_equal(reduce_members(members, EnsembleSpec(5, reducer)), expected[reducer])


@pytest.mark.parametrize("reducer", Reducer)
def test_one_member_is_its_own_reduction(reducer: Reducer) -> None:
    members = draw_members(1)
    np.testing.assert_array_equal(reduce_members(members, EnsembleSpec(1, reducer)), members[0])


def test_a_prediction_carries_members_statistics_and_what_was_asked() -> None:
    members = draw_members(3)
    sampling, ensemble = Sampling(Strategy.SAMPLE, 4, 9), EnsembleSpec(8, Reducer.MEAN, NoisePlan.IID)
    prediction = summarise(members, [2, 8], sampling, ensemble)
    statistics = EnsembleStatistics.of(members)
    assert prediction.frame_indices == (2, 8)
    assert prediction.num_members == 3
    assert prediction.ensemble.size == 8
    assert prediction.sampling.seed == 9
    np.testing.assert_array_equal(prediction.variance, statistics.variance(NoisePlan.IID))
    assert prediction.spread_per_frame == statistics.spread_per_frame(NoisePlan.IID)
