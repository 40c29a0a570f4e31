"""Fits frames of a robot's camera to a model's size without distortion. Knows no model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Tuple

import numpy as np

from foreframe_client._errors import InvalidRequest

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8


def resize_with_pad(frames: UInt8[np.ndarray, "t h w 3"], height: int, width: int) -> UInt8[np.ndarray, "t y x 3"]:
    """Scale frames (RGB 0..255) by area averaging, keep their aspect, and pad with black to `height` x `width`.

    Raises InvalidRequest when frames are not uint8 `t h w 3` or a size is below 1.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise InvalidRequest(f"frames must be uint8 with axes t h w 3, not {frames.dtype} {frames.shape}")
    if height < 1 or width < 1:
        raise InvalidRequest(f"height and width must be at least 1, not {height} x {width}")
    if frames.shape[1:3] == (height, width):
        return frames.copy()
    inner_height, inner_width = _inner_size(frames.shape[1:3], height, width)
    rows, columns = _overlaps(frames.shape[1], inner_height), _overlaps(frames.shape[2], inner_width)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    padded = np.zeros((len(frames), height, width, 3), np.uint8)
    for target, frame in zip(padded, frames):
        target[top : top + inner_height, left : left + inner_width] = _scale(frame, rows, columns)
    return padded


def _inner_size(size: Tuple[int, ...], height: int, width: int) -> Tuple[int, int]:
    scale = min(height / size[0], width / size[1])
    return max(1, min(height, round(size[0] * scale))), max(1, min(width, round(size[1] * scale)))


def _overlaps(source: int, target: int) -> Float32[np.ndarray, "target source"]:
    """Return how much of each target cell each source cell covers; rows sum to 1."""
    edges = np.arange(target + 1)[:, None] * (source / target)
    cells = np.arange(source)[None, :]
    covered = np.minimum(edges[1:], cells + 1) - np.maximum(edges[:-1], cells)
    weights = np.clip(covered, 0.0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _scale(
    frame: UInt8[np.ndarray, "h w 3"], rows: Float32[np.ndarray, "y h"], columns: Float32[np.ndarray, "x w"]
) -> UInt8[np.ndarray, "y x 3"]:
    tall = np.tensordot(rows, frame.astype(np.float32), axes=(1, 0))
    wide = np.tensordot(tall, columns, axes=(1, 1))
    return np.rint(np.clip(wide, 0.0, 255.0)).astype(np.uint8).transpose(0, 2, 1)
