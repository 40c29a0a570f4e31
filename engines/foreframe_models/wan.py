"""The Wan 2.2 video transformer with modulation per latent frame. Knows no states, no sampler, no pixels.

Parameter names are those of the public diffusers checkpoints, so that a TI2V-5B folder loads by name.
Tokens are kept as `b f s d` (latent frames, tokens a frame), so that one modulation row serves a whole frame.
Source: Wan-Video/Wan2.2; sizes of the 5B are the defaults below.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

NUM_TERMS = 6
"""Shift, scale and gate of the attention, then of the feed-forward."""


@dataclass(frozen=True, slots=True)
class WanConfig:
    """Sizes of the transformer. `patch_size` is in latent frames, rows, columns."""

    num_layers: int = 30
    num_attention_heads: int = 24
    attention_head_dim: int = 128
    ffn_dim: int = 14336
    freq_dim: int = 256
    text_dim: int = 4096
    in_channels: int = 48
    out_channels: int = 48
    patch_size: tuple[int, int, int] = (1, 2, 2)
    rope_theta: float = 10_000.0
    eps: float = 1e-6

    @property
    def width(self) -> int:
        """Width d of a token."""
        return self.num_attention_heads * self.attention_head_dim


def rotary_table(config: WanConfig, grid: tuple[int, int, int], device: torch.device | None = None) -> Tensor:
    """Return cosines and sines `2 1 tokens 1 head_dim/2` for a token grid of frames, rows, columns.

    A head's pairs are split between the three axes: two sixths for rows, two for columns, the rest for time.
    """
    spatial = 2 * (config.attention_head_dim // 6)
    dims = (config.attention_head_dim - 2 * spatial, spatial, spatial)
    angles = []
    for axis, (length, dim) in enumerate(zip(grid, dims, strict=True)):
        rates = config.rope_theta ** -(torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)
        shape = [1, 1, 1, dim // 2]
        shape[axis] = length
        positions = torch.arange(length, dtype=torch.float64, device=device)
        angles.append(torch.outer(positions, rates).view(shape).expand(*grid, dim // 2))
    flat = torch.cat(angles, dim=-1).reshape(1, math.prod(grid), 1, -1)
    return torch.stack([flat.cos(), flat.sin()]).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate neighbouring pairs of `b tokens heads head_dim` by the table's angles."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)  # type: ignore[no-untyped-call]
    cos, sin = table[0], table[1]
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)


def timestep_embedding(timestep: Tensor, dim: int) -> Tensor:
    """Return cosines then sines of a timestep (0..1000), `... dim`."""
    half = dim // 2
    rates = torch.exp(-math.log(10_000.0) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half)
    angles = timestep[..., None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Attention(nn.Module):
    """Multi-head attention whose queries and keys are RMS-normalised across all heads."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_attention_heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.norm_q = nn.RMSNorm(width, eps=config.eps)
        self.norm_k = nn.RMSNorm(width, eps=config.eps)

    def forward(self, x: Tensor, source: Tensor, rotary: Tensor | None) -> Tensor:
        """Let tokens `b n d` attend to `source`, `b l d` or `1 l d`; `rotary` is None without positions."""
        query = self.norm_q(self.to_q(x)).unflatten(-1, (self.num_heads, -1))
        key = self.norm_k(self.to_k(source)).unflatten(-1, (self.num_heads, -1))
        value = self.to_v(source).unflatten(-1, (self.num_heads, -1))
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        key, value = (part.expand(x.shape[0], -1, -1, -1) for part in (key, value))  # one prompt serves all rows
        mixed = functional.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        )
        return self.to_out[0](mixed.transpose(1, 2).flatten(2))


