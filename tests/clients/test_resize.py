from __future__ import annotations

import numpy as np
import pytest

from foreframe_client import InvalidRequest, resize_with_pad


def test_frames_of_the_right_size_come_back_as_a_copy():
    frames = np.random.RandomState(0).randint(0, 256, (2, 6, 7, 3)).astype(np.uint8)
    same = resize_with_pad(frames, 6, 7)
    np.testing.assert_array_equal(same, frames)
    assert not np.shares_memory(same, frames)


def test_a_smaller_frame_is_the_mean_of_its_cells():
    frames = np.random.RandomState(0).randint(0, 256, (2, 8, 12, 3)).astype(np.uint8)
    cells = frames.reshape(2, 4, 2, 6, 2, 3).astype(np.float64).mean(axis=(2, 4))
    assert np.abs(resize_with_pad(frames, 4, 6) - cells).max() <= 0.5


def test_a_larger_frame_repeats_its_pixels():
    frames = np.random.RandomState(0).randint(0, 256, (1, 3, 4, 3)).astype(np.uint8)
    np.testing.assert_array_equal(resize_with_pad(frames, 6, 8), frames.repeat(2, axis=1).repeat(2, axis=2))


@pytest.mark.parametrize("size", [(7, 5), (64, 64), (5, 31), (1, 1)])
def test_one_colour_stays_one_colour(size):
    frames = np.full((1, *size, 3), (10, 128, 255), np.uint8)
    scaled = resize_with_pad(frames, 16, 16)
    inside = scaled[scaled.any(axis=3)]
    assert len(inside) > 0
    assert (inside == (10, 128, 255)).all()


def test_what_is_left_over_is_black_and_even():
    scaled = resize_with_pad(np.full((1, 480, 640, 3), 200, np.uint8), 64, 64)
    assert (scaled[0, 8:56] == 200).all()
    assert not scaled[0, :8].any()
    assert not scaled[0, 56:].any()


@pytest.mark.parametrize(
    ("frames", "height", "width"),
    [
        (np.zeros((1, 4, 4, 3), np.float32), 2, 2),
        (np.zeros((4, 4, 3), np.uint8), 2, 2),
        (np.zeros((1, 4, 4, 4), np.uint8), 2, 2),
        (np.zeros((1, 0, 4, 3), np.uint8), 2, 2),
        (np.zeros((1, 4, 4, 3), np.uint8), 0, 2),
    ],
)
def test_what_is_no_frames_is_refused(frames, height, width):
    with pytest.raises(InvalidRequest):
        resize_with_pad(frames, height, width)
