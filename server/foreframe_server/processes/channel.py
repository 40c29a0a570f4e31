"""One side of the link between a server and its engine's process: frames over a private socket, arrays beside it.

It knows no engine. Both sides speak in turn, so that shared memory is never written to while it is read.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from foreframe_server.processes.frames import PREAMBLE_BYTES, CorruptFrame, header_length, pack, unpack
from foreframe_server.processes.messages import Body, Frame, Sent
from foreframe_server.processes.parcels import Parcel, ReceivedArrays, SentArrays
from foreframe_server.processes.shared_memory import MAX_BYTES, SharedMemory, bytes_of, make_room

_CHUNK_BYTES = 2**16


class ChannelClosed(Exception):
    """The other side is gone."""


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """What came: the number of its call, its body, and the arrays that the body counts into."""

    number: int
    body: Body
    arrays: list[np.ndarray]


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """What a side holds: its end of the socket, and the memory that it writes and that it reads."""

    socket: socket.socket
    outgoing: SharedMemory
    incoming: SharedMemory

    def close(self) -> None:
        """Close all three."""
        self.socket.close()
        self.outgoing.close()
        self.incoming.close()


class Channel:
    """Sends and receives messages.

    wait: called before every read of the socket; returns when there is something to read, or raises.
    """

    def __init__(self, link: Link, wait: Callable[[], None] = lambda: None) -> None:
        self.sent = SentArrays()
        self.received = ReceivedArrays()
        self._link = link
        self._wait = wait
        self._bytes = bytearray()

    def send(self, number: int, body: Body, parcel: Parcel | None = None) -> None:
        """Send a message and its arrays. Raises ChannelClosed, TimeoutError, or CorruptFrame when it is too large."""
        parcel = parcel or Parcel()
        is_inline = not self._link.outgoing.write(parcel.arrays)
        frame = Frame(
            number=number,
            is_inline=is_inline,
            arrays=tuple(parcel.entries),
            forget=self.sent.take_gone(),
            body=body,
        )
        try:
            self._link.socket.sendall(pack(frame))
            for array in parcel.arrays if is_inline else ():
                self._link.socket.sendall(bytes_of(array))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosed from error
        parcel.confirm()

    def receive(self) -> Message:
        """Wait for the next message. Raises ChannelClosed, CorruptFrame, and what waiting raises."""
        frame = unpack(self._take(header_length(self._take(PREAMBLE_BYTES))))
        self.received.forget(frame.forget)
        entries = [entry for entry in frame.arrays if isinstance(entry, Sent)]
        sent = make_room(entries, MAX_BYTES if frame.is_inline else self._link.incoming.num_bytes)
        if frame.is_inline:
            for array in sent:
                bytes_of(array)[:] = self._take(array.nbytes)
        else:
            self._link.incoming.read(sent)
        return Message(frame.number, frame.body, self.received.bring_together(frame.arrays, sent))

    def trim(self) -> None:
        """Give memory back after unusually large messages; both sides must be done with what they read."""
        self._link.outgoing.trim()
        self._link.incoming.trim()

    def _take(self, count: int) -> bytes:
        while len(self._bytes) < count:
            self._wait()
            self._fill()
        taken = bytes(self._bytes[:count])
        del self._bytes[:count]
        return taken

    def _fill(self) -> None:
        try:
            chunk = self._link.socket.recv(_CHUNK_BYTES)
        except ConnectionResetError as error:
            raise ChannelClosed from error
        if not chunk:
            if self._bytes:
                raise CorruptFrame("a frame is cut short")
            raise ChannelClosed
        self._bytes += chunk


def at(arrays: list[np.ndarray], index: int) -> np.ndarray:
    """Return the array that a body means. Raises CorruptFrame when there is none."""
    if index >= len(arrays):
        raise CorruptFrame("a frame counts beyond its arrays")
    return arrays[index]
