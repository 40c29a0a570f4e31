"""Train the rollout model on cached latents by flow matching, with state dropout and emphasis on noisy times."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn import functional

from foreframe_engines.errors import DatasetError
from foreframe_models.autoencoder import FrameAutoencoder
from foreframe_models.rollout import RolloutConfig, RolloutModel, Target, eve_tabletop_config
from foreframe_models.training.data import EpisodeTensors, psnr, state_statistics, step_rng, to_input
from foreframe_models.training.loop import RECIPE_FILE, LoopConfig, Progress, Rank, Trainer, write_json
from foreframe_models.training.muon import Muon

ROLLOUT_FILE = "rollout.pt"
STATISTICS_FILE = "statistics.json"
EVALUATION_STEPS = 4


@dataclass(frozen=True, slots=True)
class RolloutRecipe:
    """The recipe of one rollout run. Times are drawn as sigmoid(N(mean, std)), a share of them exactly 1 (noise).

    `batch_size` clips a step are shared out among the processes that train together. Around the objects with
    hidden dynamics the error counts `1 + uncertain_weight` times: they are few pixels, and without it the samples
    hardly differ there. Where that is depends on the context alone, so what the model estimates stays unbiased.
    """

    model: RolloutConfig = field(default_factory=eve_tabletop_config)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=4_750, lr=1.5e-3, warmup_steps=200))
    batch_size: int = 48
    state_dropout: float = 0.1
    pure_noise_share: float = 0.15
    time_mean: float = 1.5
    time_std: float = 1.2
    max_loss_weight: float = 5.0
    uncertain_weight: float = 4.0
    is_muon: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Clips b: latents `b t c y x`, normalised states `b t d`, and which cells `b y x` are near an uncertain object."""

    latents: Tensor
    states: Tensor
    is_uncertain: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LatentClips:
    """Episodes e: cached latents float16 `e t c y x`, normalised states `e t d`, uncertain cells bool `e t y x`."""

    latents: Tensor
    states: Tensor
    is_uncertain: Tensor
    length: int
    context: int

    def draw(self, rng: np.random.Generator, count: int) -> Batch:
        """Draw `count` windows."""
        episodes = rng.integers(len(self.latents), size=count)
        starts = rng.integers(self.latents.shape[1] - self.length + 1, size=count)
        return self.cut(episodes, starts)

    def cut(self, episodes: Int[np.ndarray, " b"], starts: Int[np.ndarray, " b"]) -> Batch:
        """Cut the windows that begin at `starts`."""
        pairs = [(int(e), slice(int(s), int(s) + self.length)) for e, s in zip(episodes, starts, strict=True)]
        return Batch(
            torch.stack([self.latents[pair] for pair in pairs]).float(),
            torch.stack([self.states[pair] for pair in pairs]),
            torch.stack([self.is_uncertain[e, window.start + self.context - 1] for e, window in pairs]),
        )


