"""Train the per-frame autoencoder: squared error, with a little noise on the latents so that decoding is smooth."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from foreframe_models.autoencoder import AutoencoderConfig, FrameAutoencoder
from foreframe_models.training.data import EpisodeTensors, psnr, step_rng, to_input
from foreframe_models.training.loop import RECIPE_FILE, LoopConfig, Progress, Rank, Trainer, write_json

AUTOENCODER_FILE = "autoencoder.pt"


@dataclass(frozen=True, slots=True)
class AutoencoderRecipe:
    """The recipe of one autoencoder run; `batch_size` frames a step are shared out among the processes."""

    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=2_600, lr=2e-3, ema_decay=0.998))
    batch_size: int = 32
    latent_noise: float = 0.05


def train_autoencoder(
    recipe: AutoencoderRecipe, train: EpisodeTensors, validation: EpisodeTensors, folder: Path
) -> Iterator[Progress]:
    """Train and leave `autoencoder.pt` (averaged weights) and `recipe.json` in the folder; yields progress."""
    if Rank.join().is_first:
        write_json(folder / RECIPE_FILE, asdict(recipe))
    torch.manual_seed(recipe.loop.seed)
    model = FrameAutoencoder(recipe.model)
    sample = to_input(train.spread(num_episodes=200, stride=8))
    model.start_as_pca(sample)
    model.fit_scale(sample)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.loop.lr, betas=(0.9, 0.99), weight_decay=0.0)
    trainer = Trainer(model, [optimizer], recipe.loop, folder)
    held_out = to_input(validation.spread(num_episodes=validation.num_episodes, stride=16))

    def loss(model: FrameAutoencoder, step: int, generator: torch.Generator) -> Tensor:
        rng = step_rng(recipe.loop.seed, step, trainer.rank.index)
        frames = to_input(train.draw_frames(rng, recipe.batch_size // trainer.rank.count))
        return reconstruction_loss(model, frames, recipe.latent_noise, generator)

    yield from trainer.run(loss, lambda model: {"psnr": reconstruction_psnr(model, held_out)})
    if not trainer.rank.is_first:
        return
    trainer.ema.fit_scale(sample)
    trainer.save_facts(train, recipe.batch_size)
    torch.save(trainer.ema.state_dict(), folder / AUTOENCODER_FILE)


def reconstruction_loss(
    model: FrameAutoencoder, frames: Tensor, latent_noise: float, generator: torch.Generator
) -> Tensor:
    """Return the mean squared error of frames `b 3 h w` decoded from latents with noise of deviation `latent_noise`."""
    latents = model.encode(frames)
    noise = torch.randn(latents.shape, generator=generator)
    return (model.decode(latents + latent_noise * noise) - frames).square().mean()


@torch.no_grad()
def reconstruction_psnr(model: FrameAutoencoder, pictures: Tensor) -> float:
    """Return PSNR in dB of `b 3 h w` pictures, encoded and decoded."""
    decoded = torch.cat([model.decode(model.encode(part)).clamp(-1.0, 1.0) for part in torch.split(pictures, 64)])
    return psnr((decoded - pictures).square().mean() / 4.0)
