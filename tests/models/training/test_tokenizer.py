"""Training lowers the error of the rounded PCA start and leaves weights, recipe and facts."""

import json
from pathlib import Path

import numpy as np
import torch

from foreframe_models.tokenizer import FrameTokenizer, TokenizerConfig
from foreframe_models.training.data import EpisodeTensors, to_input
from foreframe_models.training.loop import LoopConfig
from foreframe_models.training.tokenizer import TOKENIZER_FILE, TokenizerRecipe, measure, train_tokenizer

MODEL = TokenizerConfig((8, 8, 5), widths=(8, 16, 24), decoder_depth=1)
RECIPE = TokenizerRecipe(
    model=MODEL,
    loop=LoopConfig(steps=60, lr=5e-3, warmup_steps=5, ema_decay=0.9, log_every=10, evaluate_every=60),
    batch_size=8,
)


def squares() -> EpisodeTensors:
    rng = np.random.default_rng(0)
    frames = np.zeros((4, 16, 16, 16, 3), np.uint8)
    for episode, frame in np.ndindex(4, 16):
        y, x = rng.integers(0, 11, 2)
        frames[episode, frame, y : y + 5, x : x + 5] = rng.integers(60, 256, 3)
    return EpisodeTensors(frames, np.zeros((4, 16, 6), np.float32), frames[..., 0])


def test_training_beats_the_start_and_leaves_what_an_export_needs(tmp_path: Path) -> None:
    episodes = squares()
    pictures = to_input(episodes.frames.reshape(-1, 16, 16, 3))
    start = FrameTokenizer(MODEL)
    start.start_as_pca(pictures)
    moments = list(train_tokenizer(RECIPE, episodes, episodes, tmp_path))
    trained = FrameTokenizer(MODEL)
    trained.load_state_dict(torch.load(tmp_path / TOKENIZER_FILE, weights_only=True))
    assert measure(trained, pictures)["psnr"] > measure(start, pictures)["psnr"] + 0.2
    assert 1 < moments[-1].metrics["perplexity"] <= moments[-1].metrics["used"] <= MODEL.vocabulary
    assert json.loads((tmp_path / "recipe.json").read_text())["model"]["levels"] == [8, 8, 5]
    assert json.loads((tmp_path / "facts.json").read_text())["episodes"] == 4
