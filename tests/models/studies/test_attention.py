"""Sprites move as they say they do, both kinds of attention learn from them, and costs are measured."""

from pathlib import Path

import numpy as np
import pytest
import torch

from foreframe_models.st_transformer import Span, StTransformer
from foreframe_models.studies.attention import (
    SPEEDS,
    evaluate_sprites,
    load_trained,
    measure_costs,
    sprite_config,
    train_on_sprites,
)
from foreframe_models.studies.sprites import NUM_SPRITES, SIDE, draw_sprites
from foreframe_models.training.loop import LoopConfig, read_evaluations


@pytest.mark.parametrize("speed", SPEEDS)
def test_a_sprite_keeps_its_velocity(speed: int) -> None:
    clip = draw_sprites(np.random.default_rng(0), 200, 4, (speed,))
    last = NUM_SPRITES  # nothing hides the last sprite
    places = np.argwhere(clip.ids == last)[:, 2].reshape(200, 4)
    cells = np.stack([places // SIDE, places % SIDE], axis=-1)
    moves = (np.diff(cells, axis=1) + SIDE // 2) % SIDE - SIDE // 2
    assert (moves == moves[:, :1]).all()
    assert (np.abs(moves).max(axis=-1) == speed).all()
    assert len(np.unique(moves[:, 0], axis=0)) == (1 if speed == 0 else 8 * speed)


def test_the_same_seed_draws_the_same_clips() -> None:
    first, second = (draw_sprites(np.random.default_rng(3), 2, 5, SPEEDS) for _ in range(2))
    np.testing.assert_array_equal(first.ids, second.ids)


@pytest.mark.parametrize("span", list(Span))
def test_training_lowers_the_loss_on_sprites(span: Span, tmp_path: Path) -> None:
    torch.manual_seed(0)
    untrained = evaluate_sprites(StTransformer(sprite_config(span)), count=2)
    loop = LoopConfig(steps=8, lr=5e-3, warmup_steps=2, ema_decay=0.5, log_every=8, evaluate_every=8)
    (moment,) = train_on_sprites(span, loop, tmp_path, num_held_out=2)
    assert untrained.keys() == moment.metrics.keys() == {str(speed) for speed in SPEEDS}
    assert moment.loss < 1.0 < np.log(4)
    (evaluated,) = read_evaluations(tmp_path)
    assert evaluated.metrics == pytest.approx(moment.metrics, abs=1e-3)
    assert evaluate_sprites(load_trained(sprite_config(span), tmp_path), 2) == pytest.approx(moment.metrics, abs=1e-6)


def test_costs_are_measured_for_both_spans() -> None:
    costs = measure_costs(sprite_config(Span.FULL), (1, 8))
    assert [(cost.num_grids, cost.span) for cost in costs] == [(n, span) for n in (1, 8) for span in Span]
    assert all(cost.seconds > 0 for cost in costs)
    short, _, long, _ = (cost.kept_mib for cost in costs)
    assert 6 < long / short < 9  # eight times the tokens, and a little that does not grow
