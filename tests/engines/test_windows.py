import numpy as np
import pytest

from foreframe_engines import ShapeMismatch, TokenSpec
from foreframe_engines.testing import toy_tokens
from foreframe_engines.windows import grid_lengths, split_frames, split_grids

COSMOS = toy_tokens(window_frames=17, window_grids=3)


def test_frames_and_grids_are_cut_in_order() -> None:
    frames = np.arange(34 * 2 * 2 * 3).astype(np.uint8).reshape(34, 2, 2, 3)
    windows = split_frames(frames, COSMOS)
    assert windows.shape == (2, 17, 2, 2, 3)
    np.testing.assert_array_equal(np.concatenate(windows), frames)
    ids = np.arange(24).reshape(6, 4)
    np.testing.assert_array_equal(split_grids(ids, COSMOS), ids.reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("tokens", "num_frames", "lengths"),
    [
        (COSMOS, 34, [1, 8, 8, 1, 8, 8]),
        (toy_tokens(), 3, [1, 1, 1]),
        (toy_tokens(window_frames=4), 8, [4, 4]),
    ],
)
def test_every_frame_has_one_grid(tokens: TokenSpec, num_frames: int, lengths: list[int]) -> None:
    assert grid_lengths(num_frames, tokens).tolist() == lengths


@pytest.mark.parametrize("count", [0, 1, 16, 18])
def test_a_part_of_a_window_of_frames_is_refused(count: int) -> None:
    with pytest.raises(ShapeMismatch, match=f"{count} frames are not whole windows of 17"):
        split_frames(np.zeros((count, 2, 2, 3), np.uint8), COSMOS)
    with pytest.raises(ShapeMismatch, match=f"{count} frames are not whole windows of 17"):
        grid_lengths(count, COSMOS)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_part_of_a_window_of_grids_is_refused(count: int) -> None:
    with pytest.raises(ShapeMismatch, match=f"{count} grids are not whole windows of 3"):
        split_grids(np.zeros((count, 4), np.int64), COSMOS)
