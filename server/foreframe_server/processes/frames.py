"""Frames as bytes: a magic word, a length, then a msgpack header that has one schema. Knows no engine and no socket.

Whatever the bytes are, reading them gives a valid frame or raises CorruptFrame.
"""

import struct

import msgpack
from pydantic import ValidationError

from foreframe_engines import EngineError
from foreframe_server.processes.messages import Frame

MAGIC = b"FFP1"
MAX_HEADER_BYTES = 16 * 2**20
_PREAMBLE = struct.Struct("<4sI")
PREAMBLE_BYTES = _PREAMBLE.size


class CorruptFrame(EngineError):
    """Bytes from another process are not a frame; names what is wrong, never the bytes."""


def pack(frame: Frame) -> bytes:
    """Write a frame: preamble and header. Raises CorruptFrame when the header is too long."""
    header: bytes = msgpack.packb(frame.model_dump(), use_bin_type=True)
    if len(header) > MAX_HEADER_BYTES:
        raise CorruptFrame(f"a frame's header has {len(header)} bytes, at most {MAX_HEADER_BYTES} are allowed")
    return _PREAMBLE.pack(MAGIC, len(header)) + header


def header_length(preamble: bytes) -> int:
    """Read how many bytes the header has that follows so many `PREAMBLE_BYTES`. Raises CorruptFrame."""
    if len(preamble) != PREAMBLE_BYTES:
        raise CorruptFrame("a frame's preamble is cut short")
    magic, length = _PREAMBLE.unpack(preamble)
    if magic != MAGIC or length > MAX_HEADER_BYTES:
        raise CorruptFrame("a frame does not begin as one")
    return int(length)


def unpack(header: bytes) -> Frame:
    """Read a frame's header. Raises CorruptFrame."""
    try:
        document = msgpack.unpackb(header, raw=False, use_list=False, strict_map_key=True)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise CorruptFrame("a frame's header is not msgpack") from error
    try:
        return Frame.model_validate(document)
    except ValidationError as error:
        raise CorruptFrame(f"a frame's header breaks its schema: {_first_place(error)}") from None


def _first_place(error: ValidationError) -> str:
    """Name the field and the rule; never the value."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"][:4] if isinstance(part, int) or part.isidentifier())
    return f"{place or 'frame'}: {first['type']}"
