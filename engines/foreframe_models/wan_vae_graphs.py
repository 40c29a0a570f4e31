"""The graphs of Wan's video autoencoder in a rollout bundle: encode, decode and decode_tail. Knows no files.

`decode` runs all latents at once: the graph does not grow with their number, and no cache is copied between them.
Bytes are the first and last thing of a graph, because TensorRT has them nowhere else.
"""

import torch
from torch import Tensor, nn

from foreframe_models.graph import Graph
from foreframe_models.wan_vae import WanAutoencoder, count_frames


class WanEncode(nn.Module):
    """Context frames uint8 `1 t h w 3` to clean latents `1 n c y x`."""

    def __init__(self, autoencoder: WanAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, frames: Tensor) -> Tensor:
        """Encode a clip whose first latent is its first frame."""
        return self.autoencoder.encode(frames.float().permute(0, 4, 1, 2, 3) / 127.5 - 1.0)


class WanDecode(nn.Module):
    """Latents `b n c y x` to every frame of the clip, uint8 `b t h w 3`, rounded."""

    def __init__(self, autoencoder: WanAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        """Decode the whole clip."""
        return _to_pixels(self.autoencoder.decode_span(latents, 0, count_frames(latents.shape[1])))


class WanDecodeTail(nn.Module):
    """Latents `b n c y x` to the last latent's frames only, uint8 `b 4 h w 3`, rounded."""

    def __init__(self, autoencoder: WanAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        """Decode what the last frames depend on."""
        return _to_pixels(self.autoencoder.decode_tail(latents))


def wan_vae_graphs(
    autoencoder: WanAutoencoder, *, context_latents: int, num_latents: int, latent_size: tuple[int, int]
) -> dict[str, Graph]:
    """Return the graphs of clips of `num_latents` latents of `latent_size` rows and columns, with example inputs."""
    rows, columns = latent_size
    cell = autoencoder.config.scale_factor_spatial
    frames = torch.zeros(1, count_frames(context_latents), rows * cell, columns * cell, 3, dtype=torch.uint8)
    latents = {"latents": torch.zeros(2, num_latents, autoencoder.config.z_dim, rows, columns)}
    dynamic = {"latents": {0: "b"}}
    return {
        "encode": Graph(WanEncode(autoencoder), {"frames": frames}, ("latents",), {}),
        "decode": Graph(WanDecode(autoencoder), latents, ("frames",), dynamic),
        "decode_tail": Graph(WanDecodeTail(autoencoder), latents, ("frames",), dynamic),
    }


def _to_pixels(pictures: Tensor) -> Tensor:
    grey = ((pictures + 1.0) * 127.5).round().clamp(0.0, 255.0)
    return grey.permute(0, 2, 3, 4, 1).to(torch.uint8)