def near_objects(masks: UInt8[np.ndarray, "e t h w"], patch: int) -> Tensor:
    """Return which latent cells of `patch` pixels an uncertain object shows in, or half a cell beside: `e t y x`."""
    reach = 2 * (patch // 2) + 1
    near = [
        functional.max_pool2d(torch.from_numpy(episode > 0).float(), reach, stride=1, padding=reach // 2)
        for episode in masks
    ]
    return torch.stack([functional.max_pool2d(episode, patch) > 0 for episode in near])


@torch.no_grad()
def cache_latents(autoencoder: FrameAutoencoder, data: EpisodeTensors) -> Tensor:
    """Encode every frame once; float16 `e t c y x`."""
    autoencoder.eval()
    return torch.stack([autoencoder.encode(to_input(frames)).half() for frames in data.frames])


def build_optimizers(model: RolloutModel, recipe: RolloutRecipe) -> list[torch.optim.Optimizer]:
    """Give the blocks' matrices to Muon and everything else to AdamW."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".blocks." in name and recipe.is_muon]
    chosen = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    adamw = torch.optim.AdamW(others, lr=recipe.loop.lr, betas=(0.9, 0.98), weight_decay=0.01)
    return [adamw, Muon(matrices, lr=recipe.loop.lr)] if matrices else [adamw]


def draw_times(recipe: RolloutRecipe, count: int, generator: torch.Generator) -> Tensor:
    """Draw one time per clip, in 0..1."""
    normal = torch.randn(count, generator=generator) * recipe.time_std + recipe.time_mean
    is_noise = torch.rand(count, generator=generator) < recipe.pure_noise_share
    return torch.where(is_noise, torch.ones(count), normal.sigmoid())


def flow_loss(model: RolloutModel, batch: Batch, recipe: RolloutRecipe, generator: torch.Generator) -> Tensor:
    """Return the flow-matching loss of clean clips."""
    latents, context, count = batch.latents, recipe.model.context_latents, len(batch.latents)
    time = draw_times(recipe, count, generator)[:, None].repeat(1, latents.shape[1])
    time[:, :context] = 0.0
    noise = torch.randn(latents.shape, generator=generator)
    mixed = torch.lerp(latents, noise, time[..., None, None, None])
    is_kept = torch.rand(count, 1, 1, generator=generator) >= recipe.state_dropout
    modulation, token_bias = model.condition(batch.states * is_kept)
    if recipe.model.target is Target.VELOCITY:
        error = model.velocity(mixed, time, modulation, token_bias) - (noise - latents)
        time_weight = torch.ones(count)
    else:
        error = model.clean(mixed, time, modulation, token_bias) - latents
        time_weight = (1.0 / time[:, -1].clamp(min=1e-3)).clamp(max=recipe.max_loss_weight)
    place_weight = 1.0 + recipe.uncertain_weight * batch.is_uncertain
    weight = time_weight[:, None, None] * place_weight / place_weight.mean()
    return (weight * error[:, context:].square().mean(dim=(1, 2))).mean()


def new_model(config: RolloutConfig, statistics: Mapping[str, list[float]]) -> RolloutModel:
    """Start a model with the training states' scale and a prompt that is drawn once and never trained."""
    model = RolloutModel(config)
    model.states_mean.copy_(torch.tensor(statistics["mean"]))
    model.states_std.copy_(torch.tensor(statistics["std"]).clamp(min=1e-6))
    model.prompt.copy_(torch.randn(model.prompt.shape, generator=torch.Generator().manual_seed(0)))
    return model


def train_rollout(
    recipe: RolloutRecipe,
    autoencoder: FrameAutoencoder,
    train: EpisodeTensors,
    validation: EpisodeTensors,
    folder: Path,
) -> Iterator[Progress]:
    """Train and leave `rollout.pt` (averaged weights), `recipe.json` and `statistics.json` in the folder.

    Yields progress. Encoded frames are kept in `latents.pt`, for a resumed run; raises DatasetError when they are
    of other episodes, or when episodes are shorter than a clip.
    """
    for data in (train, validation):
        if data.num_frames < recipe.model.num_latents:
            raise DatasetError(f"episodes have {data.num_frames} frames; a clip needs {recipe.model.num_latents}")
    statistics = state_statistics(train.states)
    if Rank.join().is_first:
        write_json(folder / RECIPE_FILE, asdict(recipe))
        write_json(folder / STATISTICS_FILE, statistics)
    torch.manual_seed(recipe.loop.seed)
    model = new_model(recipe.model, statistics)
    clips = _clips(model, _kept_latents(autoencoder, train, folder / "latents.pt"), train)
    held_out = _clips(model, cache_latents(autoencoder, validation), validation)
    trainer = Trainer(model, build_optimizers(model, recipe), recipe.loop, folder)

    def loss(model: RolloutModel, step: int, generator: torch.Generator) -> Tensor:
        rng = step_rng(recipe.loop.seed, step, trainer.rank.index)
        return flow_loss(model, clips.draw(rng, recipe.batch_size // trainer.rank.count), recipe, generator)

    yield from trainer.run(loss, lambda model: evaluate_rollout(model, autoencoder, held_out, validation))
    if not trainer.rank.is_first:
        return
    trainer.save_facts(train, recipe.batch_size)
    torch.save(trainer.ema.state_dict(), folder / ROLLOUT_FILE)


@torch.no_grad()
def evaluate_rollout(
    model: RolloutModel, autoencoder: FrameAutoencoder, clips: LatentClips, data: EpisodeTensors, count: int = 40
) -> dict[str, float]:
    """Return PSNR in dB at the first and last future frame: copying, posterior mean, one sample, zeroed states."""
    context, length = model.config.context_latents, clips.length
    episodes = np.arange(count) % data.num_episodes
    starts = (np.arange(count) * 7) % (data.num_frames - length + 1)
    batch = clips.cut(episodes, starts)
    latents, states = batch.latents, batch.states
    truth = np.stack([data.frames[e, s : s + length] for e, s in zip(episodes, starts, strict=True)])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    futures = {
        "mean": sample(model, latents, states, noise, (1.0, 0.0)),
        "sample": sample(model, latents, states, noise, tuple(np.linspace(1.0, 0.0, EVALUATION_STEPS + 1))),
        "zero": sample(model, latents, torch.zeros_like(states), noise, (1.0, 0.0)),
    }
    target = to_input(truth)
    report = {"copy_last": psnr((target[:, -1] - target[:, context - 1]).square().mean() / 4.0)}
    for name, future in futures.items():
        for label, index in (("first", context), ("last", length - 1)):
            picture = autoencoder.decode(future[:, index]).clamp(-1.0, 1.0)
            report[f"{name}_{label}"] = psnr((picture - target[:, index]).square().mean() / 4.0)
    return report


@torch.no_grad()
def sample(model: RolloutModel, latents: Tensor, states: Tensor, noise: Tensor, schedule: tuple[float, ...]) -> Tensor:
    """Replace the future of `latents` by a draw: Euler steps along `schedule`, times from 1 to 0."""
    context = model.config.context_latents
    current = torch.cat([latents[:, :context], noise[:, context:]], dim=1)
    modulation, token_bias = model.condition(states)
    is_future = torch.arange(latents.shape[1]) >= context
    row = is_future.float().expand(len(latents), -1)
    for time, next_time in pairwise(schedule):
        current = model.step(current, row * time, row * next_time, modulation, token_bias)
    return current


def _clips(model: RolloutModel, latents: Tensor, data: EpisodeTensors) -> LatentClips:
    config = model.config
    states = model.normalise(torch.from_numpy(data.states))
    patch = data.masks.shape[-1] // config.latent_size[1]
    return LatentClips(latents, states, near_objects(data.masks, patch), config.num_latents, config.context_latents)


def _kept_latents(autoencoder: FrameAutoencoder, data: EpisodeTensors, path: Path) -> Tensor:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".partial{os.getpid()}")  # every process of a run makes its own
        torch.save(cache_latents(autoencoder, data), partial)
        partial.replace(path)
    latents: Tensor = torch.load(path, weights_only=True, mmap=True)
    if latents.shape[:2] != data.frames.shape[:2]:
        raise DatasetError(f"{path.name} was made from other episodes; train into another folder")
    return latents
