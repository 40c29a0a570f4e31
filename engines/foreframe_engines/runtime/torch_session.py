"""Modules run by torch: the reference that other runtimes are compared with. torch is imported when one is opened."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from foreframe_engines.errors import ModelFault, RuntimeUnavailable

if TYPE_CHECKING:
    from torch import nn


class TorchSession:
    """A torch module as one graph: inputs are passed in the order of `input_names`, outputs come as named."""

    device = "cpu"

    def __init__(self, module: "nn.Module", input_names: Sequence[str], output_names: Sequence[str]) -> None:
        """Take over a module and put it in evaluation mode. Raises RuntimeUnavailable when torch is missing."""
        try:
            import torch  # noqa: PLC0415 - importing the package must not need a runtime
        except ImportError as error:
            raise RuntimeUnavailable("torch is not installed; run `pip install 'foreframe[models]'`") from error
        self._torch = torch
        self._module = module.eval()
        self.input_names = tuple(input_names)
        self.output_names = tuple(output_names)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the module once. Raises ModelFault when it fails or an input is missing."""
        try:
            arguments = [self._torch.from_numpy(np.array(inputs[name])) for name in self.input_names]
            with self._torch.inference_mode():
                outputs = self._module(*arguments)
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
            raise ModelFault(f"{type(self._module).__name__} failed: {error}") from error
        tensors = (outputs,) if isinstance(outputs, self._torch.Tensor) else outputs
        return {name: tensor.numpy() for name, tensor in zip(self.output_names, tensors, strict=True)}

    def close(self) -> None:
        """Let go of the module."""
        del self._module
