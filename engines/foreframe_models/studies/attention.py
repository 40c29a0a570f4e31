"""Factorised against full space-time attention: the same weights, data and number of steps; what is lost and saved.

Both kinds of block have the same parameters. Full attention lets every token see every earlier place at once;
factorised attention sees its grid, then its own place's past (arXiv 2510.07092 chose the second).
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from foreframe_models.st_transformer import Span, StConfig, StTransformer
from foreframe_models.state_branch import StateBranchConfig
from foreframe_models.studies.sprites import SIDE, VOCABULARY, SpriteClip, draw_sprites
from foreframe_models.training.data import step_rng
from foreframe_models.training.likelihood import (
    CONTEXT,
    LikelihoodRecipe,
    TokenClips,
    evaluate_likelihood,
    likelihood_loss,
    spread_clips,
)
from foreframe_models.training.loop import LoopConfig, Progress, Trainer

CLIP_GRIDS = 8
BATCH_SIZE = 8
SPRITE_CONTEXT = 2
"""Two grids show a velocity; what follows is then certain."""

SPEEDS = (0, 1, 2, 3)
NUM_TIMINGS = 3
EVALUATE_EVERY = 100


@dataclass(frozen=True, slots=True)
class Cost:
    """What one training step on one clip of `num_grids` takes; `kept_mib` is what it keeps for the backward pass."""

    span: Span
    num_grids: int
    seconds: float
    kept_mib: float


def token_config(span: Span) -> StConfig:
    """Return a smaller model of the embedded world's tokens, so that both kinds can be trained in minutes."""
    state = StateBranchConfig(hidden=96, is_mapped=True, map_hidden=96)
    return StConfig(state, num_layers=4, num_heads=3, width=96, tokens=64, factors=(512, 125), span=span)


def sprite_config(span: Span) -> StConfig:
    """Return the small model of the stress test."""
    state = StateBranchConfig(num_states=1, raw_states=(), hidden=16)
    return StConfig(state, num_layers=4, num_heads=4, width=64, tokens=SIDE * SIDE, factors=(VOCABULARY,), span=span)


def train_on_tokens(
    span: Span, train: TokenClips, held_out: TokenClips, loop: LoopConfig, folder: Path
) -> Iterator[Progress]:
    """Train on a world's tokens as `foreframe train likelihood` does, or go on with the folder's; yields progress."""
    recipe = LikelihoodRecipe(model=token_config(span), loop=loop, batch_size=BATCH_SIZE, num_grids=CLIP_GRIDS)
    trainer = _new_trainer(recipe.model, loop, folder)

    def loss(model: StTransformer, step: int, generator: torch.Generator) -> Tensor:
        ids, states = train.draw(step_rng(loop.seed, step), BATCH_SIZE)
        return likelihood_loss(model, ids, states, recipe, 0.0, generator)

    yield from trainer.run(loss, lambda model: evaluate_likelihood(model, held_out))


@torch.no_grad()
def clip_nats(model: StTransformer, clips: TokenClips, count: int) -> Float64[np.ndarray, " n"]:
    """Return held-out nats per token of each of `count` clips, after the context; clip n is of episode n modulo all."""
    ids, states = spread_clips(clips, count)
    found = [
        -model.head.log_probability(model(some[:, :-1], rows)[:, CONTEXT - 1 :], some[:, CONTEXT:]).mean(dim=(1, 2))
        for some, rows in zip(torch.split(ids, 8), torch.split(states, 8), strict=True)
    ]
    return torch.cat(found).double().numpy()


def train_on_sprites(span: Span, loop: LoopConfig, folder: Path, *, num_held_out: int) -> Iterator[Progress]:
    """Train on sprites of every speed, or go on with the folder's; metrics are nats per sprite's place by speed."""
    trainer = _new_trainer(sprite_config(span), loop, folder)

    def loss(model: StTransformer, step: int, generator: torch.Generator) -> Tensor:
        del generator  # nothing here is random but the clips
        clip = draw_sprites(step_rng(loop.seed, step), BATCH_SIZE, CLIP_GRIDS, SPEEDS)
        return -_sprite_log_probability(model, clip).mean()

    yield from trainer.run(loss, lambda model: evaluate_sprites(model, num_held_out))


def study_loop(steps: int, seed: int) -> LoopConfig:
    """Return how both studies train."""
    return LoopConfig(steps=steps, lr=2e-3, seed=seed, evaluate_every=EVALUATE_EVERY, checkpoint_every=EVALUATE_EVERY)


def load_trained(config: StConfig, folder: Path) -> StTransformer:
    """Load the averaged model of a finished run."""
    model = StTransformer(config)
    model.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["ema"])
    return model.eval()


@torch.no_grad()
def evaluate_sprites(model: StTransformer, count: int) -> dict[str, float]:
    """Return nats per place where a sprite is, after the context, for each speed; the clips are always the same."""
    report = {}
    for speed in SPEEDS:
        clip = draw_sprites(np.random.default_rng((7_000_000, speed)), count, CLIP_GRIDS, (speed,))
        found = _sprite_log_probability(model, clip)[:, SPRITE_CONTEXT - 1 :]
        is_sprite = torch.from_numpy(clip.is_sprite)[:, SPRITE_CONTEXT:]
        report[str(speed)] = -float(found[is_sprite].mean())
    return report


def measure_costs(config: StConfig, lengths: Sequence[int]) -> list[Cost]:
    """Measure a training step of one clip for both spans as clips grow; the spans take turns at every length."""
    models = [StTransformer(replace(config, span=span)) for span in Span]
    return [_measure_cost(model, num_grids) for num_grids in lengths for model in models]


def _new_trainer(config: StConfig, loop: LoopConfig, folder: Path) -> "Trainer[StTransformer]":
    torch.manual_seed(loop.seed)
    model = StTransformer(config)
    adamw = torch.optim.AdamW(model.parameters(), lr=loop.lr, betas=(0.9, 0.98), weight_decay=0.01)
    return Trainer(model, [adamw], loop, folder)


def _measure_cost(model: StTransformer, num_grids: int) -> Cost:
    config = model.config
    ids = torch.zeros(1, num_grids, config.tokens, dtype=torch.int64)
    states = torch.zeros(1, num_grids + 1, config.state.num_states)
    kept, seconds = _kept_bytes(model, ids, states), []
    for _ in range(NUM_TIMINGS):
        started = time.perf_counter()
        _loss(model, ids, states).backward()  # type: ignore[no-untyped-call]
        seconds.append(time.perf_counter() - started)
    return Cost(config.span, num_grids, sorted(seconds)[NUM_TIMINGS // 2], kept / 2**20)


def _kept_bytes(model: StTransformer, ids: Tensor, states: Tensor) -> int:
    """Add up the memory that the forward pass keeps for the backward pass, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = _loss(model, ids, states)  # held until the count is read, so that no address is used twice
    total = sum(kept.values())
    del loss
    return total


def _loss(model: StTransformer, ids: Tensor, states: Tensor) -> Tensor:
    return -model.head.log_probability(model(ids, states), ids).mean()


def _sprite_log_probability(model: StTransformer, clip: SpriteClip) -> Tensor:
    ids = torch.from_numpy(clip.ids)
    states = torch.zeros(len(ids), ids.shape[1], 1)
    return model.head.log_probability(model(ids[:, :-1], states), ids[:, 1:])
