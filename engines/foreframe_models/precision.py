"""What is stored in half precision and computed in single: weights are rounded once, then everything runs on them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Storage:
    """How weights are stored. whole: parts of the names of tensors that stay in single precision."""

    dtype: torch.dtype = torch.float16
    whole: tuple[str, ...] = ()

    def stored(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor as it is stored."""
        is_rounded = tensor.is_floating_point() and not any(part in name for part in self.whole)
        return tensor.to(self.dtype) if is_rounded else tensor


HALF = Storage()


def round_to_half(model: nn.Module, storage: Storage = HALF) -> None:
    """Round every weight to what is stored of it, in place, keeping its own type."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(storage.stored(name, tensor).to(tensor.dtype))
