"""A torch device: its memory, and forwards recorded as CUDA graphs. torch is imported when a session is opened."""

import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from foreframe_engines.errors import RuntimeUnavailable
from foreframe_engines.runtime.resident import DeviceRow, Row, Traffic, fill

if TYPE_CHECKING:
    from torch import Tensor

_NUM_WARM_UPS = 3

Forward = Callable[[Sequence["Tensor"]], Sequence["Tensor"]]


def import_torch() -> ModuleType:
    """Import the library. Raises RuntimeUnavailable when it is missing."""
    try:
        import torch  # noqa: PLC0415 - importing the package must not need a runtime
    except ImportError as error:
        raise RuntimeUnavailable("torch is not installed; run `pip install 'foreframe[models]'`") from error
    return torch


def require_device(torch: ModuleType, device: str) -> None:
    """Raise RuntimeUnavailable, in one line, when torch cannot compute on a device such as `cpu` or `cuda:0`."""
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise RuntimeUnavailable(f"torch knows no device {device!r}") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise RuntimeUnavailable(f"torch {torch.__version__} sees {found} CUDA devices here; {device!r} was asked for")


class TorchMemory:
    """One device's memory as torch has it; on CUDA what comes from the host is staged in pinned memory."""

    def __init__(self, torch: ModuleType, device: str) -> None:
        self.device = torch.device(device)
        self.name = f"torch {self.device}"
        self.traffic = Traffic()
        self._torch = torch
        self._is_pinned = self.device.type == "cuda"

    def view(self, value: "Tensor", offset: int, shape: tuple[int, ...]) -> "Tensor":
        """Return a part of a contiguous value, from an element on, without a copy."""
        flat = value.view(-1)[offset:]
        return flat[: int(np.prod(shape, dtype=int))].view(shape)

    def upload(self, rows: Sequence[np.ndarray], size: int) -> "Tensor":
        """Copy rows of the host into one value of `size` rows, zeros behind them."""
        dtype = self._torch.from_numpy(np.empty(0, rows[0].dtype)).dtype
        staged = self._torch.empty((size, *rows[0].shape), dtype=dtype, pin_memory=self._is_pinned)
        fill(staged.numpy(), rows)
        self.traffic.uploaded_bytes += staged.nbytes
        return staged.to(self.device, non_blocking=True)

    def gather(self, rows: Sequence[Row], size: int) -> "Tensor":
        """Copy rows, wherever they are, into one value of `size` rows, zeros behind them."""
        if not any(self._is_own(row) for row in rows):
            return self.upload([np.asarray(row) for row in rows], size)
        parts = [row.value if self._is_own(row) else self.upload([np.asarray(row)], 1)[0] for row in rows]  # type: ignore[union-attr]
        gathered = parts[0].new_zeros((size, *parts[0].shape))
        self._torch.stack(parts, out=gathered[: len(parts)])
        self.traffic.gathered_bytes += gathered.nbytes
        return gathered

    def download(self, value: "Tensor") -> np.ndarray:
        """Copy a value to the host."""
        self.traffic.downloaded_bytes += value.nbytes
        return value.cpu().numpy()

    def is_finite(self, value: "Tensor") -> bool:
        """Tell whether a value holds numbers alone."""
        return bool(self._torch.isfinite(value).all())

    def _is_own(self, row: Row) -> bool:
        return isinstance(row, DeviceRow) and row.batch.memory.name == self.name


class RecordedForwards:
    """Forwards recorded as CUDA graphs, by the shapes of what they take. They share one pool, and take turns in it."""

    def __init__(self, torch: ModuleType, device: str) -> None:
        self._torch, self._device = torch, device
        self._pool: object = None
        self._forwards: dict[tuple[tuple[int, ...], ...], _Recorded] = {}
        self._lock = threading.Lock()

    def record(self, forward: Forward, examples: "Sequence[Tensor]") -> None:
        """Record a forward on inputs of the examples' shapes; begin with the largest, whose memory the others reuse."""
        torch = self._torch
        inputs = [example.clone() for example in examples]
        with torch.cuda.device(self._device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_NUM_WARM_UPS):
                    forward(inputs)
            torch.cuda.current_stream().wait_stream(stream)
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                outputs = forward(inputs)
        self._forwards[_shapes(inputs)] = _Recorded(graph.replay, inputs, outputs)

    def replay(self, arguments: "Sequence[Tensor]") -> "list[Tensor] | None":
        """Run what was recorded for these shapes and return copies of what it gives; None where nothing was."""
        recorded = self._forwards.get(_shapes(arguments))
        if recorded is None:
            return None
        with self._lock, self._torch.cuda.device(self._device):
            for place, argument in zip(recorded.inputs, arguments, strict=True):
                place.copy_(argument)
            recorded.replay()
            return [output.clone() for output in recorded.outputs]


class _Recorded:
    __slots__ = ("inputs", "outputs", "replay")

    def __init__(self, replay: Callable[[], None], inputs: "Sequence[Tensor]", outputs: "Sequence[Tensor]") -> None:
        self.replay, self.inputs, self.outputs = replay, inputs, outputs


def _shapes(tensors: "Sequence[Tensor]") -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape) for tensor in tensors)
