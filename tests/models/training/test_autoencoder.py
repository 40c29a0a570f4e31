"""Training lowers the error of the PCA start and leaves weights, recipe and facts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from foreframe_models.autoencoder import AutoencoderConfig, FrameAutoencoder
from foreframe_models.training.autoencoder import (
    AUTOENCODER_FILE,
    AutoencoderRecipe,
    reconstruction_psnr,
    train_autoencoder,
)
from foreframe_models.training.data import EpisodeTensors, to_input
from foreframe_models.training.loop import LoopConfig

MODEL = AutoencoderConfig(channels=4, widths=(8, 16, 24), decoder_depth=1)
RECIPE = AutoencoderRecipe(
    model=MODEL,
    loop=LoopConfig(steps=60, lr=5e-3, warmup_steps=5, ema_decay=0.9, log_every=10, evaluate_every=60),
    batch_size=8,
    latent_noise=0.0,
)


@pytest.fixture(scope="module")
def episodes() -> EpisodeTensors:
    rng = np.random.default_rng(0)
    frames = np.zeros((4, 16, 16, 16, 3), np.uint8)
    for episode, frame in np.ndindex(4, 16):
        y, x = rng.integers(0, 11, 2)
        frames[episode, frame, y : y + 5, x : x + 5] = rng.integers(60, 256, 3)
    return EpisodeTensors(frames, np.zeros((4, 16, 6), np.float32), frames[..., 0])


def test_training_beats_the_pca_start_and_leaves_what_an_export_needs(episodes: EpisodeTensors, tmp_path: Path) -> None:
    pictures = to_input(episodes.frames.reshape(-1, 16, 16, 3))
    start = FrameAutoencoder(MODEL)
    start.start_as_pca(pictures)
    moments = list(train_autoencoder(RECIPE, episodes, episodes, tmp_path))
    trained = FrameAutoencoder(MODEL)
    trained.load_state_dict(torch.load(tmp_path / AUTOENCODER_FILE, weights_only=True))
    assert reconstruction_psnr(trained, pictures) > reconstruction_psnr(start, pictures) + 0.2
    assert moments[-1].metrics["psnr"] > 0
    with torch.no_grad():
        assert abs(trained.encode(pictures).square().mean() - 1.0) < 0.1
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert recipe["model"] == {"channels": 4, "widths": [8, 16, 24], "decoder_depth": 1}
    assert json.loads((tmp_path / "facts.json").read_text())["episodes"] == 4
