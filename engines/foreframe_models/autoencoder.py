"""A per-frame autoencoder that starts as PCA: linear patch projection plus convolutional residuals.

The residual paths end in zeros, so an untrained model already reconstructs as well as PCA of 8x8 patches does;
training only adds to that. Latents leave scaled so that noise of variance 1 suits the rollout model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class AutoencoderConfig:
    """Sizes of the autoencoder: `channels` of a latent, and hidden widths from fine to coarse, multiples of 8."""

    channels: int = 32
    widths: tuple[int, int, int] = (48, 96, 160)
    decoder_depth: int = 2

    @property
    def patch(self) -> int:
        """Pixels along a latent cell: every width halves the picture once."""
        return 2 ** len(self.widths)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip; `b c h w` to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.conv_1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolutions find."""
        return x + self.conv_2(functional.silu(self.conv_1(functional.silu(self.norm(x)))))


class FrameAutoencoder(nn.Module):
    """Frames -1..1 `b 3 h w` to latents `b c y x` and back; y and x are h and w divided by the patch."""

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        pixels, (small, middle, large) = 3 * config.patch**2, config.widths
        self.project = nn.Conv2d(pixels, config.channels, 1)
        self.unproject = nn.Conv2d(config.channels, pixels, 1)
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, small, 3, padding=1),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * small, middle, 1),
            ResidualBlock(middle),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * middle, large, 1),
            ResidualBlock(large),
            _zeroed(nn.Conv2d(large, config.channels, 1)),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(config.channels, large, 1),
            *(ResidualBlock(large) for _ in range(config.decoder_depth)),
            nn.Conv2d(large, 4 * middle, 1),
            nn.PixelShuffle(2),
            ResidualBlock(middle),
            nn.Conv2d(middle, 4 * small, 1),
            nn.PixelShuffle(2),
            ResidualBlock(small),
            _zeroed(nn.Conv2d(small, 12, 3, padding=1)),
            nn.PixelShuffle(2),
        )
        self.register_buffer("latents_mean", torch.zeros(config.channels))
        self.register_buffer("latents_std", torch.ones(config.channels))

    def encode(self, frames: Tensor) -> Tensor:
        """Encode `b 3 h w` in -1..1 into scaled latents `b c y x`."""
        raw = self.encode_raw(frames)
        return (raw - self.latents_mean[:, None, None]) / self.latents_std[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents `b c y x` into `b 3 h w`, not yet clipped to -1..1."""
        return self.decode_raw(latents * self.latents_std[:, None, None] + self.latents_mean[:, None, None])

    def encode_raw(self, frames: Tensor) -> Tensor:
        """Encode into latents before scaling."""
        return self.project(functional.pixel_unshuffle(frames, self.config.patch)) + self.encoder(frames)

    def decode_raw(self, raw: Tensor) -> Tensor:
        """Decode latents before scaling."""
        return functional.pixel_shuffle(self.unproject(raw), self.config.patch) + self.decoder(raw)

    @torch.no_grad()
    def start_as_pca(self, frames: Tensor) -> None:
        """Set the linear paths to the principal components of the patches of sample `frames` `b 3 h w`."""
        pixels = patches(frames, self.config.patch)
        mean = pixels.mean(0)
        centred = pixels - mean
        _, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        basis = vectors.flip(1)[:, : self.config.channels].T.float()
        set_linear(self.project, basis, -basis @ mean.float())
        set_linear(self.unproject, basis.T, mean.float())

    @torch.no_grad()
    def fit_scale(self, frames: Tensor) -> None:
        """Half-whiten: divide each channel by the root of its deviation, then all by one number for variance 1.

        Full whitening would weigh fine texture like shape; none would drown it in noise.
        """
        raw = self.encode_raw(frames)
        std = raw.std(dim=(0, 2, 3))
        half = std.sqrt()
        self.latents_mean.copy_(raw.mean(dim=(0, 2, 3)))
        self.latents_std.copy_(half * (std / half).square().mean().sqrt())


def patches(frames: Tensor, patch: int) -> Tensor:
    """Return every square patch of frames `b c h w` as a float64 row."""
    return functional.pixel_unshuffle(frames, patch).movedim(1, -1).flatten(0, 2).double()


def set_linear(layer: nn.Conv2d, matrix: Tensor, offset: Tensor) -> None:
    """Make a 1x1 convolution this matrix and offset."""
    parameters = dict(layer.named_parameters())
    parameters["weight"].copy_(matrix[:, :, None, None])
    parameters["bias"].copy_(offset)


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
