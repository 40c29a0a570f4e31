"""One CUDA device: its facts, its memory and a stream. `cuda-bindings` is imported when a device is opened.

Pointers and streams are integers; copies are queued on the stream.
"""

from importlib import import_module
from typing import Any

import numpy as np

from foreframe_engines.errors import ModelFault, RuntimeUnavailable
from foreframe_engines.runtime.memory import require_memory

_PACKAGE = "cuda.bindings.runtime"


class CudaDevice:
    """The machine's GPU of one number."""

    def __init__(self, number: int = 0) -> None:
        """Open the device. Raises RuntimeUnavailable, in one line, without the package, a driver or the device."""
        self._cuda = _import_cuda()
        self._require(self._cuda.cudaSetDevice(number), f"GPU {number} cannot be used")
        attribute = self._cuda.cudaDeviceAttr
        major = self._call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMajor, number)
        minor = self._call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMinor, number)
        self.architecture = f"sm{major}{minor}"
        self.driver = _version(self._call("cudaDriverGetVersion"))
        self.runtime = _version(self._call("cudaRuntimeGetVersion"))
        self.stream = int(self._call("cudaStreamCreate"))

    def free_bytes(self) -> int:
        """Return how much of the device's memory is free."""
        free, _ = self._require(self._cuda.cudaMemGetInfo(), "the GPU's memory cannot be asked for")
        return int(free)

    def allocate(self, num_bytes: int, what: str) -> int:
        """Take memory. Raises RuntimeUnavailable with the numbers when there is too little."""
        require_memory(what, num_bytes, self.free_bytes(), "on the GPU")
        return int(self._call("cudaMalloc", max(num_bytes, 1)))

    def free(self, pointer: int) -> None:
        """Give memory back."""
        self._call("cudaFree", pointer)

    def upload(self, pointer: int, values: np.ndarray) -> None:
        """Queue a copy of a contiguous array to the device; the array must live until `synchronise`."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", pointer, values.ctypes.data, values.nbytes, kind, self.stream)

    def download(self, values: np.ndarray, pointer: int) -> None:
        """Queue a copy from the device into a contiguous array; its values are there after `synchronise`."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", values.ctypes.data, pointer, values.nbytes, kind, self.stream)

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        """Queue a copy on the device."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpyAsync", target, source, num_bytes, kind, self.stream)

    def synchronise(self) -> None:
        """Wait for everything queued on the stream. Raises ModelFault when any of it failed."""
        self._call("cudaStreamSynchronize", self.stream)

    def close(self) -> None:
        """Free the stream."""
        self._call("cudaStreamDestroy", self.stream)

    def _call(self, name: str, *arguments: object) -> Any:  # noqa: ANN401 - whatever the call gives
        status, *values = getattr(self._cuda, name)(*arguments)
        if int(status):
            raise ModelFault(f"the GPU failed: {name} says {status.name}")
        return values[0] if values else None

    def _require(self, answer: tuple[Any, ...], what: str) -> list[Any]:
        status, *values = answer
        if int(status):
            raise RuntimeUnavailable(f"{what}: CUDA says {status.name}")
        return values


def _import_cuda() -> Any:  # noqa: ANN401 - the package has no types
    try:
        return import_module(_PACKAGE)
    except (ImportError, OSError, RuntimeError) as error:
        raise RuntimeUnavailable("cuda-bindings is not installed; run `pip install cuda-bindings`") from error


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
