"""Arrays on their way to another process: each once in a message, and those that last once in a process.

What lasts is known by identity: whoever hands it in never writes to it again.
"""

import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import ArrayLike

from foreframe_server.processes.frames import CorruptFrame
from foreframe_server.processes.messages import DType, Known, Sent
from foreframe_server.processes.shared_memory import require_portable


class SentArrays:
    """Which arrays one process knows, and by what number; it forgets those that are gone here."""

    def __init__(self) -> None:
        self._numbers: dict[int, tuple[int, weakref.ref[np.ndarray]]] = {}
        self._gone: deque[int] = deque()
        self._next = 0

    def __len__(self) -> int:
        return len(self._numbers)

    def find(self, array: np.ndarray) -> int | None:
        """Return an array's number; None when the process does not know it."""
        found = self._numbers.get(id(array))
        return None if found is None else found[0]

    def new_number(self) -> int:
        """Return a number that no array had."""
        self._next += 1
        return self._next

    def add(self, array: np.ndarray, number: int) -> None:
        """Remember an array that the process knows from now on, as long as it lives here."""
        key = id(array)

        def forget(_: "weakref.ref[np.ndarray]") -> None:
            # Called before the address can be given to another array.
            del self._numbers[key]
            self._gone.append(number)

        self._numbers[key] = number, weakref.ref(array, forget)

    def take_gone(self) -> tuple[int, ...]:
        """Take the numbers of arrays that are gone."""
        return tuple(self._gone.popleft() for _ in range(len(self._gone)))


@dataclass(slots=True, eq=False)
class Parcel:
    """The arrays of one message as they are collected. `known`: what lasts on the other side, where anything does."""

    known: SentArrays | None = None
    entries: list[Sent | Known] = field(default_factory=list)
    arrays: list[np.ndarray] = field(default_factory=list)
    """What has to be sent."""
    _indices: dict[int, int] = field(default_factory=dict)
    _held: list[ArrayLike] = field(default_factory=list)
    _new: list[tuple[np.ndarray, int]] = field(default_factory=list)

    def put(self, value: ArrayLike) -> int:
        """Add what serves as an array, and return where it stands. Raises ModelFault for one that is no numbers."""
        return self._place(value, None)

    def keep(self, array: np.ndarray) -> int:
        """Add an array that lasts, by its number where the other side knows it. Raises as `put`."""
        if self.known is None or not isinstance(array, np.ndarray):
            return self.put(array)
        number = self.known.find(array)
        return self._place(array, self.known.new_number()) if number is None else self._refer(array, number)

    def confirm(self) -> None:
        """Remember that the message was sent."""
        if self.known is not None:
            for array, number in self._new:
                self.known.add(array, number)

    def _place(self, value: ArrayLike, number: int | None) -> int:
        if id(value) in self._indices:
            return self._indices[id(value)]
        array = np.asarray(value, order="C")
        require_portable(array)
        native = array.astype(array.dtype.newbyteorder("<"), copy=False)
        self.arrays.append(native)
        if number is not None and isinstance(value, np.ndarray):
            self._new.append((value, number))
        return self._list(value, Sent(dtype=cast("DType", array.dtype.name), shape=array.shape, number=number))

    def _refer(self, array: np.ndarray, number: int) -> int:
        found = self._indices.get(id(array))
        return self._list(array, Known(number=number)) if found is None else found

    def _list(self, value: ArrayLike, entry: Sent | Known) -> int:
        self._held.append(value)  # its identity is its key
        self._indices[id(value)] = len(self.entries)
        self.entries.append(entry)
        return len(self.entries) - 1


class ReceivedArrays:
    """The arrays that were sent to be remembered, by number."""

    def __init__(self) -> None:
        self._arrays: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._arrays)

    def forget(self, numbers: Sequence[int]) -> None:
        """Let go of arrays."""
        for number in numbers:
            self._arrays.pop(number, None)

    def bring_together(self, entries: Sequence[Sent | Known], sent: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return all arrays of a message, and remember those with a number. Raises CorruptFrame."""
        fresh = iter(sent)
        arrays = [next(fresh) if isinstance(entry, Sent) else self._find(entry) for entry in entries]
        for entry, array in zip(entries, arrays, strict=True):
            if isinstance(entry, Sent) and entry.number is not None:
                self._arrays[entry.number] = array
        return arrays

    def _find(self, entry: Known) -> np.ndarray:
        if entry.number not in self._arrays:
            raise CorruptFrame("a frame means an array that was never sent")
        return self._arrays[entry.number]
