"""A CUDA device's memory without torch: buffers that are kept for reuse, and rows copied on the device. numpy only."""

import math
import weakref
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from foreframe_engines.runtime.cuda import CudaDevice
from foreframe_engines.runtime.resident import DeviceRow, Row, Traffic, fill

_ALIGNMENT = 256
"""What TensorRT asks of addresses; every allocation has it, a part of one may not."""


class CudaBuffer:
    """Memory on the device, given back to be used again when nobody holds it any more."""

    __slots__ = ("__weakref__", "pointer")

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer


@dataclass(frozen=True, slots=True, eq=False)
class CudaPart:
    """A part of a buffer from element `offset` on; whoever holds it keeps the buffer."""

    buffer: CudaBuffer
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def pointer(self) -> int:
        """Address of the first element."""
        return self.buffer.pointer + self.offset * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """How many bytes the elements take."""
        return math.prod(self.shape) * self.dtype.itemsize


class CudaMemory:
    """One device's memory and its stream: everything here is queued on it, in order."""

    def __init__(self, device: CudaDevice) -> None:
        self.name = f"cuda {id(device):x}"  # whoever shares the device object shares its stream
        self.traffic = Traffic()
        self._gpu = device
        self._free: dict[int, list[int]] = defaultdict(list)
        self._is_closed = False

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> CudaPart:
        """Take memory. Raises RuntimeUnavailable with the numbers when there is too little."""
        num_bytes = math.prod(shape) * dtype.itemsize
        kept = self._free[num_bytes]
        buffer = CudaBuffer(kept.pop() if kept else self._gpu.allocate(num_bytes, what))
        weakref.finalize(buffer, self._take_back, buffer.pointer, num_bytes).atexit = False
        return CudaPart(buffer, 0, shape, dtype)

    def view(self, value: CudaPart, offset: int, shape: tuple[int, ...]) -> CudaPart:
        """Return a part of a value, from an element on, without a copy."""
        return replace(value, offset=value.offset + offset, shape=shape)

    def gather(self, rows: Sequence[Row], size: int) -> CudaPart:
        """Copy rows, wherever they are, into one value of `size` rows, zeros behind them."""
        target = self.empty((size, *rows[0].shape), rows[0].dtype, "rows")
        if not any(self._is_own(row) for row in rows):
            self._upload(target, rows)
            return target
        for place, row in enumerate(rows):
            part = self.view(target, place * math.prod(row.shape), (1, *row.shape))
            if isinstance(row, DeviceRow) and self._is_own(row):
                self._copy(part, row.value)
            else:
                self._upload(part, [row])
        if size > len(rows):
            rest = self.view(target, len(rows) * math.prod(rows[0].shape), (size - len(rows), *rows[0].shape))
            self._upload(rest, [])
        return target

    def aligned(self, part: CudaPart) -> CudaPart:
        """Return a part itself, or a copy where its address is not one that every library takes."""
        if (part.pointer - part.buffer.pointer) % _ALIGNMENT == 0:
            return part
        target = self.empty(part.shape, part.dtype, "rows")
        self._copy(target, part)
        return target

    def download(self, value: CudaPart) -> np.ndarray:
        """Copy a value to the host."""
        values = np.empty(value.shape, value.dtype)
        self._gpu.download(values, value.pointer)
        self._gpu.synchronise()
        self.traffic.downloaded_bytes += values.nbytes
        return values

    def is_finite(self, value: CudaPart) -> None:
        """Leave it to the host."""

    def close(self) -> None:
        """Free what is not in use; what is will be freed when it is not any more."""
        self._is_closed = True
        for pointers in self._free.values():
            while pointers:
                self._gpu.free(pointers.pop())

    def _upload(self, target: CudaPart, rows: Sequence[Row]) -> None:
        values = np.empty(target.shape, target.dtype)
        fill(values, rows)
        self._gpu.upload(target.pointer, values)
        self._gpu.synchronise()  # the array goes
        self.traffic.uploaded_bytes += values.nbytes

    def _copy(self, target: CudaPart, source: CudaPart) -> None:
        self._gpu.copy(target.pointer, source.pointer, source.nbytes)
        self.traffic.gathered_bytes += source.nbytes

    def _is_own(self, row: Row) -> bool:
        return isinstance(row, DeviceRow) and row.batch.memory.name == self.name

    def _take_back(self, pointer: int, num_bytes: int) -> None:
        if self._is_closed:
            self._gpu.free(pointer)
        else:
            self._free[num_bytes].append(pointer)
