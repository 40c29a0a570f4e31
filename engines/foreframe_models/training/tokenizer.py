"""Train the tokenizer: squared error of frames rounded to ids and decoded, gradients straight through the rounding."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from foreframe_models.tokenizer import FrameTokenizer, TokenizerConfig
from foreframe_models.training.data import EpisodeTensors, psnr, step_rng, to_input
from foreframe_models.training.loop import RECIPE_FILE, LoopConfig, Progress, Rank, Trainer, write_json

TOKENIZER_FILE = "tokenizer.pt"


@dataclass(frozen=True, slots=True)
class TokenizerRecipe:
    """The recipe of one tokenizer run; `batch_size` frames a step are shared out among the processes."""

    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=5_000, lr=2e-3, ema_decay=0.998))
    batch_size: int = 48


def train_tokenizer(
    recipe: TokenizerRecipe, train: EpisodeTensors, validation: EpisodeTensors, folder: Path
) -> Iterator[Progress]:
    """Train and leave `tokenizer.pt` (averaged weights) and `recipe.json` in the folder; yields progress."""
    if Rank.join().is_first:
        write_json(folder / RECIPE_FILE, asdict(recipe))
    torch.manual_seed(recipe.loop.seed)
    model = FrameTokenizer(recipe.model)
    model.start_as_pca(to_input(train.spread(num_episodes=200, stride=8)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.loop.lr, betas=(0.9, 0.99), weight_decay=0.0)
    trainer = Trainer(model, [optimizer], recipe.loop, folder)
    held_out = to_input(validation.spread(num_episodes=validation.num_episodes, stride=16))

    def loss(model: FrameTokenizer, step: int, generator: torch.Generator) -> Tensor:
        del generator  # nothing here is random but the batch
        rng = step_rng(recipe.loop.seed, step, trainer.rank.index)
        frames = to_input(train.draw_frames(rng, recipe.batch_size // trainer.rank.count))
        return (model(frames) - frames).square().mean()

    yield from trainer.run(loss, lambda model: measure(model, held_out))
    if not trainer.rank.is_first:
        return
    trainer.save_facts(train, recipe.batch_size)
    torch.save(trainer.ema.state_dict(), folder / TOKENIZER_FILE)


@torch.no_grad()
def measure(model: FrameTokenizer, frames: Tensor) -> dict[str, float]:
    """Return PSNR in dB of `b 3 h w` frames through their ids, how many ids they use and the ids' perplexity."""
    grid = frames.shape[-1] // model.autoencoder.config.patch
    ids = torch.cat([model.tokenize(part) for part in torch.split(frames, 64)])
    decoded = torch.cat([model.detokenize(part, grid, grid).clamp(-1.0, 1.0) for part in torch.split(ids, 64)])
    counts = torch.bincount(ids.flatten(), minlength=model.config.vocabulary).double()
    shares = counts[counts > 0] / counts.sum()
    return {
        "psnr": psnr((decoded - frames).square().mean() / 4.0),
        "used": float(len(shares)),
        "perplexity": float(torch.exp(-(shares * shares.log()).sum())),
    }
