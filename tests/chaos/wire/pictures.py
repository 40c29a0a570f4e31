"""Twenty pictures that are no frame of a camera: bombs, odd kinds and torn files. Nothing here decodes one."""

import base64
import io
import struct
import zlib
from collections.abc import Iterator
from functools import cache

import numpy as np
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB, _GREY, _PALETTE, _RGBA = 2, 0, 3, 6
_BLOCK = 2**20


def chunk(kind: bytes, data: bytes, *, length: int | None = None, is_torn: bool = False) -> bytes:
    """Write a chunk of PNG. length: another than it has; is_torn: with a wrong checksum."""
    size = len(data) if length is None else length
    return struct.pack(">I", size) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ is_torn)


@cache
def zeros(count: int) -> bytes:
    """Deflate so many zeros without ever holding them."""
    packer = zlib.compressobj(9)
    pieces = [packer.compress(bytes(min(_BLOCK, count - start))) for start in range(0, count, _BLOCK)]
    return b"".join([*pieces, packer.flush()])


def png(
    width: int, height: int, *, kind: int = _RGB, depth: int = 8, extra: bytes = b"", data: bytes | None = None
) -> bytes:
    """Write a black PNG of any size. extra: chunks before its data; data: deflated rows in place of the right ones."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    channels = {_RGB: 3, _GREY: 1, _PALETTE: 1, _RGBA: 4}[kind]
    rows = zeros(height * (1 + (width * channels * depth + 7) // 8)) if data is None else data
    return _SIGNATURE + chunk(b"IHDR", header) + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _picture(kind: str, mode: str = "RGB", size: tuple[int, int] = (8, 8), **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def _animated() -> bytes:
    control = struct.pack(">IIIIIHHBB", 0, 8, 8, 0, 0, 1, 10, 0, 0)
    second = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 1, 8, 8, 0, 0, 1, 10, 0, 0))
    frames = chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", control)
    whole = png(8, 8, extra=frames)
    return whole[:-12] + second + chunk(b"fdAT", struct.pack(">I", 2) + zeros(200)) + whole[-12:]


def _claiming_jpeg() -> bytes:
    data = bytearray(_picture("JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", 65_500, 65_500)
    return bytes(data)


def crafted() -> Iterator[tuple[str, str, bytes]]:
    """Make each picture: its name, the encoding that a request says, its bytes."""
    good = png(8, 8)
    yield "13,000 squared", "png", png(13_000, 13_000)
    yield "13,000 squared, one bit", "png", png(13_000, 13_000, kind=_GREY, depth=1)
    yield "9,000 squared", "png", png(9_000, 9_000)
    yield "65,535 squared and no data", "png", png(65_535, 65_535, data=zeros(100))
    yield "2**31 - 1 squared", "png", png(2**31 - 1, 2**31 - 1, data=zeros(100))
    yield "no pixel", "png", png(0, 0, data=zeros(1))
    yield "one pixel", "png", png(1, 1)
    yield "a column too many", "png", png(9, 8)
    yield "16 bits", "png", png(8, 8, depth=16)
    yield "grey", "png", png(8, 8, kind=_GREY)
    yield "with alpha", "png", png(8, 8, kind=_RGBA)
    yield "a palette that is missing", "png", png(8, 8, kind=_PALETTE)
    yield "animated", "png", _animated()
    yield "torn", "png", good[: len(good) // 2]
    yield "a wrong checksum", "png", good.replace(good[29:33], b"\0\0\0\0", 1)
    yield "a text bomb", "png", png(9, 9, extra=chunk(b"zTXt", b"a\0\0" + zeros(2**28)))
    yield "a gif that says png", "png", _picture("GIF", "P")
    yield "cmyk", "jpeg", _picture("JPEG", "CMYK")
    yield "65,500 squared", "jpeg", _claiming_jpeg()
    yield "torn jpeg", "jpeg", _picture("JPEG")[:300]
    yield "a progressive jpeg of another size", "jpeg", _picture("JPEG", size=(4_000, 4_000), progressive=True)


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
