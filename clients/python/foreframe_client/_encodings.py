"""How a robot's frames are written: as they are, as pictures, or as one clip. Knows no field of a request.

Pillow and PyAV are imported when they are needed; the extra `pictures` brings both.
"""

from __future__ import annotations

import importlib
import io
from typing import TYPE_CHECKING, Any, Callable, Dict, Literal, Mapping

import numpy as np

from foreframe_client._arrays import pack_array
from foreframe_client._errors import InvalidRequest

if TYPE_CHECKING:
    from jaxtyping import UInt8

FrameEncoding = Literal["raw", "png", "jpeg", "mp4"]
"""`raw` and `png` arrive as they are; `jpeg` and `mp4` are small and lose a little."""

_JPEG_QUALITY = 95
_CRF = "18"
_FRAMES_PER_SECOND = 10
"""A server counts frames and does not look at their times."""


def check_encoding(encoding: FrameEncoding) -> FrameEncoding:
    """Return a known encoding. Raises InvalidRequest for another, or when what writes it is not installed."""
    if encoding not in _WRITERS:
        raise InvalidRequest(f"encoding must be one of {', '.join(_WRITERS)}, not {encoding!r}")
    if encoding != "raw":
        _module("av" if encoding == "mp4" else "PIL.Image")
    return encoding


def write_frames(frames: UInt8[np.ndarray, "t h w 3"], encoding: FrameEncoding = "raw") -> Dict[str, object]:
    """Write a sequence of pictures, or with `raw` one. Raises InvalidRequest as `check_encoding` and for odd clips."""
    height, width = frames.shape[-3:-1]
    return {**_WRITERS[encoding](frames), "width": width, "height": height}


def _raw(frames: UInt8[np.ndarray, "... h w 3"]) -> Dict[str, object]:
    return {"encoding": "raw_rgb8", "data": pack_array(frames)}


def _png(frames: UInt8[np.ndarray, "t h w 3"]) -> Dict[str, object]:
    return {"encoding": "png", "frames": [_picture(frame, "PNG", compress_level=1) for frame in frames]}


def _jpeg(frames: UInt8[np.ndarray, "t h w 3"]) -> Dict[str, object]:
    options = {"quality": _JPEG_QUALITY, "subsampling": 0}
    return {"encoding": "jpeg", "frames": [_picture(frame, "JPEG", **options) for frame in frames]}


def _picture(frame: UInt8[np.ndarray, "h w 3"], kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    _module("PIL.Image").fromarray(frame).save(buffer, kind, **options)
    return buffer.getvalue()


def _mp4(frames: UInt8[np.ndarray, "t h w 3"]) -> Dict[str, object]:
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise InvalidRequest(f"frames of {width}x{height} pixels are no mp4 clip: its sides are even")
    av, buffer = _module("av"), io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=_FRAMES_PER_SECOND)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": _CRF, "preset": "veryfast", "bf": "0"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return {"encoding": "mp4", "data": buffer.getvalue()}


_WRITERS: Mapping[str, Callable[[Any], Dict[str, object]]] = {"raw": _raw, "png": _png, "jpeg": _jpeg, "mp4": _mp4}


def _module(name: str) -> Any:  # noqa: ANN401 - modules that may not be there have no types
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InvalidRequest("this encoding needs the extra: pip install 'foreframe-client[pictures]'") from error
