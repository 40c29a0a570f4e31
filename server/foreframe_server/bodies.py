"""Memory for bodies, used again and again: a system hands out fresh memory slower than a network fills it.

It knows bytes only. One event loop owns it.
"""

import weakref

import numpy as np

_SMALLEST_BYTES = 2**16
_MAX_DIGITS = 15


class Bodies:
    """Memory that bodies are put together in, at most `max_kept_bytes` of it kept for the next ones.

    A body's memory is given back when nothing looks at it any more, so what was read from it may be held for long.
    """

    def __init__(self, max_kept_bytes: int = 64 * 2**20) -> None:
        self._max_kept_bytes = max_kept_bytes
        self._free: list[bytearray] = []

    @property
    def num_kept_bytes(self) -> int:
        """How much memory waits for bodies."""
        return sum(len(memory) for memory in self._free)

    def open(self, content_length: str | None) -> "Body":
        """Begin a body; its header says how much memory to begin with, and nothing else."""
        is_said = content_length is not None and content_length.isdecimal() and len(content_length) <= _MAX_DIGITS
        return Body(self, int(content_length or 0) if is_said else 0)

    def take(self, num_bytes: int) -> np.ndarray:
        """Return at least so much memory, uint8 and as it was left."""
        size = max(_SMALLEST_BYTES, 1 << (num_bytes - 1).bit_length())
        fitting = [memory for memory in self._free if len(memory) == size]
        memory = fitting[-1] if fitting else bytearray(size)
        self._free = [kept for kept in self._free if kept is not memory]
        handed = np.frombuffer(memory, np.uint8)
        weakref.finalize(handed, self._give_back, memory).atexit = False
        return handed

    def _give_back(self, memory: bytearray) -> None:
        if self.num_kept_bytes + len(memory) <= self._max_kept_bytes:
            self._free.append(memory)


class Body:
    """One body while it arrives."""

    def __init__(self, bodies: Bodies, expected_bytes: int) -> None:
        self._bodies = bodies
        self._memory = bodies.take(expected_bytes)
        self._num_bytes = 0

    def add(self, piece: bytes) -> None:
        """Add the next piece."""
        stop = self._num_bytes + len(piece)
        if stop > len(self._memory):
            grown = self._bodies.take(stop)
            grown[: self._num_bytes] = self._memory[: self._num_bytes]
            self._memory = grown
        self._memory[self._num_bytes : stop] = np.frombuffer(piece, np.uint8)
        self._num_bytes = stop

    def close(self) -> memoryview:
        """Return the whole body, read-only."""
        return self._memory.data[: self._num_bytes].toreadonly()
