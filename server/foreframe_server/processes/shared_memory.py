"""Memory without a name that two processes share, which vanishes with them, and arrays in it.

Bytes are copied in and out by the kernel, so that neither side can change or cut what the other has read.
"""

import math
import os
from collections.abc import Sequence
from typing import Self

import numpy as np

from foreframe_engines import ModelFault, RuntimeUnavailable
from foreframe_server.processes.frames import CorruptFrame
from foreframe_server.processes.messages import Sent

_MAX_IDLE_BYTES = 64 * 2**20
MAX_BYTES = 16 * 2**30
"""Of the arrays of one message."""


class SharedMemory:
    """Anonymous memory behind a file descriptor: one side writes a message's arrays, the other then reads them."""

    def __init__(self, fd: int) -> None:
        """Take over a descriptor."""
        self.fd = fd

    @classmethod
    def create(cls) -> Self:
        """Make some that is empty. Raises RuntimeUnavailable where the system has none."""
        if not hasattr(os, "memfd_create"):
            raise RuntimeUnavailable("engines in processes of their own need Linux")
        return cls(os.memfd_create("foreframe"))

    def write(self, arrays: Sequence[np.ndarray]) -> bool:
        """Lay arrays one behind the other, over what was there; False where the system grants no room."""
        offset = 0
        try:
            for array in arrays:
                view = bytes_of(array)
                while view:
                    num_bytes = os.pwrite(self.fd, view, offset)
                    view, offset = view[num_bytes:], offset + num_bytes
        except OSError:  # a limit on the size of files holds for memory, too
            return False
        return True

    def read(self, arrays: Sequence[np.ndarray]) -> None:
        """Fill arrays with what lies one behind the other. Raises CorruptFrame when there are not so many bytes."""
        offset = 0
        for array in arrays:
            view = bytes_of(array)
            while view:
                num_bytes = os.preadv(self.fd, [view], offset)
                if num_bytes == 0:
                    raise CorruptFrame("the memory of a frame's arrays was cut while it was read")
                view, offset = view[num_bytes:], offset + num_bytes

    @property
    def num_bytes(self) -> int:
        """How many bytes there are to be read."""
        return os.fstat(self.fd).st_size

    def trim(self) -> None:
        """Give memory back after an unusually large message; nothing in it may be needed any longer."""
        if os.fstat(self.fd).st_size > _MAX_IDLE_BYTES:
            os.ftruncate(self.fd, 0)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


def make_room(entries: Sequence[Sent], available_bytes: int) -> list[np.ndarray]:
    """Make arrays to read into. Raises CorruptFrame when they are larger than what there is to read."""
    sizes = [math.prod(entry.shape) * np.dtype(entry.dtype).itemsize for entry in entries]
    if sum(sizes) > min(MAX_BYTES, available_bytes):
        raise CorruptFrame("a frame's arrays are larger than the memory they should lie in")
    try:
        return [np.empty(entry.shape, entry.dtype) for entry in entries]
    except (ValueError, MemoryError) as error:
        raise CorruptFrame("a frame's array does not fit into memory") from error


def require_portable(array: np.ndarray) -> None:
    """Refuse what cannot cross as plain numbers. Raises ModelFault naming the dtype."""
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise ModelFault(f"an array of {array.dtype} cannot leave its process")


def bytes_of(array: np.ndarray) -> memoryview:
    """View an array in C order as bytes."""
    return memoryview(array.reshape(-1).view(np.uint8).data)
