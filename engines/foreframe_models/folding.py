"""Cross-attention to a prompt that never changes, with everything that does not depend on the tokens computed before.

Equal rows of a prompt are one key with a count n, whose score gains ln n: exact, because the softmax has no mask.
An empty prompt has two distinct rows (its end and the padding), so that attention is one sigmoid a head.
Source: reference implementation of Wan 2.2, which pads the prompt with zeros to 512 rows.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn

from foreframe_models.wan import Attention, Block, WanTransformer


class ConstantReading(nn.Module):
    """One distinct row: every token reads the same."""

    read: Tensor

    def __init__(self, attention: Attention, source: Tensor) -> None:
        super().__init__()
        self.register_buffer("read", attention.to_out[0](attention.to_v(source)))

    def forward(self, x: Tensor) -> Tensor:
        """Return `b n d` for tokens `b n d`."""
        return self.read.expand(x.shape[0], x.shape[1], -1)


class GatedReading(nn.Module):
    """Two distinct rows: each head moves from the first one's reading to the second's by a sigmoid."""

    direction: Tensor
    offset: Tensor
    start: Tensor
    moves: Tensor

    def __init__(self, attention: Attention, source: Tensor, counts: Tensor) -> None:
        super().__init__()
        self.attention = attention
        keys, values = attention.read_source(source)
        scale = 1.0 / math.sqrt(keys.shape[-1])
        self.register_buffer("direction", (keys[0, 1] - keys[0, 0]) * scale)
        self.register_buffer("offset", counts[1].float().log() - counts[0].float().log())
        own = torch.eye(attention.num_heads, dtype=values.dtype, device=values.device)[..., None]
        apart = (own * (values[0, 1] - values[0, 0])).flatten(1)  # row h holds the difference of head h alone
        nothing = attention.to_out[0](torch.zeros_like(apart[:1]))
        self.register_buffer("start", attention.to_out[0](values[0, :1].flatten(1)))
        self.register_buffer("moves", attention.to_out[0](apart) - nothing)

    def forward(self, x: Tensor) -> Tensor:
        """Return `b n d` for tokens `b n d`."""
        query = self.attention.read_queries(x)
        gate = ((query * self.direction).sum(-1) + self.offset).sigmoid()
        return self.start + gate.to(x.dtype) @ self.moves


class DistinctReading(nn.Module):
    """More distinct rows: attention to each of them once, its score raised by the logarithm of its count."""

    keys: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(self, attention: Attention, source: Tensor, counts: Tensor) -> None:
        super().__init__()
        self.attention = attention
        keys, values = attention.read_source(source)
        self.register_buffer("keys", keys)
        self.register_buffer("values", values)
        is_even = bool((counts == counts[0]).all())  # what every score gains, no softmax sees
        self.register_buffer("bias", None if is_even else counts.float().log().to(values.dtype)[None])

    def forward(self, x: Tensor) -> Tensor:
        """Return `b n d` for tokens `b n d`."""
        keys, values = (part.expand(x.shape[0], -1, -1, -1) for part in (self.keys, self.values))
        return self.attention.mix(self.attention.read_queries(x), keys, values, self.bias)


class HalvedReading(nn.Module):
    """Two prompts in one batch: the first half of the rows reads one, the second half the other."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        """Return `b n d` for tokens `b n d`; b is even."""
        half = x.shape[0] // 2
        return torch.cat([self.first(x[:half]), self.second(x[half:])])


@torch.no_grad()
def fold_prompt(transformer: WanTransformer, prompt: Tensor) -> nn.ModuleList:
    """Return one reading of a prompt `1 l text_dim` for each block.

    The readings hold the weights as they are now: fold again after a merge or a change of adapters.
    """
    rows, counts = torch.unique(prompt[0], dim=0, return_counts=True)
    source = transformer.condition_embedder.embed_text(rows[None])
    attentions = [cast("Block", block).attn2 for block in transformer.blocks]
    return nn.ModuleList([_fold(attention, source, counts) for attention in attentions])


def _fold(attention: Attention, source: Tensor, counts: Tensor) -> nn.Module:
    if len(counts) == 1:
        return ConstantReading(attention, source)
    if len(counts) == 2:
        return GatedReading(attention, source, counts)
    return DistinctReading(attention, source, counts)
