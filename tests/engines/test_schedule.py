import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreframe_engines import Sampling, Strategy, get_schedule, num_steps


@given(steps=st.integers(1, 100), shift=st.floats(0.1, 20))
def test_time_falls_from_exactly_one_to_exactly_zero(steps: int, shift: float) -> None:
    times = get_schedule(steps, shift)
    assert len(times) == steps + 1
    assert times[0] == 1.0
    assert times[-1] == 0.0
    assert list(times) == sorted(set(times), reverse=True)


def test_without_a_shift_the_times_are_even() -> None:
    assert get_schedule(4, 1) == pytest.approx((1, 0.75, 0.5, 0.25, 0))


def test_a_shift_of_five_moves_the_middle_towards_the_noise() -> None:
    assert get_schedule(2, 5) == pytest.approx((1, 5 * 0.5 / (1 + 4 * 0.5), 0))


def test_the_posterior_mean_is_one_evaluation_from_noise_to_data() -> None:
    steps = num_steps(Sampling(Strategy.POSTERIOR_MEAN, 20, 0))
    assert get_schedule(steps, 5) == (1.0, 0.0)


def test_a_sample_takes_the_steps_asked_for() -> None:
    assert num_steps(Sampling(Strategy.SAMPLE, 20, 0)) == 20
