"""A video tokenizer by finite scalar quantisation (FSQ): the autoencoder's latents rounded to a few levels a channel.

Ids follow NVIDIA's Cosmos tokenizers: an id is the sum of digit times base, and the first level varies fastest.
Source: Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", arXiv 2309.15505.
"""

import math
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor, nn

from foreframe_models.autoencoder import AutoencoderConfig, FrameAutoencoder, patches, set_linear

EDGE = 1e-3
"""How far the bounded range reaches past its outermost levels, so that they can be reached at all."""


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """Levels of each latent channel, and the autoencoder's hidden widths from fine to coarse."""

    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    widths: tuple[int, int, int] = (48, 96, 160)
    decoder_depth: int = 2

    @property
    def vocabulary(self) -> int:
        """How many ids there are: 64,000 for Cosmos' levels."""
        return math.prod(self.levels)


class ScalarQuantizer(nn.Module):
    """Rounds each channel to its levels; digits, codes and ids are three spellings of the same."""

    reach: Tensor
    offset: Tensor
    levels: Tensor
    bases: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        sizes = torch.tensor(levels)
        self.register_buffer("levels", sizes, persistent=False)
        self.register_buffer("bases", torch.tensor([*accumulate((1, *levels[:-1]), mul)]), persistent=False)
        self.register_buffer("reach", (sizes - 1) * (1.0 + EDGE) / 2.0, persistent=False)
        self.register_buffer("offset", torch.where(sizes % 2 == 0, 0.5, 0.0), persistent=False)

    def forward(self, latents: Tensor) -> Tensor:
        """Quantise latents `... c` to codes -1..1 `... c`; gradients pass as if nothing had been rounded."""
        bounded = self._bounded(latents)
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / (self.levels // 2)

    def ids(self, latents: Tensor) -> Tensor:
        """Quantise latents `... c` to ids `...`, int64 in 0..vocabulary."""
        digits = self._bounded(latents).round().long() + self.levels // 2
        return (digits * self.bases).sum(-1)

    def codes(self, ids: Tensor) -> Tensor:
        """Return the codes -1..1 `... c` of ids `...`."""
        half = self.levels // 2
        return (ids[..., None] // self.bases % self.levels - half) / half

    def _bounded(self, latents: Tensor) -> Tensor:
        return (latents + (self.offset / self.reach).atanh()).tanh() * self.reach - self.offset


class FrameTokenizer(nn.Module):
    """Frames -1..1 `b 3 h w` to ids `b s` and back; s counts the latent cells row by row."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        channels = len(config.levels)
        self.autoencoder = FrameAutoencoder(AutoencoderConfig(channels, config.widths, config.decoder_depth))
        self.quantizer = ScalarQuantizer(config.levels)

    def forward(self, frames: Tensor) -> Tensor:
        """Return frames as they come back from their ids, differentiable."""
        return self._decode(self.quantizer(self._latents(frames)))

    def tokenize(self, frames: Tensor) -> Tensor:
        """Return the ids `b s` of frames."""
        return self.quantizer.ids(self._latents(frames)).flatten(1)

    def detokenize(self, ids: Tensor, height: int, width: int) -> Tensor:
        """Return the frames of ids `b s`; height and width are the latent grid's, s their product."""
        return self._decode(self.quantizer.codes(ids.reshape(-1, height, width)))

    def _latents(self, frames: Tensor) -> Tensor:
        return self.autoencoder.encode(frames).movedim(1, -1)

    def _decode(self, codes: Tensor) -> Tensor:
        return self.autoencoder.decode_raw(codes.movedim(-1, 1))

    @torch.no_grad()
    def start_as_pca(self, frames: Tensor) -> None:
        """Start as principal components, rounded, and the linear map that best recovers patches from their codes."""
        self.autoencoder.start_as_pca(frames)
        raw = self.autoencoder.encode_raw(frames)
        self.autoencoder.latents_mean.copy_(raw.mean(dim=(0, 2, 3)))
        self.autoencoder.latents_std.copy_(raw.std(dim=(0, 2, 3)))
        codes = self.quantizer(self._latents(frames)).flatten(0, 2).double()
        ones = torch.ones(len(codes), 1, dtype=codes.dtype)
        pixels = patches(frames, self.autoencoder.config.patch)
        solution = torch.linalg.lstsq(torch.cat([codes, ones], dim=1), pixels).solution
        set_linear(self.autoencoder.unproject, solution[:-1].T.float(), solution[-1].float())
