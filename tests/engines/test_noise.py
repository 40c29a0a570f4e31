import numpy as np
import pytest

from foreframe_engines import NoisePlan, member_noise

SHAPE = (8, 3, 4, 4)


@pytest.mark.parametrize("plan", NoisePlan)
def test_an_ensemble_of_five_is_a_prefix_of_one_of_twenty(plan: NoisePlan) -> None:
    twenty = [member_noise(7, member, SHAPE, plan) for member in range(20)]
    five = [member_noise(7, member, SHAPE, plan) for member in range(5)]
    np.testing.assert_array_equal(five, twenty[:5])


def test_the_order_of_drawing_does_not_matter() -> None:
    forward = [member_noise(7, member, SHAPE, NoisePlan.IID) for member in (0, 1, 2)]
    backward = [member_noise(7, member, SHAPE, NoisePlan.IID) for member in (2, 1, 0)]
    np.testing.assert_array_equal(forward, backward[::-1])


def test_antithetic_members_come_in_opposite_pairs() -> None:
    noises = [member_noise(7, member, SHAPE, NoisePlan.ANTITHETIC) for member in range(4)]
    np.testing.assert_array_equal(noises[0], -noises[1])
    np.testing.assert_array_equal(noises[2], -noises[3])
    assert not np.array_equal(np.abs(noises[0]), np.abs(noises[2]))


def test_iid_members_and_seeds_all_differ() -> None:
    draws = {member_noise(seed, member, SHAPE, NoisePlan.IID).tobytes() for seed in range(4) for member in range(8)}
    assert len(draws) == 32


def test_noise_is_standard_normal_float32() -> None:
    noise = member_noise(2**53 - 1, 3, (100, 1000), NoisePlan.IID)
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_the_draw_of_a_seed_never_changes() -> None:
    expected = np.array([0.18170474, -1.2426393, -0.551553], np.float32)
    np.testing.assert_allclose(member_noise(42, 0, (3,), NoisePlan.IID), expected, rtol=1e-6)
