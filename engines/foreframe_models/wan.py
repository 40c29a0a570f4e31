"""The Wan 2.2 video transformer with modulation per latent frame. Knows no states, no sampler, no pixels.

Parameter names are those of the public diffusers checkpoints, so that a TI2V-5B folder loads by name.
Tokens are kept as `b f s d` (latent frames, tokens a frame), so that one modulation row serves a whole frame.
Norms, modulation, time embedding and rotation compute in float32 whatever the weights' type (Wan-Video/Wan2.2).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

NUM_TERMS = 6
"""Shift, scale and gate of the attention, then of the feed-forward."""

Prompt = Tensor | Callable[[Tensor], Tensor]
"""What cross-attention reads: an embedded prompt `b l d` or `1 l d`, or what reads one for tokens `b n d`."""


@dataclass(frozen=True, slots=True)
class WanConfig:
    """Sizes of the transformer, by default the 5B's. `patch_size` is in latent frames, rows, columns."""

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
    """Rotate neighbouring pairs of `b tokens heads head_dim` by the angles of the table's last tokens."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)  # type: ignore[no-untyped-call]
    cos, sin = table[:, :, table.shape[2] - x.shape[1] :].unbind(0)
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)


def timestep_embedding(timestep: Tensor, dim: int) -> Tensor:
    """Return cosines then sines of a timestep (0..1000), `... dim`."""
    half = dim // 2
    rates = torch.exp(-math.log(10_000.0) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half)
    angles = timestep[..., None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class LayerNorm32(nn.LayerNorm):
    """Layer norm computed, and returned, in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `... d`."""
        weight, bias = (None if part is None else part.float() for part in (self.weight, self.bias))
        return functional.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps)


class RMSNorm32(nn.RMSNorm):
    """Root-mean-square norm computed, and returned, in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `... d`."""
        return functional.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps)


class Linear32(nn.Linear):
    """Linear layer computed, and returned, in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `... inputs` to `... outputs`."""
        return functional.linear(x.float(), self.weight.float(), self.bias.float())


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
        self.norm_q = RMSNorm32(width, eps=config.eps)
        self.norm_k = RMSNorm32(width, eps=config.eps)

    def forward(self, x: Tensor, source: Tensor, rotary: Tensor | None) -> Tensor:
        """Let tokens `b n d` attend to `source`, `b l d` or `1 l d`.

        `rotary` is None without positions; otherwise the tokens are the source's last.
        """
        query = self.read_queries(x)
        key, value = self.read_source(source)
        if rotary is not None:
            return self.mix(rotate(query, rotary), rotate(key, rotary), value)
        key, value = (part.expand(x.shape[0], -1, -1, -1) for part in (key, value))  # one prompt serves all rows
        return self.mix(query, key, value)

    def read_queries(self, x: Tensor) -> Tensor:
        """Return the normalised queries `b n heads head_dim` of tokens `b n d`, in float32."""
        return self.norm_q(self.to_q(x)).unflatten(-1, (self.num_heads, -1))

    def read_source(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalised keys, in float32, and the values `b l heads head_dim` of a source `b l d`."""
        key = self.norm_k(self.to_k(source)).unflatten(-1, (self.num_heads, -1))
        return key, self.to_v(source).unflatten(-1, (self.num_heads, -1))

    def mix(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return what queries read, `b n d`; each part is `b tokens heads head_dim`, `bias` is added to the scores."""
        query, key, value = (part.to(value.dtype).transpose(1, 2) for part in (query, key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
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
        self.norm1 = LayerNorm32(width, config.eps, elementwise_affine=False)
        self.attn1 = Attention(config)
        self.norm2 = LayerNorm32(width, config.eps)
        self.attn2 = Attention(config)
        self.norm3 = LayerNorm32(width, config.eps, elementwise_affine=False)
        self.ffn = FeedForward(width, config.ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.randn(1, NUM_TERMS, width) / width**0.5)

    def forward(self, x: Tensor, modulation: Tensor, prompt: Prompt, rotary: Tensor, first: int = 0) -> Tensor:
        """Advance tokens `b f s d`; `modulation` is `b f 6 d`. Only the latent frames from `first` on are returned."""
        terms = (modulation.float() + self.scale_shift_table.float()).unsqueeze(3)
        shift, scale = terms[:, :, :2].unbind(2)
        mixed = (self.norm1(x) * (1.0 + scale) + shift).to(x.dtype)
        x, terms = x[:, first:], terms[:, first:]
        gate, ffn_shift, ffn_scale, ffn_gate = terms[:, :, 2:].unbind(2)
        attended = self.attn1(mixed[:, first:].flatten(1, 2), mixed.flatten(1, 2), rotary)
        x = (x + attended.unflatten(1, x.shape[1:3]) * gate).to(x.dtype)
        asked = self.norm2(x).to(x.dtype).flatten(1, 2)
        read = self.attn2(asked, prompt, None) if isinstance(prompt, Tensor) else prompt(asked)
        x = x + read.unflatten(1, x.shape[1:3])
        hidden = (self.norm3(x) * (1.0 + ffn_scale) + ffn_shift).to(x.dtype)
        return (x + self.ffn(hidden) * ffn_gate).to(x.dtype)


class LinearPair(nn.Module):
    """Two linear layers with an activation between, named as the checkpoints name them."""

    def __init__(self, inputs: int, width: int, activation: nn.Module, linear: type[nn.Linear] = nn.Linear) -> None:
        super().__init__()
        self.linear_1 = linear(inputs, width)
        self.act = activation
        self.linear_2 = linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `... inputs` to `... d`."""
        return self.linear_2(self.act(self.linear_1(x)))


class TimeTerms(NamedTuple):
    """What timesteps do, in float32: `head` `b f d` to the output, `blocks` `b f 6 d` to every block."""

    head: Tensor
    blocks: Tensor


class ConditionEmbedder(nn.Module):
    """Turns timesteps into the shared modulation and the prompt into keys' and values' source."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.freq_dim = config.freq_dim
        self.time_embedder = LinearPair(config.freq_dim, config.width, nn.SiLU(), Linear32)
        self.time_proj = Linear32(config.width, NUM_TERMS * config.width)
        self.text_embedder = LinearPair(config.text_dim, config.width, nn.GELU(approximate="tanh"))

    def embed_time(self, timestep: Tensor) -> TimeTerms:
        """Embed timesteps `...` (0..1000) into `... d` for the head and `... 6 d` for the blocks."""
        embedded = self.time_embedder(timestep_embedding(timestep, self.freq_dim))
        return TimeTerms(embedded, self.time_proj(functional.silu(embedded)).unflatten(-1, (NUM_TERMS, -1)))

    def embed_text(self, prompt: Tensor) -> Tensor:
        """Embed a prompt `b l text_dim` into `b l d`."""
        return self.text_embedder(prompt.to(self.text_embedder.linear_1.weight.dtype))


@dataclass(frozen=True, slots=True, eq=False)
class Conditions:
    """What the transformer is told besides the latents, once their times and the prompt are embedded.

    `prompts` and `frame_modulation` (`b f 6 d`, added to the timesteps') hold one entry a block; `token_bias` `b f s d`
    is added to the tokens. `rotary` is the grid's table, where the caller keeps one.
    """

    time_terms: TimeTerms
    prompts: Sequence[Prompt]
    frame_modulation: Sequence[Tensor] | None = None
    token_bias: Tensor | None = None
    rotary: Tensor | None = None


class WanTransformer(nn.Module):
    """Latents to a flow prediction, with a timestep and an extra modulation for each latent frame."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv3d(config.in_channels, config.width, config.patch_size, config.patch_size)
        self.condition_embedder = ConditionEmbedder(config)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.num_layers)])
        self.norm_out = LayerNorm32(config.width, config.eps, elementwise_affine=False)
        self.proj_out = nn.Linear(config.width, config.out_channels * math.prod(config.patch_size))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, config.width) / config.width**0.5)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        prompt: Tensor,
        *,
        frame_modulation: Sequence[Tensor] | None = None,
        token_bias: Tensor | None = None,
    ) -> Tensor:
        """Predict `b c t h w` from latents `b c t h w`.

        timestep `b f` is 0..1000 per latent frame after patching; prompt is `b l text_dim`, or `1 l text_dim` for all;
        the rest is as in `Conditions`.
        """
        embedder = self.condition_embedder
        prompts = [embedder.embed_text(prompt)] * len(self.blocks)
        return self.predict(latents, Conditions(embedder.embed_time(timestep), prompts, frame_modulation, token_bias))

    def predict(self, latents: Tensor, conditions: Conditions, *, first: int = 0) -> Tensor:
        """Predict the patched latent frames from `first` on: `b c t h w`, of the latents' dtype."""
        patches = self.patch_embedding(latents.to(self.patch_embedding.weight.dtype))
        grid = (patches.shape[2], patches.shape[3], patches.shape[4])
        tokens = patches.flatten(3).permute(0, 2, 3, 1)
        if conditions.token_bias is not None:
            tokens = (tokens + conditions.token_bias).to(tokens.dtype)
        rotary = conditions.rotary if conditions.rotary is not None else rotary_table(self.config, grid, latents.device)
        modulation, last = conditions.time_terms.blocks, len(self.blocks) - 1
        for index, (block, prompt) in enumerate(zip(self.blocks, conditions.prompts, strict=True)):
            extra = (
                modulation if conditions.frame_modulation is None else modulation + conditions.frame_modulation[index]
            )
            # Only the last block's queries can be spared: every earlier token is a key of the next block.
            tokens = block(tokens, extra, prompt, rotary, first if index == last else 0)
        return self._project(tokens, conditions.time_terms.head[:, first:], grid[1:]).to(latents.dtype)

    def _project(self, tokens: Tensor, embedded: Tensor, grid: tuple[int, int]) -> Tensor:
        shift, scale = (self.scale_shift_table.float() + embedded.unsqueeze(2)).unsqueeze(3).unbind(2)
        out = self.proj_out((self.norm_out(tokens) * (1.0 + scale) + shift).to(tokens.dtype))
        depth, height, width = self.config.patch_size
        out = out.reshape(-1, tokens.shape[1], *grid, depth, height, width, self.config.out_channels)
        out = out.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return out.flatten(6, 7).flatten(4, 5).flatten(2, 3)
