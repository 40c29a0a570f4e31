"""ONNX Runtime's device memory: values bound by address, so that a part of one is no copy. Imports numpy only.

The library has no operation on values: rows that do not lie together meet on the host.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from foreframe_engines.runtime.resident import Row, Traffic, fill

_CUDA_PROVIDERS = ("cuda", "tensorrt", "nvtensorrtrtx")


@dataclass(frozen=True, slots=True, eq=False)
class OrtPart:
    """A part of a value from its element `offset` on; `owner` keeps the memory alive, and with it its session's."""

    owner: Any
    session: Any
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def pointer(self) -> int:
        """Address of the first element."""
        return int(self.owner.data_ptr()) + self.offset * self.dtype.itemsize

    @property
    def size(self) -> int:
        """How many elements there are."""
        return math.prod(self.shape)


class OrtMemory:
    """The memory that one session's execution provider computes in; on the CPU provider it is the host's own."""

    def __init__(self, runtime: ModuleType, session: Any, device: str) -> None:  # noqa: ANN401 - the library has no types
        self.device = "cuda" if device in _CUDA_PROVIDERS else "cpu"
        self.name = f"onnxruntime {self.device}"
        self.traffic = Traffic()
        self._runtime, self._session = runtime, session

    def view(self, value: OrtPart, offset: int, shape: tuple[int, ...]) -> OrtPart:
        """Return a part of a value, from an element on, without a copy."""
        return replace(value, offset=value.offset + offset, shape=shape)

    def gather(self, rows: Sequence[Row], size: int) -> OrtPart:
        """Stack rows on the host, zeros behind them, and copy them to the device."""
        values = np.empty((size, *rows[0].shape), rows[0].dtype)
        fill(values, rows)
        self.traffic.uploaded_bytes += values.nbytes
        return self.own(self._runtime.OrtValue.ortvalue_from_numpy(values, self.device, 0), values.dtype)

    def own(self, value: Any, dtype: np.dtype[Any]) -> OrtPart:  # noqa: ANN401
        """Return a whole value as a part."""
        return OrtPart(value, self._session, 0, tuple(value.shape()), dtype)

    def download(self, value: OrtPart) -> np.ndarray:
        """Copy the whole value that this is a part of to the host, and return the part."""
        values = value.owner.numpy()
        self.traffic.downloaded_bytes += values.nbytes
        # The library's 64-bit integers are C's long long, which numpy holds to be another type than its own int64.
        own = values.view(value.dtype).reshape(-1)
        return own[value.offset : value.offset + value.size].reshape(value.shape)

    def is_finite(self, value: OrtPart) -> None:
        """Leave it to the host."""
