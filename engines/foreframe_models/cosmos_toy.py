"""A small tokenizer in the place of NVIDIA's archives: their interface, their id arithmetic, untrained weights.

For trials and tests of everything that takes a Cosmos tokenizer, as the weights themselves are not anybody's to ship.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from foreframe_models.tokenizer import ScalarQuantizer

LEVELS = (8, 8, 8, 5, 5, 5)
PATCH = 8
"""Pixels and, after the first, frames that become one id."""


@dataclass(frozen=True, slots=True)
class Archives:
    """Two TorchScript files."""

    encoder: Path
    decoder: Path


def write_toy_archives(folder: Path, *, size: int = 16, window: int = 17, dtype: torch.dtype | None = None) -> Archives:
    """Trace an encoder and a decoder for windows of `size` pixels a side into a folder; `dtype` is the weights'.

    Weights are drawn from a fixed seed, so that equal sizes give equal tokenizers.
    """
    dtype = dtype or torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        encoder, decoder = ToyEncoder().eval().to(dtype), ToyDecoder().eval().to(dtype)
    pictures = torch.zeros(1, 3, window, size, size, dtype=dtype)
    folder.mkdir(parents=True, exist_ok=True)
    archives = Archives(folder / "encoder.jit", folder / "decoder.jit")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing fixes the window's length, as NVIDIA's files do
        torch.jit.trace(encoder, pictures).save(archives.encoder)  # type: ignore[no-untyped-call]
        torch.jit.trace(decoder, encoder(pictures)[0]).save(archives.decoder)  # type: ignore[no-untyped-call]
    return archives


class ToyEncoder(nn.Module):
    """Pictures -1..1 `b 3 t h w` to ids int32 `b g y x`, codes `b c g y x` and a loss of zeros."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.conv_in = nn.Conv3d(3 * PATCH * PATCH, width, 1)
        self.norm = nn.GroupNorm(1, width)
        self.causal = nn.Conv3d(width, width, 3)
        self.out = nn.Conv3d(width, len(LEVELS), 1)
        self.quantizer = ScalarQuantizer(LEVELS)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cut patches, pool all frames but the first by eight, look back in time, quantise."""
        patches = pictures.unfold(3, PATCH, PATCH).unfold(4, PATCH, PATCH)
        patches = patches.permute(0, 1, 5, 6, 2, 3, 4).flatten(1, 3)
        first, rest = torch.split(self.conv_in(patches), [1, pictures.shape[2] - 1], dim=2)
        x = torch.cat([first, torch.unflatten(rest, 2, (-1, PATCH)).mean(dim=3)], dim=2)
        padded = functional.pad(torch.cat([x[:, :, :1].repeat(1, 1, 2, 1, 1), x], dim=2), (1, 1, 1, 1, 0, 0))
        latents = 4.0 * self.out(self.norm(x + self.causal(functional.silu(padded)))).movedim(1, -1)
        codes = self.quantizer(latents).movedim(-1, 1).to(pictures.dtype)
        return self.quantizer.ids(latents).int(), codes, torch.zeros_like(codes.mean(dim=(1, 2, 3), keepdim=True))


class ToyDecoder(nn.Module):
    """Ids int32 `b g y x` to pictures `b 3 t h w`."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.quantizer = ScalarQuantizer(LEVELS)
        self.conv_in = nn.Conv3d(len(LEVELS), width, 1)
        self.norm = nn.GroupNorm(1, width)
        self.out = nn.Conv3d(width, 3 * PATCH * PATCH, 1)

    def forward(self, ids: Tensor) -> Tensor:
        """Look codes up, repeat every grid but the first eight times, spread each place over its patch."""
        codes = self.quantizer.codes(ids).movedim(-1, 1).to(self.out.weight.dtype)
        x = self.norm(self.conv_in(codes)).repeat_interleave(PATCH, dim=2)[:, :, PATCH - 1 :]
        x += 0.1 * functional.silu(x)
        patches = self.out(x).unflatten(1, (3, PATCH, PATCH)).permute(0, 1, 4, 5, 2, 6, 3)
        return patches.flatten(5, 6).flatten(3, 4)
