"""Training finds a rule that copying cannot know, uses the states, resumes exactly, and draws its own inputs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from foreframe_engines.errors import DatasetError
from foreframe_models.precision import round_to_half
from foreframe_models.st_transformer import StConfig, StTransformer
from foreframe_models.state_branch import StateBranchConfig
from foreframe_models.training.data import EpisodeTensors
from foreframe_models.training.likelihood import (
    LIKELIHOOD_FILE,
    LikelihoodRecipe,
    TokenClips,
    likelihood_loss,
    tokenize_episodes,
    train_likelihood,
    with_own_draws,
)
from foreframe_models.training.loop import LoopConfig

MODEL = StConfig(
    StateBranchConfig(num_states=2, raw_states=(), hidden=16),
    num_layers=1,
    num_heads=2,
    width=24,
    tokens=4,
    factors=(4, 6),
    factor_hidden=8,
)
RECIPE = LikelihoodRecipe(
    model=MODEL,
    loop=LoopConfig(steps=60, lr=1e-2, warmup_steps=5, ema_decay=0.9, log_every=20, evaluate_every=60),
    batch_size=8,
    num_grids=6,
)


def blinking_episodes() -> EpisodeTensors:
    """Plain frames whose brightness is the state of the same moment: nothing before it tells."""
    rng = np.random.default_rng(0)
    level = rng.integers(0, 2, (6, 12))
    frames = np.broadcast_to((40 + 170 * level)[..., None, None, None], (6, 12, 16, 16, 3)).astype(np.uint8)
    states = np.stack([level, rng.random((6, 12))], axis=-1).astype(np.float32)
    return EpisodeTensors(frames, states, frames[..., 0])


def test_training_learns_what_the_states_decide(tokenizer, tmp_path: Path) -> None:
    episodes = blinking_episodes()
    moments = list(train_likelihood(RECIPE, tokenizer, episodes, episodes, tmp_path))
    assert moments[-1].metrics["true_nats"] < 0.3
    assert moments[-1].metrics["zero_nats"] > moments[-1].metrics["true_nats"] + 0.3
    weights = torch.load(tmp_path / LIKELIHOOD_FILE, weights_only=True)
    StTransformer(MODEL).load_state_dict(weights)


def test_a_resumed_run_is_an_uninterrupted_one(tokenizer, tmp_path: Path) -> None:
    episodes = blinking_episodes()
    whole = replace(RECIPE, loop=replace(RECIPE.loop, steps=4, checkpoint_every=2), own_input=0.5)
    list(train_likelihood(whole, tokenizer, episodes, episodes, tmp_path / "whole"))
    run = train_likelihood(
        replace(whole, loop=replace(whole.loop, log_every=1)), tokenizer, episodes, episodes, tmp_path / "cut"
    )
    for moment in run:
        if moment.step == 3:
            break
    run.close()
    list(train_likelihood(whole, tokenizer, episodes, episodes, tmp_path / "cut"))
    first, second = (torch.load(tmp_path / name / LIKELIHOOD_FILE, weights_only=True) for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_ids_come_from_the_weights_that_ship(tokenizer, tmp_path: Path) -> None:
    episodes = blinking_episodes()
    one = replace(RECIPE, loop=replace(RECIPE.loop, steps=1))
    list(train_likelihood(one, tokenizer, episodes, episodes, tmp_path))
    round_to_half(tokenizer)
    expected = tokenize_episodes(tokenizer, episodes)
    assert torch.equal(torch.load(tmp_path / "ids.pt", weights_only=True), expected)


def test_own_draws_replace_ids_but_never_the_first_grid() -> None:
    torch.manual_seed(0)
    model = StTransformer(MODEL)
    ids, states = torch.full((64, 5, 4), 23), torch.zeros(64, 6, 2)
    mixed = with_own_draws(model, ids, states, 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(mixed[:, 0], ids[:, 0])
    share = float((mixed[:, 1:] != 23).float().mean())
    assert 0.3 < share < 0.55  # half are drawn, and a few draws hit the true id
    assert torch.equal(with_own_draws(model, ids, states, 0.0, torch.Generator()), ids)


def test_the_loss_counts_every_grid_but_the_first() -> None:
    torch.manual_seed(0)
    model = StTransformer(MODEL)
    ids, states = torch.randint(24, (2, 6, 4)), torch.randn(2, 6, 2)
    recipe = replace(RECIPE, state_dropout=0.0)
    loss = likelihood_loss(model, ids, states, recipe, 0.0, torch.Generator())
    expected = -model.head.log_probability(model(ids[:, :-1], states), ids[:, 1:]).mean()
    assert torch.equal(loss, expected)


def test_clips_are_cut_where_they_are_said_to_begin() -> None:
    ids = torch.arange(2 * 7 * 4).reshape(2, 7, 4).int()
    clips = TokenClips(ids, ids[..., :2].float(), length=3)
    cut, states = clips.cut(np.array([1, 0]), np.array([4, 2]))
    assert torch.equal(cut[0], ids[1, 4:7].long())
    assert torch.equal(states[1], ids[0, 2:5, :2].float())


def test_episodes_shorter_than_a_clip_are_refused(tokenizer, tmp_path: Path) -> None:
    episodes = blinking_episodes()
    with pytest.raises(DatasetError, match="12 frames; a clip needs 13"):
        list(train_likelihood(replace(RECIPE, num_grids=13), tokenizer, episodes, episodes, tmp_path))
