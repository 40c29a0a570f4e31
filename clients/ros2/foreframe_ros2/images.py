"""Camera messages to uint8 RGB frames and back. Knows no ROS, no topics and no model."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as Pictures

from foreframe_ros2.errors import ConversionError
from foreframe_ros2.messages import Bytes, CompressedImage, Image

if TYPE_CHECKING:
    from jaxtyping import UInt8

_CHANNELS: Mapping[str, tuple[int, ...]] = {
    "rgb8": (0, 1, 2),
    "bgr8": (2, 1, 0),
    "rgba8": (0, 1, 2),
    "bgra8": (2, 1, 0),
}
_BYTES_A_PIXEL: Mapping[str, int] = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4}
_FORMATS = ("JPEG", "PNG")
_MAX_PIXELS = 2**24


@dataclass(frozen=True)
class ImageFields:
    """The fields of a `sensor_msgs/Image` but its header."""

    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: bytes


def frame_of_image(message: Image) -> UInt8[np.ndarray, "h w 3"]:
    """Read a frame, RGB 0..255; padding at the ends of rows and an alpha channel are left out.

    Raises ConversionError for another encoding than 8-bit colour, or when the sizes contradict each other.
    """
    order = _CHANNELS.get(message.encoding)
    if order is None:
        known = ", ".join(_CHANNELS)
        raise ConversionError(f"the image's encoding is {message.encoding!r}; known are {known}: convert it first")
    row_bytes = message.width * _BYTES_A_PIXEL[message.encoding]
    data = _bytes_of(message.data)
    if not row_bytes or not message.height or message.step < row_bytes or len(data) != message.step * message.height:
        raise ConversionError(
            f"the image says {message.height} rows of {message.step} bytes for {message.width} pixels of "
            f"{message.encoding}, and holds {len(data)} bytes"
        )
    rows = data.reshape(message.height, message.step)[:, :row_bytes]
    pixels = rows.reshape(message.height, message.width, -1)
    return np.ascontiguousarray(pixels[..., list(order)])


def frame_of_compressed(message: CompressedImage) -> UInt8[np.ndarray, "h w 3"]:
    """Read the frame of a JPEG or PNG file, RGB 0..255. Raises ConversionError, for depth images too."""
    if "compressedDepth" in message.format:
        raise ConversionError("the compressed image holds depth, not colour")
    data = _bytes_of(message.data).tobytes()
    try:
        with Pictures.open(io.BytesIO(data), formats=_FORMATS) as picture:
            if picture.mode != "RGB" or picture.width * picture.height > _MAX_PIXELS:
                raise ConversionError(
                    f"the compressed image is {picture.mode} of {picture.width}x{picture.height}; "
                    f"RGB of at most {_MAX_PIXELS} pixels is expected"
                )
            return np.array(picture)
    except (OSError, SyntaxError, ValueError, Pictures.DecompressionBombError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError("the compressed image is no whole JPEG or PNG file") from error


def image_of_frame(frame: UInt8[np.ndarray, "h w 3"]) -> ImageFields:
    """Write a frame, RGB 0..255, as a message's fields."""
    height, width, channels = frame.shape
    data = np.ascontiguousarray(frame).tobytes()
    return ImageFields(height, width, "rgb8", is_bigendian=0, step=width * channels, data=data)


def _bytes_of(data: Bytes) -> UInt8[np.ndarray, " n"]:
    """View a message's bytes as an array, without a copy where there is a buffer."""
    try:
        return np.frombuffer(memoryview(data).cast("B"), np.uint8)  # type: ignore[arg-type]
    except TypeError:
        return np.array(data, np.uint8)
