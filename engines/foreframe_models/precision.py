"""What is stored in half precision and computed in single: weights are rounded once, then everything runs on them."""

from torch import nn


def round_to_half(model: nn.Module) -> None:
    """Round every weight to the nearest float16, in place, keeping float32 storage."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half().float())