class GeluProjection(nn.Module):
    """A linear layer and tanh-approximate GELU; named as the checkpoints name it."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Project `... d` to `... hidden` and activate."""
        return functional.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """`net.0.proj` and `net.2`, as in the checkpoints."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GeluProjection(width, hidden), nn.Identity(), nn.Linear(hidden, width)])

    def forward(self, x: Tensor) -> Tensor:
        """Map `... d` to the same."""
        return self.net[2](self.net[0](x))


class Block(nn.Module):
    """Modulated self-attention, plain cross-attention to the prompt, modulated feed-forward."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, config.eps, elementwise_affine=False)
        self.attn1 = Attention(config)
        self.norm2 = nn.LayerNorm(width, config.eps)
        self.attn2 = Attention(config)
        self.norm3 = nn.LayerNorm(width, config.eps, elementwise_affine=False)
        self.ffn = FeedForward(width, config.ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.randn(1, NUM_TERMS, width) / width**0.5)

    def forward(self, x: Tensor, modulation: Tensor, prompt: Tensor, rotary: Tensor) -> Tensor:
        """Advance tokens `b f s d`; `modulation` is `b f 6 d`, `prompt` is `b l d` or `1 l d`."""
        terms = (modulation + self.scale_shift_table).unsqueeze(3).unbind(2)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = terms
        mixed = (self.norm1(x) * (1.0 + scale) + shift).flatten(1, 2)
        x = x + self.attn1(mixed, mixed, rotary).unflatten(1, x.shape[1:3]) * gate
        x = x + self.attn2(self.norm2(x).flatten(1, 2), prompt, None).unflatten(1, x.shape[1:3])
        return x + self.ffn(self.norm3(x) * (1.0 + ffn_scale) + ffn_shift) * ffn_gate


class LinearPair(nn.Module):
    """Two linear layers with an activation between, named as the checkpoints name them."""

    def __init__(self, inputs: int, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, width)
        self.act = activation
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `... inputs` to `... d`."""
        return self.linear_2(self.act(self.linear_1(x)))


class ConditionEmbedder(nn.Module):
    """Turns timesteps into the shared modulation and the prompt into keys' and values' source."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.freq_dim = config.freq_dim
        self.time_embedder = LinearPair(config.freq_dim, config.width, nn.SiLU())
        self.time_proj = nn.Linear(config.width, NUM_TERMS * config.width)
        self.text_embedder = LinearPair(config.text_dim, config.width, nn.GELU(approximate="tanh"))

    def embed_time(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Embed timesteps `b f` (0..1000) into `b f d` for the head and `b f 6 d` for the blocks."""
        embedded = self.time_embedder(timestep_embedding(timestep, self.freq_dim))
        return embedded, self.time_proj(functional.silu(embedded)).unflatten(-1, (NUM_TERMS, -1))


class WanTransformer(nn.Module):
    """Latents to a flow prediction, with a timestep and an extra modulation for each latent frame."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv3d(config.in_channels, config.width, config.patch_size, config.patch_size)
        self.condition_embedder = ConditionEmbedder(config)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.num_layers)])
        self.norm_out = nn.LayerNorm(config.width, config.eps, elementwise_affine=False)
        self.proj_out = nn.Linear(config.width, config.out_channels * math.prod(config.patch_size))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, config.width) / config.width**0.5)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        prompt: Tensor,
        *,
        frame_modulation: list[Tensor] | None = None,
        token_bias: Tensor | None = None,
    ) -> Tensor:
        """Predict `b c t h w` from latents `b c t h w`.

        timestep `b f` is 0..1000 per latent frame after patching; prompt is `b l text_dim`, or `1 l text_dim` for all;
        `frame_modulation` holds one `b f 6 d` a block, added to the timestep's; `token_bias` `b f s d` is added
        to the tokens.
        """
        patches = self.patch_embedding(latents)
        grid = (patches.shape[2], patches.shape[3], patches.shape[4])
        tokens = patches.flatten(3).permute(0, 2, 3, 1)
        if token_bias is not None:
            tokens = tokens + token_bias
        rotary = rotary_table(self.config, grid, latents.device)
        embedded, modulation = self.condition_embedder.embed_time(timestep)
        source = self.condition_embedder.text_embedder(prompt)
        for index, block in enumerate(self.blocks):
            extra = modulation if frame_modulation is None else modulation + frame_modulation[index]
            tokens = block(tokens, extra, source, rotary)
        return self._project(tokens, embedded, grid)

    def _project(self, tokens: Tensor, embedded: Tensor, grid: tuple[int, int, int]) -> Tensor:
        shift, scale = (self.scale_shift_table + embedded.unsqueeze(2)).unsqueeze(3).unbind(2)
        out = self.proj_out(self.norm_out(tokens) * (1.0 + scale) + shift)
        frames, rows, columns = grid
        depth, height, width = self.config.patch_size
        out = out.reshape(-1, frames, rows, columns, depth, height, width, self.config.out_channels)
        out = out.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return out.flatten(6, 7).flatten(4, 5).flatten(2, 3)
