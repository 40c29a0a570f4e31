"""Messages as bytes: a length, a msgpack header of one schema, then the arrays. Knows no Ray and no engine.

Whatever the bytes are, reading them gives a valid message or raises CorruptFrame.
"""

import struct
from dataclasses import dataclass

import msgpack
import numpy as np
from pydantic import ValidationError

from foreframe_server.processes.channel import at
from foreframe_server.processes.frames import MAX_HEADER_BYTES, CorruptFrame
from foreframe_server.processes.messages import Sent
from foreframe_server.processes.parcels import Parcel, ReceivedArrays
from foreframe_server.processes.shared_memory import bytes_of, make_room
from foreframe_server.ray.messages import Body, Envelope

_PREAMBLE = struct.Struct("<4sI")
_MAGIC = b"FFR1"


@dataclass(frozen=True, slots=True, eq=False)
class Letter:
    """A message that was read: whom it is for, and the arrays that its body counts into."""

    model: str
    link: str
    body: Body
    arrays: list[np.ndarray]

    def array(self, index: int) -> np.ndarray:
        """Return the array that the body means. Raises CorruptFrame when there is none."""
        return at(self.arrays, index)


def write_letter(
    model: str, body: Body, parcel: Parcel | None = None, *, link: str = "", forget: tuple[int, ...] = ()
) -> bytes:
    """Write a message and its arrays. Raises CorruptFrame when its header is too long."""
    parcel = parcel or Parcel()
    envelope = Envelope(model=model, link=link, arrays=tuple(parcel.entries), forget=forget, body=body)
    header: bytes = msgpack.packb(envelope.model_dump(mode="json"), use_bin_type=True)
    if len(header) > MAX_HEADER_BYTES:
        raise CorruptFrame(f"a message's header has {len(header)} bytes, at most {MAX_HEADER_BYTES} are allowed")
    return b"".join([_PREAMBLE.pack(_MAGIC, len(header)), header, *map(bytes_of, parcel.arrays)])


def read_letter(data: object, links: dict[str, ReceivedArrays] | None = None) -> Letter:
    """Read a message. links: what is known by number; nothing is where there are none. Raises CorruptFrame."""
    if not isinstance(data, bytes):
        raise CorruptFrame("a message is not bytes")
    envelope, offset = _read_header(data)
    known = (
        ReceivedArrays() if links is None or not envelope.link else links.setdefault(envelope.link, ReceivedArrays())
    )
    known.forget(envelope.forget)
    entries = [entry for entry in envelope.arrays if isinstance(entry, Sent)]
    sent = make_room(entries, len(data) - offset)
    view = memoryview(data)
    for array in sent:
        bytes_of(array)[:] = view[offset : offset + array.nbytes]
        offset += array.nbytes
    if offset != len(data):
        raise CorruptFrame("a message is longer than its arrays")
    return Letter(envelope.model, envelope.link, envelope.body, known.bring_together(envelope.arrays, sent))


def _read_header(data: bytes) -> tuple[Envelope, int]:
    if len(data) < _PREAMBLE.size:
        raise CorruptFrame("a message is cut short")
    magic, length = _PREAMBLE.unpack_from(data)
    end = _PREAMBLE.size + length
    if magic != _MAGIC or length > MAX_HEADER_BYTES or end > len(data):
        raise CorruptFrame("a message does not begin as one")
    try:
        document = msgpack.unpackb(data[_PREAMBLE.size : end], raw=False, use_list=False, strict_map_key=True)
        return Envelope.model_validate(document), end
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        kind = "breaks its schema" if isinstance(error, ValidationError) else "is not msgpack"
        raise CorruptFrame(f"a message's header {kind}") from None
