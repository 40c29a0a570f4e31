"""Frames of pictures and videos on disk, exact in number and place. Knows no data set."""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from foreframe_engines.errors import DatasetError

_NEAR = 0.25
"""How far from its place, in frames, a frame may be shown."""

_PICTURES = ("PNG", "JPEG", "WEBP")


def decode_still(data: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decode a PNG, JPEG or WebP picture of 8-bit RGB. Raises DatasetError."""
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415 - the package imports numpy only

    try:
        with warnings.catch_warnings(action="error"), Image.open(io.BytesIO(data), formats=_PICTURES) as picture:
            if picture.mode != "RGB":
                raise DatasetError(f"{name} is not RGB with 8 bits a channel")
            return np.asarray(picture)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Warning) as error:
        raise DatasetError(f"{name} is not a whole PNG, JPEG or WebP picture") from error


def read_video(path: Path) -> UInt8[np.ndarray, "t h w 3"]:
    """Decode every frame of an mp4. Raises DatasetError."""
    frames = [frame for _, frame in _decode(path, 0.0)]
    if not frames:
        raise DatasetError(f"{path.name} holds no frames")
    return np.stack(frames)


def read_rate(path: Path) -> float:
    """Read the frame rate of an mp4. Raises DatasetError."""
    import av  # noqa: PLC0415 - the package imports numpy only

    try:
        with av.open(str(path), "r", format="mp4") as container:
            rate = container.streams.video[0].average_rate
    except (av.error.FFmpegError, IndexError) as error:
        raise DatasetError(f"{path.name} is not an mp4 video") from error
    if rate is None:
        raise DatasetError(f"{path.name} says no frame rate")
    return float(rate)


def read_span(path: Path, start_s: float, num_frames: int, fps: float) -> UInt8[np.ndarray, "t h w 3"]:
    """Decode `num_frames` frames of an mp4, the first of which is shown at `start_s`.

    Raises DatasetError when a frame is not where it must be, or the file is damaged.
    """
    frames: list[UInt8[np.ndarray, "h w 3"]] = []
    for shown_s, frame in _decode(path, max(0.0, start_s - 0.5 / fps)):
        place = (shown_s - start_s) * fps
        if place < -_NEAR:
            continue
        if abs(place - len(frames)) > _NEAR:
            break
        frames.append(frame)
        if len(frames) == num_frames:
            return np.stack(frames)
    missing_s = start_s + len(frames) / fps
    raise DatasetError(f"{path.name} has no frame at {missing_s:.3f} s, where frame {len(frames)} of {num_frames} is")


def _decode(path: Path, from_s: float) -> Iterator[tuple[float, UInt8[np.ndarray, "h w 3"]]]:
    """Yield frames and when they are shown, from the last key frame before a time."""
    import av  # noqa: PLC0415 - the package imports numpy only

    try:
        # The container is named: no probing, so no format that opens other files or addresses.
        with av.open(str(path), "r", format="mp4") as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if from_s > 0 and stream.time_base is not None:
                container.seek(int(from_s / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                yield frame.time or 0.0, frame.to_ndarray(format="rgb24")
    except (av.error.FFmpegError, IndexError, ValueError, AttributeError) as error:
        raise DatasetError(f"{path.name} is not a whole mp4 video") from error
