"""Frames as pictures: PNG, JPEG, WebP and plain RGB bytes. Knows sizes, not contracts.

The size is read from a picture's header and compared before any pixel is decoded, so a small file cannot ask for much
memory. Frames are uint8 RGB `h w 3`.
"""

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from foreframe_server.schemas import Encoding

Encoded = bytes | memoryview
"""What a picture or a clip is read from; not copied until a decoder needs it to be."""

JPEG_QUALITY = 95
MAX_SIDE = 8192
_MAX_JPEG_SCANS = 100
_START_OF_SCAN = b"\xff\xda"
_PNG_DEPTH_AT = 24
_ORIENTATION = 0x0112
_READERS: dict[Encoding, type[ImageFile]] = {
    Encoding.PNG: PngImageFile,
    Encoding.JPEG: JpegImageFile,
    Encoding.WEBP: WebPImageFile,
}
# What decoders raise for damaged files, as found by feeding them such; MemoryError is not among them.
_FAULTS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, AttributeError, RuntimeError,
    struct.error, zlib.error,
)  # fmt: skip


class PictureError(ValueError):
    """A picture cannot be used; the message is for a person and repeats nothing of it."""


@dataclass(frozen=True, slots=True)
class Size:
    """Pixels of a picture."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def decode_picture(data: Encoded, encoding: Encoding, size: Size, *, max_pad_pixels: int) -> UInt8[np.ndarray, "h w 3"]:
    """Decode one still 8-bit RGB picture of exactly `size`.

    With `max_pad_pixels` above 0 a picture of another size, up to so many pixels, is decoded in its own size.
    Raises PictureError.
    """
    try:
        with _open(data, encoding) as picture:
            _check_header(picture, size, max_pad_pixels)
            _check_effort(data, encoding)
            return np.asarray(picture)
    except PictureError:
        raise
    except _FAULTS:
        raise PictureError(f"is not a whole {encoding} picture") from None


def _open(data: Encoded, encoding: Encoding) -> ImageFile:
    # The reader's class is called itself: `Image.open` guesses formats and warns about sizes, and never refuses early.
    if encoding is Encoding.WEBP:
        _check_webp_canvas(data)
    return _READERS[encoding](io.BytesIO(data))


def _check_header(picture: ImageFile, size: Size, max_pad_pixels: int) -> None:
    check_size(Size(picture.height, picture.width), size, max_pad_pixels)
    if getattr(picture, "n_frames", 1) != 1:
        raise PictureError("is animated")
    if picture.mode != "RGB":
        raise PictureError("is not RGB with 8 bits a channel")
    if picture.info.get("exif") and picture.getexif().get(_ORIENTATION, 1) != 1:
        raise PictureError("is stored turned; store its pixels upright")


def check_size(found: Size, size: Size, max_pad_pixels: int) -> None:
    """Refuse what is neither of a size nor small enough to be padded to it. Raises PictureError."""
    if found == size:
        return
    if found.width * found.height > max_pad_pixels or max(found.width, found.height) > MAX_SIDE:
        raise PictureError(f"is {found} pixels, not {size}")


def _check_effort(data: Encoded, encoding: Encoding) -> None:
    """Refuse what its header says little of: colours deeper than they would be kept, and scans without end."""
    if encoding is Encoding.PNG and data[_PNG_DEPTH_AT] != 8:
        raise PictureError("is not RGB with 8 bits a channel")
    # Every scan of a progressive picture goes over all of its pixels again.
    if encoding is Encoding.JPEG and bytes(data).count(_START_OF_SCAN) > _MAX_JPEG_SCANS:
        raise PictureError(f"has more than {_MAX_JPEG_SCANS} scans")


_MAX_WEBP_PIXELS = 4096 * 4096


def _check_webp_canvas(data: Encoded) -> None:
    """Refuse a large canvas: the library allocates it while it reads the header."""
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    elif kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (1 + int.from_bytes(data[start : start + 3], "little") for start in (24, 27))
    if width * height > _MAX_WEBP_PIXELS:
        raise PictureError("is larger than any model's frames")


def pad_frame(frame: UInt8[np.ndarray, "y x 3"], size: Size) -> UInt8[np.ndarray, "h w 3"]:
    """Scale a frame to fit into `size` and centre it on black."""
    y, x = frame.shape[:2]
    scale = min(size.height / y, size.width / x)
    height, width = max(1, round(y * scale)), max(1, round(x * scale))
    scaled = Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    padded = np.zeros((size.height, size.width, 3), np.uint8)
    top, left = (size.height - height) // 2, (size.width - width) // 2
    padded[top : top + height, left : left + width] = np.asarray(scaled)
    return padded


def encode_png(frame: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encode a frame without loss."""
    return _save(Image.fromarray(frame), "PNG", compress_level=3)


def encode_jpeg(frame: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encode a frame small, with full colour resolution."""
    return _save(Image.fromarray(frame), "JPEG", quality=JPEG_QUALITY, subsampling=0)


def encode_webp(frames: UInt8[np.ndarray, "f h w 3"], fps: float) -> bytes:
    """Encode frames as one endless animation."""
    first, *rest = (Image.fromarray(frame) for frame in frames)
    return _save(
        first, "WEBP", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, quality=90, method=2
    )


def _save(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
