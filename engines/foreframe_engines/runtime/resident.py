"""Batches that stay on the device where a graph put them, and their rows. Knows no runtime and no graph.

A row serves as an array: who reads its values gets a copy on the host, made once for its whole batch.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from foreframe_engines.runtime.session import Session


@dataclass(slots=True)
class Traffic:
    """How many bytes went to the device, came back from it, and were copied on it to bring rows together."""

    uploaded_bytes: int = 0
    downloaded_bytes: int = 0
    gathered_bytes: int = 0


class DeviceMemory(Protocol):
    """What a runtime does with its device's memory; values are the runtime's own."""

    name: str
    """Memories of one name can be read by each other's sessions."""
    traffic: Traffic

    def view(self, value: Any, offset: int, shape: tuple[int, ...]) -> Any:  # noqa: ANN401 - the runtime's own
        """Return a part of a value, from an element on, without a copy."""
        ...

    def gather(self, rows: "Sequence[Row]", size: int) -> Any:  # noqa: ANN401
        """Copy rows, wherever they are, into one value of `size` rows, zeros behind them."""
        ...

    def download(self, value: Any) -> np.ndarray:  # noqa: ANN401
        """Copy a value to the host."""
        ...

    def is_finite(self, value: Any) -> bool | None:  # noqa: ANN401
        """Tell whether a value holds numbers alone; None where only the host can."""
        ...


class DeviceBatch:
    """What a graph gave, where it gave it. `value` must never be written to again."""

    __slots__ = ("_host", "dtype", "memory", "shape", "value")

    def __init__(self, value: Any, shape: tuple[int, ...], dtype: np.dtype[Any], memory: DeviceMemory) -> None:  # noqa: ANN401
        self.value, self.shape, self.dtype, self.memory = value, shape, dtype, memory
        self._host: np.ndarray | None = None

    def rows(self, count: int) -> "list[DeviceRow]":
        """Return the first rows; what is behind them filled the forward up."""
        shape = self.shape[1:]
        return [DeviceRow(self, place * math.prod(shape), shape) for place in range(count)]

    def to_host(self) -> np.ndarray:
        """Return the values on the host, copied the first time."""
        if self._host is None:
            self._host = self.memory.download(self.value)
            self._host.flags.writeable = False  # every row reads from it
        return self._host


class DeviceRow:
    """A part of a batch on a device, from element `offset` on. A number as index gives a part of it on the device."""

    __slots__ = ("batch", "offset", "shape")

    def __init__(self, batch: DeviceBatch, offset: int, shape: tuple[int, ...]) -> None:
        self.batch, self.offset, self.shape = batch, offset, shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return self.batch.dtype

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements there are."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How much memory of the device the elements take."""
        return self.size * self.dtype.itemsize

    @property
    def value(self) -> Any:  # noqa: ANN401 - the runtime's own
        """The part as the runtime's own value, not copied."""
        return self.batch.memory.view(self.batch.value, self.offset, self.shape)

    def is_finite(self) -> bool:
        """Tell whether all elements are numbers, on the device where the runtime can."""
        told = self.batch.memory.is_finite(self.value)
        return bool(np.isfinite(np.asarray(self)).all()) if told is None else told

    def tobytes(self) -> bytes:
        """Return the elements' bytes."""
        return np.asarray(self).tobytes()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> "DeviceRow | np.ndarray":  # noqa: ANN401 - as numpy takes it
        if index is None:
            return DeviceRow(self.batch, self.offset, (1, *self.shape))
        if not isinstance(index, int):
            return np.asarray(self)[index]
        place, part = range(len(self))[index], self.shape[1:]
        return DeviceRow(self.batch, self.offset + place * math.prod(part), part)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:  # noqa: ANN401, FBT001 - as numpy calls it
        own = self.batch.to_host().reshape(-1)[self.offset : self.offset + self.size].reshape(self.shape)
        return np.array(own, dtype, copy=copy)


Row: TypeAlias = np.ndarray | DeviceRow


@runtime_checkable
class ResidentSession(Session, Protocol):
    """A session that can leave what it gives on its device, and take it from there."""

    def run_resident(
        self, inputs: Mapping[str, Sequence[Row]], size: int, lasting: Collection[str] = ()
    ) -> dict[str, DeviceBatch]:
        """Run the graph once on `size` rows: those given of every input, then rows that do not matter.

        Rows that follow each other in one batch are read where they are, others are brought together first.
        lasting: inputs whose arrays nobody ever changes; they stay on the device for the next run with the same ones.
        Raises ModelFault when it fails.
        """
        ...


class RowInputs:
    """Makes the inputs of forwards from rows, in one device's memory."""

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._kept: dict[tuple[str, int], _Kept] = {}

    def bring(self, name: str, rows: Sequence[Row], size: int, *, is_lasting: bool) -> Any:  # noqa: ANN401 - the memory's own
        """Return `size` rows as one value, copied only where they do not lie together already."""
        start = self._find_run(rows, size)
        if start is not None:
            return self._memory.view(start.batch.value, start.offset, (size, *start.shape))
        if not is_lasting:
            return self._memory.gather(rows, size)
        identity = tuple(_identity(row) for row in rows)
        kept = self._kept.get((name, size))
        if kept is None or kept.identity != identity:
            kept = _Kept(identity, tuple(rows), self._memory.gather(rows, size))
            self._kept[name, size] = kept
        return kept.value

    def _find_run(self, rows: Sequence[Row], size: int) -> DeviceRow | None:
        """Return the first row where the others follow it, and `size` rows from there on are in its batch."""
        first = rows[0]
        if not isinstance(first, DeviceRow) or first.batch.memory.name != self._memory.name:
            return None
        if first.offset + size * first.size > math.prod(first.batch.shape):
            return None
        is_run = all(
            isinstance(row, DeviceRow)
            and row.batch is first.batch
            and row.shape == first.shape
            and row.offset == first.offset + place * first.size
            for place, row in enumerate(rows)
        )
        return first if is_run else None


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """What an input was last; the rows are held, so that no other array can get their addresses."""

    identity: tuple[object, ...]
    rows: tuple[Row, ...]
    value: Any


def _identity(row: Row) -> object:
    """Say where a row lies: equal for views of one array, which numpy makes anew each time."""
    if isinstance(row, DeviceRow):
        return id(row.batch), row.offset, row.shape
    return row.__array_interface__["data"][0], row.shape, row.strides, row.dtype.str


def fill(target: np.ndarray, rows: Sequence[Row]) -> None:
    """Write rows one after the other, then zeros."""
    for place, row in enumerate(rows):
        target[place] = np.asarray(row)
    target[len(rows) :] = 0
