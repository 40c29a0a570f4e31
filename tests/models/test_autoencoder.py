"""An untrained autoencoder is PCA of patches; latents leave it with variance 1."""

import numpy as np
import pytest
import torch
from torch import Tensor

from foreframe_models.autoencoder import AutoencoderConfig, FrameAutoencoder

CONFIG = AutoencoderConfig(channels=8, widths=(8, 16, 24), decoder_depth=1)


@pytest.fixture
def frames() -> Tensor:
    """Smooth pictures, which few components describe well but not perfectly."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(48, 3, 5, 5, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (16, 24), mode="bilinear", align_corners=False)


@pytest.fixture
def model(frames: Tensor) -> FrameAutoencoder:
    torch.manual_seed(0)
    model = FrameAutoencoder(CONFIG)
    model.start_as_pca(frames)
    return model.eval()


def patches_of(frames: np.ndarray) -> np.ndarray:
    count, _, height, width = frames.shape
    cut = frames.reshape(count, 3, height // 8, 8, width // 8, 8)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(-1, 192)


@torch.no_grad()
def test_an_untrained_model_reconstructs_as_pca_does(model: FrameAutoencoder, frames: Tensor) -> None:
    patches = patches_of(frames.double().numpy())
    mean = patches.mean(0)
    _, _, components = np.linalg.svd(patches - mean, full_matrices=False)
    expected = (patches - mean) @ components[:8].T @ components[:8] + mean
    decoded = patches_of(model.decode(model.encode(frames)).numpy())
    assert np.square(decoded - expected).mean() < 1e-6
    assert np.square(decoded - patches).mean() > 1e-4  # so that the components left out do matter


@torch.no_grad()
def test_scaled_latents_have_mean_0_and_variance_1(model: FrameAutoencoder, frames: Tensor) -> None:
    assert abs(model.encode(frames).square().mean() - 1.0) > 0.1
    model.fit_scale(frames)
    latents = model.encode(frames)
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert abs(latents.square().mean() - 1.0) < 1e-2


@torch.no_grad()
def test_the_scale_keeps_the_order_of_channels_but_narrows_it(model: FrameAutoencoder, frames: Tensor) -> None:
    before = model.encode(frames).std(dim=(0, 2, 3))
    model.fit_scale(frames)
    after = model.encode(frames).std(dim=(0, 2, 3))
    ratio = after[0] / after[-1]
    torch.testing.assert_close(ratio, (before[0] / before[-1]).sqrt())


@torch.no_grad()
def test_the_scale_changes_no_picture(model: FrameAutoencoder, frames: Tensor) -> None:
    before = model.decode(model.encode(frames))
    model.fit_scale(frames)
    torch.testing.assert_close(model.decode(model.encode(frames)), before, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_latent_cell_is_8_pixels_wide(model: FrameAutoencoder, frames: Tensor) -> None:
    assert CONFIG.patch == 8
    assert model.encode(frames).shape == (48, 8, 2, 3)
