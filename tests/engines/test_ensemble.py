from itertools import permutations

import numpy as np
import pytest

from foreframe_engines import (
    Convergence,
    EnsembleSpec,
    EnsembleStatistics,
    NoisePlan,
    Reducer,
    Sampling,
    Strategy,
    converged_size,
)
from foreframe_engines.ensemble import median_frames, medoid_index, reduce_members, summarise


def draw_members(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 2, 4, 5, 3), dtype=np.uint8)


def draw_correlated(count: int, correlation: float, seed: int = 0, sigma: float = 20) -> np.ndarray:
    """Draw members whose pairs (2i, 2i + 1) have that correlation: one frame of many pixels."""
    rng = np.random.default_rng(seed)
    first, other = rng.standard_normal((2, (count + 1) // 2, 1, 120, 120, 3))
    second = correlation * first + np.sqrt(1 - correlation**2) * other
    noise = np.stack([first, second], axis=1).reshape(-1, *first.shape[1:])[:count]
    return np.rint(128 + sigma * noise).clip(0, 255).astype(np.uint8)


def as_bytes(statistics: EnsembleStatistics) -> tuple[int | bytes, ...]:
    sums = (statistics.total, statistics.squares, statistics.pair_total, statistics.pair_squares)
    return statistics.count, *(each.tobytes() for each in sums)


def test_merging_is_exact_in_any_order_of_parts_that_start_at_even_members() -> None:
    members = draw_members(8)
    parts = [EnsembleStatistics.of(part) for part in (members[:2], members[2:4], members[4:])]
    whole = as_bytes(EnsembleStatistics.of(members))
    for first, second, third in permutations(parts):
        assert as_bytes(first.merge(second).merge(third)) == whole
        assert as_bytes(first.merge(second.merge(third))) == whole


def test_a_last_part_may_be_odd() -> None:
    members = draw_members(7)
    merged = EnsembleStatistics.of(members[:4]).merge(EnsembleStatistics.of(members[4:]))
    assert as_bytes(merged) == as_bytes(EnsembleStatistics.of(members))


def test_merging_never_tears_pairs_apart() -> None:
    members = draw_members(5)
    with pytest.raises(ValueError, match="even number"):
        EnsembleStatistics.of(members[:3]).merge(EnsembleStatistics.of(members[3:]))


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


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8])
def test_the_iid_variance_is_unbiased(count: int) -> None:
    variance = EnsembleStatistics.of(draw_correlated(count, 0.0, count)).variance(NoisePlan.IID).mean()
    assert variance == pytest.approx((20 / 255) ** 2, rel=0.03)


@pytest.mark.parametrize("count", [2, 3])
def test_the_variance_of_one_pair_takes_it_for_a_perfect_one(count: int) -> None:
    variance = EnsembleStatistics.of(draw_correlated(count, -1.0, count)).variance(NoisePlan.ANTITHETIC).mean()
    assert variance == pytest.approx((20 / 255) ** 2, rel=0.03)


@pytest.mark.parametrize("correlation", [-1.0, -0.9, -0.5, 0.0])
@pytest.mark.parametrize("count", [4, 5, 8])
def test_the_variance_of_several_pairs_is_unbiased_whatever_their_correlation(count: int, correlation: float) -> None:
    members = draw_correlated(count, correlation, count)
    variance = EnsembleStatistics.of(members).variance(NoisePlan.ANTITHETIC).mean()
    assert variance == pytest.approx((20 / 255) ** 2, rel=0.03)


@pytest.mark.parametrize("correlation", [-1.0, -0.9, -0.5, 0.0, 0.5])
@pytest.mark.parametrize("count", [6, 7])
def test_the_correlation_within_pairs_is_found(count: int, correlation: float) -> None:
    found = EnsembleStatistics.of(draw_correlated(count, correlation)).correlation(NoisePlan.ANTITHETIC)
    assert found == pytest.approx(correlation, abs=0.02)


def test_the_correlation_needs_two_pairs_that_differ() -> None:
    for few in (1, 2, 3):
        assert EnsembleStatistics.of(draw_members(few)).correlation(NoisePlan.ANTITHETIC) is None
    assert EnsembleStatistics.of(draw_members(8)).correlation(NoisePlan.IID) is None
    equal = EnsembleStatistics.of(np.repeat(draw_members(1), 4, axis=0))
    assert equal.correlation(NoisePlan.ANTITHETIC) is None
    assert equal.effective_members(NoisePlan.ANTITHETIC) is None
    assert equal.standard_error(NoisePlan.ANTITHETIC) == 0


