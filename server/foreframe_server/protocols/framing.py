"""Cuts what arrives on a connection into requests, and hands on only what was checked. Pure: no socket, no clock.

A body in chunks is handed on in chunks as large as what arrived, so that many small ones cost a parser nothing.
"""

import enum

from foreframe_server.errors import PayloadTooLarge
from foreframe_server.protocols.head import END, Head, HeadLimits, check_beginning, read_head
from foreframe_server.protocols.refusals import MalformedRequest

_MAX_SIZE_LINE = 10
"""Eight digits and the line's end."""


class Phase(enum.Enum):
    """What of a request is being read."""

    HEAD = enum.auto()
    BODY = enum.auto()
    WHOLE = enum.auto()


class Framing:
    """The requests of one connection, one after the other."""

    def __init__(self, limits: HeadLimits, max_chunks: int) -> None:
        self._limits = limits
        self._max_chunks = max_chunks
        self._buffer = b""
        self.phase = Phase.HEAD
        self.head: Head | None = None
        self._left = 0
        self._num_chunks = 0
        self._is_chunk_ending = False

    @property
    def num_held_bytes(self) -> int:
        """How much has arrived and was not taken."""
        return len(self._buffer)

    def add(self, data: bytes) -> None:
        """Add what arrived."""
        self._buffer = self._buffer + data if self._buffer else data

    def discard(self) -> None:
        """Forget what was not taken."""
        self._buffer = b""

    def start_next(self) -> None:
        """Begin the next request. The one before it is whole."""
        self.phase, self.head = Phase.HEAD, None

    def take(self) -> bytes:
        """Return what a parser may read next, empty when more must arrive first.

        Raises MalformedRequest, HeadTooLarge or PayloadTooLarge.
        """
        if not self._buffer or self.phase is Phase.WHOLE:
            return b""
        if self.phase is Phase.HEAD:
            return self._take_head()
        return self._take_chunks() if self._is_chunked() else self._take_sized()

    def _take_head(self) -> bytes:
        end = self._buffer.find(END, 0, self._limits.max_bytes)
        check_beginning(self._buffer if end < 0 else self._buffer[: end + len(END)], self._limits)
        if end < 0:
            return b""
        head = read_head(self._buffer[: end + len(END)], self._limits)
        self._buffer = self._buffer[end + len(END) :]
        self.head, self._left, self._num_chunks = head, head.num_body_bytes or 0, 0
        self.phase = Phase.WHOLE if head.num_body_bytes == 0 else Phase.BODY
        return head.block

    def _is_chunked(self) -> bool:
        return self.head is not None and self.head.num_body_bytes is None

    def _take_sized(self) -> bytes:
        piece = self._buffer[: self._left]
        self._buffer = self._buffer[self._left :]
        self._left -= len(piece)
        if self._left == 0:
            self.phase = Phase.WHOLE
        return piece

    def _take_chunks(self) -> bytes:
        pieces: list[bytes] = []
        at = 0
        while self.phase is Phase.BODY:
            taken = self._take_data(at, pieces) if self._left else self._take_line(at)
            if taken == 0:
                break
            at += taken
        self._buffer = self._buffer[at:]
        data = b"".join(pieces)
        framed = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        return framed + b"0\r\n\r\n" if self.phase is Phase.WHOLE else framed

    def _take_data(self, at: int, pieces: list[bytes]) -> int:
        piece = self._buffer[at : at + self._left]
        pieces.append(piece)
        self._left -= len(piece)
        self._is_chunk_ending = self._left == 0
        return len(piece)

    def _take_line(self, at: int) -> int:
        """Take the line of a chunk's size, or the empty one after its data. Returns the bytes taken."""
        end = self._buffer.find(b"\r\n", at, at + _MAX_SIZE_LINE)
        if end < 0:
            if len(self._buffer) - at >= _MAX_SIZE_LINE:
                raise MalformedRequest("A chunk is its size in hexadecimal digits, then its bytes.")
            return 0
        line = self._buffer[at:end]
        if self._is_chunk_ending:
            self._end_chunk(line)
        else:
            self._begin_chunk(line)
        return end + 2 - at

    def _end_chunk(self, line: bytes) -> None:
        if line:
            raise MalformedRequest("A chunk has other bytes than its size says, or there are trailers.")
        self._is_chunk_ending = False
        if self._num_chunks == 0:
            self.phase = Phase.WHOLE

    def _begin_chunk(self, line: bytes) -> None:
        # int() alone would read signs, spaces and underscores.
        if not line.isalnum():
            raise MalformedRequest("A chunk's size is hexadecimal digits.")
        try:
            self._left = int(line, 16)
        except ValueError:
            raise MalformedRequest("A chunk's size is hexadecimal digits.") from None
        self._num_chunks += 1
        if self._num_chunks > self._max_chunks:
            raise PayloadTooLarge(f"A body may come in {self._max_chunks} chunks.")
        if self._left == 0:
            self._num_chunks, self._is_chunk_ending = 0, True
