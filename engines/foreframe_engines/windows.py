"""Frames and grids cut into a tokenizer's windows. Knows no model; a part of a window raises ShapeMismatch."""

import numpy as np
from jaxtyping import Int64, UInt8

from foreframe_engines.errors import ShapeMismatch
from foreframe_engines.types import TokenSpec


def split_frames(frames: UInt8[np.ndarray, "t h w 3"], tokens: TokenSpec) -> UInt8[np.ndarray, "b n h w 3"]:
    """Cut frames into windows of n."""
    num_windows = _num_windows(len(frames), tokens.window_frames, "frames")
    return frames.reshape(num_windows, tokens.window_frames, *frames.shape[1:])


def split_grids(ids: Int64[np.ndarray, "g s"], tokens: TokenSpec) -> Int64[np.ndarray, "b n s"]:
    """Cut grids of ids into windows of n."""
    num_windows = _num_windows(len(ids), tokens.window_grids, "grids")
    return ids.reshape(num_windows, tokens.window_grids, *ids.shape[1:])


def grid_lengths(num_frames: int, tokens: TokenSpec) -> Int64[np.ndarray, " g"]:
    """Tell how many frames each grid stands for."""
    return np.tile(tokens.frames_per_grid, _num_windows(num_frames, tokens.window_frames, "frames"))


def _num_windows(count: int, window: int, what: str) -> int:
    if not count or count % window:
        raise ShapeMismatch(f"{count} {what} are not whole windows of {window}")
    return count // window
