"""Modules run by torch, on the CPU the reference that other runtimes are compared with. Imports torch when opened."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from foreframe_engines.errors import ModelFault, RuntimeUnavailable
from foreframe_engines.runtime.resident import DeviceBatch, Row, RowInputs
from foreframe_engines.runtime.torch_memory import RecordedForwards, TorchMemory, import_torch, require_device

if TYPE_CHECKING:
    from torch import Tensor, nn

_FAILURES = (RuntimeError, ValueError, TypeError, KeyError, IndexError)


class TorchSession:
    """A torch module as one graph: inputs are passed in the order of `input_names`, outputs come as named.

    device: as torch names it, such as `cpu` or `cuda:0`; the module is moved there and keeps its weights' types.
    """

    def __init__(
        self, module: "nn.Module", input_names: Sequence[str], output_names: Sequence[str], *, device: str = "cpu"
    ) -> None:
        """Take over a module and put it in evaluation mode.

        Raises RuntimeUnavailable when torch or the device is missing.
        """
        self._torch = import_torch()
        require_device(self._torch, device)
        self._module = module.to(device).eval()
        self._memory = TorchMemory(self._torch, device)
        self._rows = RowInputs(self._memory)
        self._recorded = RecordedForwards(self._torch, device)
        self.device = self._memory.device.type
        self.input_names = tuple(input_names)
        self.output_names = tuple(output_names)

    @property
    def memory(self) -> TorchMemory:
        """Where runs read and write."""
        return self._memory

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the module once. Raises ModelFault when it fails or an input is missing."""
        try:
            arguments = [self._upload(inputs[name]) for name in self.input_names]
            outputs = self._forward(arguments)
        except _FAILURES as error:
            raise ModelFault(f"{type(self._module).__name__} failed: {error}") from error
        return {name: self._memory.download(output) for name, output in zip(self.output_names, outputs, strict=True)}

    def run_resident(
        self, inputs: Mapping[str, Sequence[Row]], size: int, lasting: Collection[str] = ()
    ) -> dict[str, DeviceBatch]:
        """Run the module once on rows; what it gives stays on the device. Raises ModelFault when it fails."""
        try:
            arguments = [
                self._rows.bring(name, inputs[name], size, is_lasting=name in lasting) for name in self.input_names
            ]
            outputs = self._forward(arguments)
        except _FAILURES as error:
            raise ModelFault(f"{type(self._module).__name__} failed: {error}") from error
        return {name: self._batch(output) for name, output in zip(self.output_names, outputs, strict=True)}

    def record(self, examples: Mapping[str, np.ndarray]) -> None:
        """Record the run of inputs of these shapes as a CUDA graph, which such runs replay from now on.

        Record the largest first, and before the session is in use. Raises RuntimeUnavailable off CUDA.
        """
        if self.device != "cuda":
            raise RuntimeUnavailable(f"CUDA graphs need a CUDA device; this session is on {self.device}")
        arguments = [self._upload(examples[name]) for name in self.input_names]
        with self._torch.inference_mode():
            self._recorded.record(self._compute, arguments)

    def close(self) -> None:
        """Let go of the module."""
        del self._module, self._rows, self._recorded

    def _forward(self, arguments: "Sequence[Tensor]") -> "Sequence[Tensor]":
        with self._torch.inference_mode():
            outputs = self._recorded.replay(arguments)
            return self._compute(arguments) if outputs is None else outputs

    def _compute(self, arguments: "Sequence[Tensor]") -> "Sequence[Tensor]":
        outputs = self._module(*arguments)
        return (outputs,) if isinstance(outputs, self._torch.Tensor) else outputs

    def _upload(self, values: np.ndarray) -> "Tensor":
        return self._memory.upload([values], 1)[0]

    def _batch(self, output: "Tensor") -> DeviceBatch:
        dtype = np.dtype(str(output.dtype).removeprefix("torch."))
        return DeviceBatch(output.contiguous(), tuple(output.shape), dtype, self._memory)
