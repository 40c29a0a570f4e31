"""What the header of an mp4 file claims, before a demuxer builds tables of it. Knows boxes, not frames.

A demuxer keeps an entry a sample, and a header of a few bytes can claim billions of samples (ISO/IEC 14496-12 8.6, 8.7,
8.8); or be compressed, as QuickTime allows.
"""

import struct
from collections.abc import Iterator

import numpy as np

from foreframe_server.codec.pictures import PictureError

MAX_HEADER_BYTES = 2**20
_SIZE_AND_KIND = struct.Struct(">I4s")
_WIDE_SIZE = struct.Struct(">Q")
_MEDIA = b"mdat"
_COMPRESSED = b"cmov"
_COUNT_AT = {b"stsz": 12, b"stz2": 12, b"trun": 8, b"stts": 8, b"ctts": 8, b"elst": 8}
"""Where a box says how many entries it has, from its kind."""
_RUNS = frozenset({b"stts", b"ctts"})
"""Boxes whose entries each say how many samples they stand for, and one thing about them."""


def check_claims(data: bytes, max_samples: int) -> None:
    """Refuse a file that claims more than `max_samples` samples in all, or has a large or a compressed header.

    Raises PictureError.
    """
    stretches = list(_headers(data))
    if sum(stop - start for start, stop in stretches) > MAX_HEADER_BYTES:
        raise PictureError(f"has a header of more than {MAX_HEADER_BYTES} bytes")
    if any(data.find(_COMPRESSED, start, stop) >= 0 for start, stop in stretches):
        raise PictureError("has a compressed header")
    for kind, offset in _COUNT_AT.items():
        claimed = 0
        for stretch in stretches:
            for place in _places(data, kind, *stretch):
                claimed += _count(data, kind, place + offset, max_samples)
                if claimed > max_samples:
                    raise PictureError(f"claims more than {max_samples} frames")


def _headers(data: bytes) -> Iterator[tuple[int, int]]:
    """Give the stretches of a file that hold no media. Boxes are not entered: demuxers find tables at any depth."""
    start = 0
    while start + _SIZE_AND_KIND.size <= len(data):
        size, kind = _SIZE_AND_KIND.unpack_from(data, start)
        if size == 1 and start + 16 <= len(data):
            size = _WIDE_SIZE.unpack_from(data, start + 8)[0]
        stop = len(data) if size < _SIZE_AND_KIND.size else min(start + size, len(data))
        if kind != _MEDIA:
            yield start, stop
        start = stop


def _places(data: bytes, kind: bytes, start: int, stop: int) -> Iterator[int]:
    place = data.find(kind, start, stop)
    while place >= 0:
        yield place
        place = data.find(kind, place + 1, stop)


def _count(data: bytes, kind: bytes, offset: int, max_entries: int) -> int:
    """Return how many entries a box claims, or samples where its entries stand for many."""
    count = int.from_bytes(data[offset : offset + 4])
    if kind not in _RUNS or count > max_entries:
        return count
    num_runs = min(count, max(0, len(data) - offset - 4) // 8)
    if num_runs == 0:
        return count
    runs = np.frombuffer(data, ">u4", 2 * num_runs, offset + 4)
    return max(count, int(runs[::2].sum(dtype=np.uint64)))