def test_pairs_that_cancel_have_no_finite_number_of_effective_members() -> None:
    members = np.array([100, 110, 90, 120], np.uint8).reshape(4, 1, 1, 1, 1).repeat(3, axis=-1)
    statistics = EnsembleStatistics.of(members)
    assert statistics.correlation(NoisePlan.ANTITHETIC) == -1
    assert statistics.effective_members(NoisePlan.ANTITHETIC) is None
    assert statistics.effective_members(NoisePlan.IID) == 4


@pytest.mark.parametrize("count", [4, 5, 8, 9])
def test_effective_members_are_as_many_as_make_an_equal_error(count: int) -> None:
    statistics = EnsembleStatistics.of(draw_correlated(count, -0.8))
    effective = statistics.effective_members(NoisePlan.ANTITHETIC)
    error = statistics.standard_error(NoisePlan.ANTITHETIC)
    assert effective is not None
    assert error == pytest.approx(np.sqrt(statistics.variance(NoisePlan.ANTITHETIC).mean() / effective), rel=1e-4)


@pytest.mark.parametrize("plan", NoisePlan)
@pytest.mark.parametrize("count", [4, 5, 8])
def test_the_standard_error_is_how_far_the_mean_is_from_the_truth(plan: NoisePlan, count: int) -> None:
    members = draw_correlated(count, -0.8 if plan is NoisePlan.ANTITHETIC else 0.0)
    true = np.sqrt(np.square(members.mean(axis=0) - 128).mean()) / 255
    assert EnsembleStatistics.of(members).standard_error(plan) == pytest.approx(true, rel=0.03)


def test_the_wrong_plan_mistakes_the_standard_error() -> None:
    members = draw_correlated(8, -0.8)
    true = np.sqrt(np.square(members.mean(axis=0) - 128).mean()) / 255
    error = EnsembleStatistics.of(members).standard_error(NoisePlan.IID)
    assert error is not None
    assert error > 2 * true


def test_a_standard_error_needs_two_members_and_of_pairs_two() -> None:
    for few in (1, 2, 3):
        assert EnsembleStatistics.of(draw_members(few)).standard_error(NoisePlan.ANTITHETIC) is None
    assert EnsembleStatistics.of(draw_members(1)).standard_error(NoisePlan.IID) is None
    assert EnsembleStatistics.of(draw_members(2)).standard_error(NoisePlan.IID) is not None


def needed_size(members: np.ndarray, plan: NoisePlan, tolerance: float) -> int | None:
    """The definition: the smallest prefix, even for pairs, whose own standard error is small enough."""
    for size in range(1, len(members) + 1):
        error = EnsembleStatistics.of(members[:size]).standard_error(plan)
        is_whole = plan is NoisePlan.IID or size % 2 == 0
        if is_whole and error is not None and error <= tolerance:
            return size
    return None


@pytest.mark.parametrize("plan", NoisePlan)
@pytest.mark.parametrize("tolerance", [0.0, 0.02, 0.03, 0.05, 1.0])
def test_an_ensemble_converges_at_the_smallest_prefix_within_the_tolerance(plan: NoisePlan, tolerance: float) -> None:
    members = draw_correlated(12, -0.5 if plan is NoisePlan.ANTITHETIC else 0.0)
    expected = needed_size(members, plan, tolerance)
    assert converged_size(members, EnsembleSpec(12, noise=plan, tolerance=tolerance)) == expected
    assert expected == {0.0: None, 1.0: 4 if plan is NoisePlan.ANTITHETIC else 2}.get(tolerance, expected)


def test_members_beyond_the_size_asked_are_not_looked_at() -> None:
    members = draw_correlated(12, 0.0)
    needed = converged_size(members, EnsembleSpec(12, noise=NoisePlan.IID, tolerance=0.03))
    assert needed is not None
    assert needed > 4
    assert converged_size(members, EnsembleSpec(4, noise=NoisePlan.IID, tolerance=0.03)) is None


def test_without_a_tolerance_nothing_converges() -> None:
    assert converged_size(np.repeat(draw_members(1), 8, axis=0), EnsembleSpec(8)) is None


@pytest.mark.parametrize("plan", NoisePlan)
def test_convergence_does_not_depend_on_the_size_of_waves(plan: NoisePlan) -> None:
    members = draw_correlated(12, -0.5)
    ensemble = EnsembleSpec(12, noise=plan, tolerance=0.03)
    for wave in (1, 2, 3, 5):
        convergence = Convergence(plan)
        for start in range(0, 12, wave):
            convergence.extend(members[start : start + wave])
        assert convergence.count == 12
        assert convergence.size_within(0.03) == converged_size(members, ensemble)


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
    assert prediction.correlation is None
    assert prediction.effective_members == 3
    assert prediction.standard_error == statistics.standard_error(NoisePlan.IID)
