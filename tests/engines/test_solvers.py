"""UniPC's weights: what they do to flows whose answers are known, and how their error falls with the steps."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest

from foreframe_engines import get_schedule
from foreframe_engines.solvers import Solver, coefficients, num_slots

Answer = Callable[[np.ndarray, float], np.ndarray]
Weigh = Callable[[Sequence[float], int], np.ndarray]


def unipc(answer: Answer, noise: np.ndarray, times: Sequence[float], weigh: Weigh = coefficients) -> np.ndarray:
    """Follow the update that the weights are documented for; `answer` gives clean latents."""
    state = np.stack([noise] * num_slots(Solver.UNIPC))
    for index, time in enumerate(times[:-1]):
        correct, predict = weigh(times, index)
        clean = answer(state[0], time)
        corrected = np.tensordot(correct, np.stack([*state, clean]), 1)
        moved = np.tensordot(predict, np.stack([corrected, clean, state[2], 0 * clean, 0 * clean]), 1)
        state = np.stack([moved, corrected, clean, state[2]])
    return state[0]


def euler(answer: Answer, noise: np.ndarray, times: Sequence[float]) -> np.ndarray:
    for time, next_time in pairwise(times):
        noise = noise + (next_time - time) * (noise - answer(noise, time)) / time
    return noise


def gaussian(scale: float) -> tuple[Answer, Callable[[np.ndarray], np.ndarray]]:
    """Return the answers and the exact end of the flow to a normal distribution of that scale."""

    def answer(latents: np.ndarray, time: float) -> np.ndarray:
        signal = (1 - time) * scale**2
        return latents * signal / (signal * (1 - time) + time**2)

    return answer, lambda noise: noise * scale


NOISE = np.random.default_rng(0).standard_normal(64)


def test_a_member_is_one_tensor_or_four() -> None:
    assert [num_slots(solver) for solver in Solver] == [1, 4]


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50])
def test_a_network_that_knows_the_data_is_followed_to_it(steps: int) -> None:
    data = np.linspace(-1, 1, 64)
    end = unipc(lambda latents, time: data, NOISE, get_schedule(steps, 5))
    np.testing.assert_allclose(end, data, atol=1e-6)


@pytest.mark.parametrize("index", range(5))
def test_the_straight_path_between_noise_and_data_is_kept(index: int) -> None:
    times, data = get_schedule(6, 3), np.linspace(-1, 1, 64)
    path = [(1 - time) * data + time * NOISE for time in times]
    correct, predict = coefficients(times, index)
    corrected = np.tensordot(correct, np.stack([path[index], path[index - 1], data, data, data]), 1)
    np.testing.assert_allclose(corrected, path[index], atol=2e-6)
    moved = np.tensordot(predict[:3], np.stack([corrected, data, data]), 1)
    np.testing.assert_allclose(moved, path[index + 1], atol=2e-6)


def test_the_first_step_corrects_nothing_and_the_last_lands_on_the_answer() -> None:
    times = get_schedule(4, 5)
    assert coefficients(times, 0)[0].tolist() == [1, 0, 0, 0, 0]
    assert coefficients(times, 3)[1].tolist() == [0, 1, 0, 0, 0]
    assert coefficients((1.0, 0.0), 0).tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]


def order_of(solve: Callable[[Sequence[float]], np.ndarray], exact: np.ndarray) -> float:
    """Measure by which power of the number of steps the error falls."""
    errors = [np.abs(solve(get_schedule(steps, 1)) - exact).max() for steps in (40, 80)]
    return math.log2(errors[0] / errors[1])


def test_the_error_falls_with_the_square_of_the_steps_and_eulers_with_the_steps() -> None:
    answer, end = gaussian(0.6)
    assert order_of(lambda times: euler(answer, NOISE, times), end(NOISE)) == pytest.approx(1, abs=0.15)
    assert order_of(lambda times: unipc(answer, NOISE, times), end(NOISE)) > 1.8
    few = get_schedule(10, 1)
    ours, theirs = (np.abs(solve(answer, NOISE, few) - end(NOISE)).max() for solve in (unipc, euler))
    assert ours < 0.3 * theirs


def test_weights_of_another_step_would_be_noticed() -> None:
    answer, end = gaussian(0.6)

    def shifted(times: Sequence[float], index: int) -> np.ndarray:
        return coefficients(times, index if index in {0, len(times) - 2} else index + (index % 2))

    assert order_of(lambda times: unipc(answer, NOISE, times, shifted), end(NOISE)) < 1.5


def test_what_comes_later_matters_only_by_being_there() -> None:
    times = get_schedule(6, 5)
    for index in range(5):
        np.testing.assert_array_equal(coefficients(times, index), coefficients((*times[: index + 2], 0.0), index))


@pytest.mark.parametrize("index", [-1, 4])
def test_a_step_that_does_not_exist_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match=rf"step {index} of a schedule of 5 times"):
        coefficients(get_schedule(4, 5), index)
