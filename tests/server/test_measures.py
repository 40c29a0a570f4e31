"""SSIM against a loop written out, PSNR and sharpness against hand computations."""

import numpy as np
import pytest

from foreframe_server.evaluation import psnr, squared_errors
from foreframe_server.measures import SSIM_WINDOW, Quality, gradient_energy, psnr_db, ssim


def noise(seed, num_frames=2, height=14, width=17):
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def brute_force_ssim(frame, truth):
    """One window after another, one channel after another, every mean written out."""
    places = np.arange(11) - 5
    weights = np.exp(-(places[:, None] ** 2 + places[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for channel in range(3):
        for top in range(frame.shape[0] - 10):
            for left in range(frame.shape[1] - 10):
                x = frame[top : top + 11, left : left + 11, channel].astype(float)
                y = truth[top : top + 11, left : left + 11, channel].astype(float)
                mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
                variance_x = (weights * (x - mean_x) ** 2).sum()
                variance_y = (weights * (y - mean_y) ** 2).sum()
                covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
                luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
                values.append(luminance * (2 * covariance + c2) / (variance_x + variance_y + c2))
    return np.mean(values)


def test_ssim_is_that_of_the_loop():
    truth = noise(0)
    frames = np.clip(truth.astype(int) + noise(1) // 3 - 40, 0, 255).astype(np.uint8)
    by_hand = [brute_force_ssim(frame, true) for frame, true in zip(frames, truth, strict=True)]
    np.testing.assert_allclose(ssim(frames, truth), by_hand, atol=1e-9)
    assert 0.3 < by_hand[0] < 0.95


def test_ssim_is_one_for_equal_frames_and_below_zero_for_a_negative():
    truth = noise(0)
    np.testing.assert_allclose(ssim(truth, truth), 1)
    assert (ssim(255 - truth, truth) < 0).all()


def test_ssim_sees_what_psnr_does_not():
    smooth = np.broadcast_to(np.linspace(60, 180, 32), (1, 32, 32))[..., None].repeat(3, axis=-1)
    truth = np.round(smooth).astype(np.uint8)
    brighter, grained = truth + np.uint8(12), truth + np.random.default_rng(0).choice([-12, 12], truth.shape)
    grained = grained.astype(np.uint8)
    np.testing.assert_allclose(psnr_db(brighter, truth), psnr_db(grained, truth))
    assert ssim(brighter, truth) > 0.95
    assert ssim(grained, truth) < 0.6


def test_frames_smaller_than_the_window_are_refused():
    small = noise(0, height=SSIM_WINDOW - 1)
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(small, small)


def test_psnr_is_that_of_the_evaluation():
    frames, truth = noise(0), noise(1)
    assert psnr(squared_errors(frames, truth)) == pytest.approx(psnr_db(frames, truth).mean(), abs=1e-3)
    assert psnr_db(truth, truth).tolist() == [100, 100]


def test_gradient_energy_counts_every_step_between_neighbours():
    frame = np.zeros((1, 4, 5, 3), np.uint8)
    frame[:, :, 2:] = 255  # one step a row, four steps across in each: 1 of 4; none down
    assert gradient_energy(frame).tolist() == [0.25]
    assert gradient_energy(np.full((1, 4, 5, 3), 9, np.uint8)).tolist() == [0]


def test_a_blurred_frame_has_less_gradient_energy():
    truth = noise(0)
    blurred = ((truth[:, :-1].astype(int) + truth[:, 1:]) // 2).astype(np.uint8)
    assert (gradient_energy(blurred) < 0.8 * gradient_energy(truth)).all()


def test_a_quality_holds_each_measure_of_each_frame():
    frames, truth = noise(0), noise(1)
    quality = Quality.of(frames, truth)
    np.testing.assert_array_equal(quality.psnr_db, psnr_db(frames, truth))
    np.testing.assert_array_equal(quality.ssim, ssim(frames, truth))
    np.testing.assert_array_equal(quality.gradient_energy, gradient_energy(frames))
