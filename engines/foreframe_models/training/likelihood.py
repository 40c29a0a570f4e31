"""Train the token model by cross-entropy of every next grid: teacher forcing, or now and then its own draws as input.

Source of scheduled sampling with parallel prediction: Mihaylova and Martins, "Scheduled Sampling for Transformers",
2019; arXiv 2510.07092 tried it without gain.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from foreframe_engines.errors import DatasetError
from foreframe_models.precision import round_to_half
from foreframe_models.st_transformer import (
    LOGITS_AT_ONCE,
    Head,
    StConfig,
    StTransformer,
    eve_tabletop_st_config,
    tokens_at_once,
)
from foreframe_models.tokenizer import FrameTokenizer
from foreframe_models.training.data import EpisodeTensors, state_statistics, step_rng, to_input
from foreframe_models.training.loop import RECIPE_FILE, LoopConfig, Progress, Rank, Trainer, write_json

LIKELIHOOD_FILE = "likelihood.pt"
CONTEXT = 4
"""Held-out loss counts the grids after so many, unless the recipe says otherwise."""

Draw: TypeAlias = "Callable[[int, Rank], tuple[Tensor, Tensor]]"
"""Gives a process its clips of a step: ids `b t s` and normalised states `b t n`."""


@dataclass(frozen=True, slots=True)
class LikelihoodRecipe:
    """The recipe of one run over clips of `num_grids`; `batch_size` clips a step are shared out among the processes.

    A clip's states are dropped (set to the training mean) with `state_dropout`, so that zeroed states are no
    surprise. `own_input` is the final share of input ids drawn from the model itself, growing linearly from none.
    The held-out loss counts the grids after `context_grids`. `micro_batch` clips are in memory at a time, all of a
    process's where it is None. `is_half` runs forwards in bfloat16; weights and their averages stay float32.
    """

    model: StConfig = field(default_factory=eve_tabletop_st_config)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=6_000, lr=1.5e-3, warmup_steps=200))
    batch_size: int = 12
    num_grids: int = 16
    state_dropout: float = 0.1
    own_input: float = 0.0
    weight_decay: float = 0.05
    context_grids: int = CONTEXT
    micro_batch: int | None = None
    is_half: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class TokenClips:
    """Episodes e as ids int32 `e t s` and normalised states float32 `e t n`, cut into clips of `length` grids."""

    ids: Tensor
    states: Tensor
    length: int

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Draw `count` clips: ids `b t s` and states `b t n`."""
        episodes = rng.integers(len(self.ids), size=count)
        starts = rng.integers(self.ids.shape[1] - self.length + 1, size=count)
        return self.cut(episodes, starts)

    def cut(self, episodes: np.ndarray, starts: np.ndarray) -> tuple[Tensor, Tensor]:
        """Cut the clips that begin at `starts`."""
        rows = torch.from_numpy(np.asarray(starts))[:, None] + torch.arange(self.length)
        columns = torch.from_numpy(np.asarray(episodes))[:, None]
        return self.ids[columns, rows].long(), self.states[columns, rows]


@torch.no_grad()
def tokenize_episodes(tokenizer: FrameTokenizer, data: EpisodeTensors) -> Tensor:
    """Return every frame's ids, int32 `e t s`."""
    tokenizer.eval()
    return torch.stack([tokenizer.tokenize(to_input(frames)).int() for frames in data.frames])


def likelihood_loss(
    model: StTransformer, ids: Tensor, states: Tensor, recipe: LikelihoodRecipe, own: float, generator: torch.Generator
) -> Tensor:
    """Return nats per token of clips `b t s`, each next grid from those before; `own` of the inputs are drawn."""
    is_kept = torch.rand(len(ids), 1, 1, generator=generator) >= recipe.state_dropout
    states = states * is_kept.to(states.device)
    inputs = ids[:, :-1]
    if own > 0:
        inputs = with_own_draws(model, inputs, states, own, generator)
    return nats_per_token(model.head, model(inputs, states), ids[:, 1:]).mean()


def nats_per_token(head: Head, hidden: Tensor, ids: Tensor, *, logits_at_once: int = LOGITS_AT_ONCE) -> Tensor:
    """Return the nats `...` of ids at hidden states `... d`.

    A paper-size clip has 330 million logits, so more than `logits_at_once` are made slice by slice, and once more for
    the gradients.
    """
    size = tokens_at_once(max(head.factors), logits_at_once)
    if ids.numel() <= size:
        return -head.log_probability(hidden, ids)
    slices = zip(torch.split(hidden.flatten(0, -2), size), torch.split(ids.flatten(), size), strict=True)
    parts = [checkpoint(head.log_probability, *part, use_reentrant=False) for part in slices]
    return -torch.cat(parts).reshape(ids.shape)


@torch.no_grad()
def with_own_draws(
    model: StTransformer, inputs: Tensor, states: Tensor, share: float, generator: torch.Generator
) -> Tensor:
    """Replace a share of the input ids `b t s`, after the first grid, by draws from the model's own predictions."""
    drawn = model.head.sample(model(inputs, states)[:, :-1], generator)
    is_own = (torch.rand(drawn.shape, generator=generator) < share).to(drawn.device)
    return torch.cat([inputs[:, :1], torch.where(is_own, drawn, inputs[:, 1:])], dim=1)


