"""Training on tokenised shards: the loss falls, a resumed run is an uninterrupted one, and its model can be opened."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from foreframe_engines.errors import DatasetError, ModelFault
from foreframe_models.config_json import read_config
from foreframe_models.data.token_shards import save_token_shard
from foreframe_models.st_transformer import StConfig
from foreframe_models.state_branch import StateBranchConfig
from foreframe_models.token_checkpoint import TokenCheckpoint
from foreframe_models.training.likelihood import LikelihoodRecipe, evaluate_likelihood
from foreframe_models.training.loop import LoopConfig
from foreframe_models.training.token_shards import (
    ShardData,
    cosmos_recipe,
    num_steps,
    open_data,
    shard_statistics,
    spread,
    train_on_shards,
)

MODEL = StConfig(
    StateBranchConfig(num_states=3, raw_states=(), hidden=16),
    num_layers=1,
    num_heads=2,
    width=24,
    tokens=4,
    factors=(60,),
)
RECIPE = LikelihoodRecipe(
    model=MODEL,
    loop=LoopConfig(steps=60, lr=1e-2, warmup_steps=5, ema_decay=0.9, log_every=10, evaluate_every=60),
    batch_size=8,
    num_grids=6,
    state_dropout=0.0,
    context_grids=3,
    micro_batch=4,
)


def write_shards(folder: Path, seed: int, num_shards: int = 2, windows: int = 12) -> Path:
    """Write recordings whose every grid holds one id, which the states of that grid's frames tell."""
    rng = np.random.default_rng(seed)
    for index in range(num_shards):
        level = rng.integers(0, 2, (windows, 3))
        ids = np.broadcast_to((7 + 40 * level)[..., None, None], (windows, 3, 2, 2)).astype(np.int32)
        by_frame = np.repeat(level.reshape(-1), np.tile([1, 8, 8], windows))
        states = np.stack([by_frame, rng.random(len(by_frame)), np.ones(len(by_frame))], axis=-1)
        save_token_shard(folder, index, ids, states.astype(np.float32), np.zeros(len(states)))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ShardData:
    folder = tmp_path_factory.mktemp("shards")
    return open_data(RECIPE, write_shards(folder / "train", 0), write_shards(folder / "val", 1, 1))


def train(recipe: LikelihoodRecipe, data: ShardData, folder: Path) -> dict[str, torch.Tensor]:
    list(train_on_shards(recipe, data, folder))
    return TokenCheckpoint.load(folder).model.state_dict()


def test_training_learns_what_the_states_tell_and_leaves_a_model(data: ShardData, tmp_path: Path) -> None:
    moments = list(train_on_shards(RECIPE, data, tmp_path))
    assert moments[0].loss > 2.0 * moments[-1].loss
    assert moments[-1].metrics["true_nats"] < 0.3
    assert moments[-1].metrics["zero_nats"] > moments[-1].metrics["true_nats"] + 0.3
    checkpoint = TokenCheckpoint.load(tmp_path)
    held_out = spread(data.held_out, shard_statistics(data.train))
    again = evaluate_likelihood(checkpoint.model, held_out, context=3)
    assert again == moments[-1].metrics
    assert checkpoint.statistics.low.tolist() == pytest.approx([0, 0, 1], abs=0.05)
    assert json.loads((tmp_path / "facts.json").read_text())["clips"] == len(data.train) == 22
    with (tmp_path / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [10, 20, 30, 40, 50, 60]
    assert float(rows[0]["loss"]) > float(rows[-1]["loss"])


def test_a_resumed_run_is_an_uninterrupted_one(data: ShardData, tmp_path: Path) -> None:
    whole = replace(RECIPE, loop=replace(RECIPE.loop, steps=6, checkpoint_every=2, log_every=1), own_input=0.5)
    expected = train(whole, data, tmp_path / "whole")
    run = train_on_shards(whole, data, tmp_path / "cut")
    for moment in run:
        if moment.step == 5:
            break
    run.close()
    found = train(whole, data, tmp_path / "cut")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    other = train(replace(whole, loop=replace(whole.loop, seed=1)), data, tmp_path / "other")
    assert not torch.equal(other["place"], expected["place"])  # equality is not for free


def test_parts_of_a_batch_add_up_to_it(data: ShardData, tmp_path: Path) -> None:
    once = replace(RECIPE, loop=replace(RECIPE.loop, steps=2), micro_batch=None)
    whole, parts = (train(replace(once, micro_batch=size), data, tmp_path / f"{size}") for size in (None, 3))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=2e-4, rtol=1e-3)


def test_half_precision_forwards_train_as_well(data: ShardData, tmp_path: Path) -> None:
    moments = list(train_on_shards(replace(RECIPE, is_half=True), data, tmp_path))
    assert moments[-1].loss < 0.5 * moments[0].loss
    assert TokenCheckpoint.load(tmp_path).model.place.dtype == torch.float32


def test_without_held_out_clips_nothing_is_measured(data: ShardData, tmp_path: Path) -> None:
    once = replace(RECIPE, loop=replace(RECIPE.loop, steps=1))
    (moment,) = train_on_shards(once, ShardData(data.train), tmp_path)
    assert moment.metrics == {}


def test_a_run_does_not_go_on_with_other_data(data: ShardData, tmp_path: Path) -> None:
    once = replace(RECIPE, loop=replace(RECIPE.loop, steps=1))
    list(train_on_shards(once, data, tmp_path))
    with pytest.raises(DatasetError, match="other data than 11 clips"):
        list(train_on_shards(once, ShardData(data.held_out), tmp_path))


def test_a_run_that_diverges_is_stopped(data: ShardData, tmp_path: Path) -> None:
    wild = replace(RECIPE, loop=replace(RECIPE.loop, lr=float("inf"), warmup_steps=0))
    with pytest.raises(ModelFault, match="the loss of step 2 is nan"):
        list(train_on_shards(wild, data, tmp_path))


def test_a_recipe_is_read_back_from_what_the_run_wrote(data: ShardData, tmp_path: Path) -> None:
    list(train_on_shards(replace(RECIPE, loop=replace(RECIPE.loop, steps=1)), data, tmp_path))
    text = (tmp_path / "recipe.json").read_text()
    assert read_config(LikelihoodRecipe, text, "recipe.json") == replace(RECIPE, loop=replace(RECIPE.loop, steps=1))


def test_eighty_passes_over_the_published_set_are_so_many_steps() -> None:
    recipe = cosmos_recipe()
    assert (recipe.model.num_layers, recipe.model.num_heads, recipe.model.width) == (24, 8, 512)
    assert (recipe.num_grids, recipe.context_grids, recipe.model.tokens) == (6, 3, 1024)
    assert num_steps(80, 635_000, recipe.batch_size) == 99_219
    assert num_steps(0.001, 10, 512) == 1


@pytest.mark.parametrize("changes", [{"num_grids": 4}, {"context_grids": 6}, {"context_grids": 0}])
def test_clips_that_are_no_windows_are_refused(data: ShardData, changes: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not whole windows of 3"):
        open_data(replace(RECIPE, **changes), write_shards(tmp_path, 0), None)


def test_states_of_another_robot_are_refused(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, 0)
    four = replace(RECIPE, model=replace(MODEL, state=replace(MODEL.state, num_states=4)))
    with pytest.raises(DatasetError, match=r"states of video_0\.bin have 3 values, the model takes 4"):
        open_data(four, folder, None)