def train_likelihood(
    recipe: LikelihoodRecipe,
    tokenizer: FrameTokenizer,
    train: EpisodeTensors,
    validation: EpisodeTensors,
    folder: Path,
) -> Iterator[Progress]:
    """Train and leave `likelihood.pt` (averaged weights) and `recipe.json` in the folder; yields progress.

    The tokenizer is first rounded to half precision, as bundles store it, so that the ids are those that will be
    served. Tokenized episodes are kept in `ids.pt`, for a resumed run; raises DatasetError when they are of other
    episodes, or when episodes are shorter than a clip.
    """
    for data in (train, validation):
        if data.num_frames < recipe.num_grids:
            raise DatasetError(f"episodes have {data.num_frames} frames; a clip needs {recipe.num_grids}")
    if Rank.join().is_first:
        write_json(folder / RECIPE_FILE, asdict(recipe))
    round_to_half(tokenizer)
    statistics = state_statistics(train.states)
    clips = token_clips(kept_ids(tokenizer, train, folder / "ids.pt"), train, statistics, recipe.num_grids)
    held_out = token_clips(tokenize_episodes(tokenizer, validation), validation, statistics, recipe.num_grids)

    def draw(step: int, rank: Rank) -> tuple[Tensor, Tensor]:
        return clips.draw(step_rng(recipe.loop.seed, step, rank.index), recipe.batch_size // rank.count)

    trainer = token_trainer(recipe, statistics, folder)
    yield from run_token_model(trainer, recipe, draw, held_out)
    if not trainer.rank.is_first:
        return
    trainer.save_facts(train, recipe.batch_size)
    torch.save(trainer.ema.state_dict(), folder / LIKELIHOOD_FILE)


def token_trainer(
    recipe: LikelihoodRecipe, statistics: Mapping[str, list[float]], folder: Path, device: torch.device | None = None
) -> Trainer[StTransformer]:
    """Make a recipe's model, with the training states' statistics, and what trains it; on the processor by default."""
    torch.manual_seed(recipe.loop.seed)
    model = StTransformer(recipe.model)
    model.states_mean.copy_(torch.tensor(statistics["mean"]))
    model.states_std.copy_(torch.tensor(statistics["std"]).clamp(min=1e-6))
    model.to(device or torch.device("cpu"))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.loop.lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    return Trainer(model, [optimizer], recipe.loop, folder)


def run_token_model(
    trainer: Trainer[StTransformer], recipe: LikelihoodRecipe, draw: Draw, held_out: TokenClips | None
) -> Iterator[Progress]:
    """Train to the end on what `draw` gives, yielding progress; without held-out clips there are no metrics."""
    device = trainer.model.states_mean.device

    def loss(model: StTransformer, step: int, generator: torch.Generator) -> Iterator[Tensor]:
        ids, states = draw(step, trainer.rank)
        own = recipe.own_input * step / recipe.loop.steps
        size = recipe.micro_batch or len(ids)
        for some, rows in zip(torch.split(ids, size), torch.split(states, size), strict=True):
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.is_half):
                nats = likelihood_loss(model, some.to(device), rows.to(device), recipe, own, generator)
            yield nats * (len(some) / len(ids))

    def evaluate(model: StTransformer) -> dict[str, float]:
        if held_out is None:
            return {}
        return evaluate_likelihood(model, held_out, context=recipe.context_grids)

    return trainer.run(loss, evaluate)


def spread_clips(clips: TokenClips, count: int) -> tuple[Tensor, Tensor]:
    """Return the same `count` clips every time, spread over episodes: ids `b t s` and states `b t n`."""
    episodes = np.arange(count) % len(clips.ids)
    return clips.cut(episodes, (np.arange(count) * 7) % (clips.ids.shape[1] - clips.length + 1))


@torch.no_grad()
def evaluate_likelihood(
    model: StTransformer, clips: TokenClips, count: int = 40, *, context: int = CONTEXT
) -> dict[str, float]:
    """Return held-out nats per token after the context grids: teacher forced, and the same with zeroed states."""
    device = model.states_mean.device
    ids, states = (part.to(device) for part in spread_clips(clips, count))
    report = {}
    for name, given in (("true", states), ("zero", torch.zeros_like(states))):
        parts = []
        for some, rows in zip(torch.split(ids, 8), torch.split(given, 8), strict=True):
            hidden = model(some[:, :-1], rows)[:, context - 1 :]
            parts.append(nats_per_token(model.head, hidden, some[:, context:]))
        report[f"{name}_nats"] = float(torch.cat(parts).mean())
    return report


def token_clips(ids: Tensor, data: EpisodeTensors, statistics: Mapping[str, list[float]], length: int) -> TokenClips:
    """Put ids `e t s` and the episodes' states, normalised by the training states' statistics, together."""
    mean, std = (torch.tensor(statistics[name]) for name in ("mean", "std"))
    return TokenClips(ids, (torch.from_numpy(data.states) - mean) / std.clamp(min=1e-6), length)


def kept_ids(tokenizer: FrameTokenizer, data: EpisodeTensors, path: Path) -> Tensor:
    """Read the ids of a data set from a file, or tokenize it and write them. Raises DatasetError for other episodes."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".partial{os.getpid()}")  # every process of a run makes its own
        torch.save(tokenize_episodes(tokenizer, data), partial)
        partial.replace(path)
    ids: Tensor = torch.load(path, weights_only=True)
    if ids.shape[:2] != data.frames.shape[:2]:
        raise DatasetError(f"{path.name} was made from other episodes; train into another folder")
    return ids
