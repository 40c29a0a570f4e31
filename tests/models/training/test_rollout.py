"""Rollout training on moving squares: it learns, and draws times and drops states as its recipe says."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from foreframe_engines.errors import DatasetError
from foreframe_models.autoencoder import AutoencoderConfig, FrameAutoencoder
from foreframe_models.rollout import RolloutConfig, RolloutModel, Target
from foreframe_models.training.data import EpisodeTensors, state_statistics, to_input
from foreframe_models.training.loop import LoopConfig, Progress
from foreframe_models.training.muon import Muon
from foreframe_models.training.rollout import (
    ROLLOUT_FILE,
    STATISTICS_FILE,
    Batch,
    RolloutRecipe,
    build_optimizers,
    draw_times,
    flow_loss,
    near_objects,
    train_rollout,
)

MakeConfig = Callable[..., RolloutConfig]


def moving_squares(num_episodes: int = 8, num_frames: int = 16) -> EpisodeTensors:
    """Squares on circles; the states hold where a square is, how fast it goes, and its colour."""
    rng = np.random.default_rng(0)
    frames = np.full((num_episodes, num_frames, 16, 16, 3), 40, np.uint8)
    states = np.zeros((num_episodes, num_frames, 6), np.float32)
    for episode in range(num_episodes):
        phase, speed, grey = rng.uniform(0, 6.28), rng.uniform(0.2, 0.5), rng.integers(120, 256)
        for frame in range(num_frames):
            angle = phase + speed * frame
            x, y = int(6 + 5 * np.cos(angle)), int(6 + 5 * np.sin(angle))
            frames[episode, frame, y : y + 5, x : x + 5] = grey
            states[episode, frame] = x / 8, y / 8, np.cos(angle), np.sin(angle), speed, grey / 255
    return EpisodeTensors(frames, states, (frames[..., 0] > 40).astype(np.uint8))


@pytest.fixture(scope="module")
def episodes() -> EpisodeTensors:
    return moving_squares()


@pytest.fixture(scope="module")
def autoencoder(episodes: EpisodeTensors) -> FrameAutoencoder:
    torch.manual_seed(0)
    model = FrameAutoencoder(AutoencoderConfig(channels=8, widths=(8, 16, 24), decoder_depth=1))
    frames = to_input(episodes.frames.reshape(-1, 16, 16, 3))
    model.start_as_pca(frames)
    model.fit_scale(frames)
    return model.eval()


@pytest.fixture
def recipe(make_config: MakeConfig) -> RolloutRecipe:
    loop = LoopConfig(steps=60, lr=3e-3, warmup_steps=10, ema_decay=0.9, log_every=1, evaluate_every=60)
    return RolloutRecipe(model=make_config(), loop=loop, batch_size=8)


def mean_loss(moments: list[Progress]) -> float:
    return float(np.mean([moment.loss for moment in moments]))


@pytest.mark.parametrize("target", list(Target))
def test_a_few_steps_lower_the_loss(
    make_config: MakeConfig, recipe: RolloutRecipe, target: Target, autoencoder: FrameAutoencoder, tmp_path: Path
) -> None:
    recipe = replace(recipe, model=make_config(target=target))
    moments = list(train_rollout(recipe, autoencoder, moving_squares(), moving_squares(), tmp_path))
    assert mean_loss(moments[-10:]) < 0.7 * mean_loss(moments[:10])
    metrics = moments[-1].metrics
    assert set(metrics) == {"copy_last", *(f"{a}_{b}" for a in ("mean", "sample", "zero") for b in ("first", "last"))}
    if target is Target.CLEAN:
        assert metrics["mean_last"] > metrics["copy_last"]


def test_a_run_leaves_recipe_statistics_and_weights(
    recipe: RolloutRecipe, autoencoder: FrameAutoencoder, episodes: EpisodeTensors, tmp_path: Path
) -> None:
    short = replace(recipe, loop=replace(recipe.loop, steps=3))
    progress = train_rollout(short, autoencoder, episodes, episodes, tmp_path)
    next(progress)
    assert json.loads((tmp_path / STATISTICS_FILE).read_text()) == state_statistics(episodes.states)
    written = json.loads((tmp_path / "recipe.json").read_text())
    assert written["model"]["target"] == "clean"
    assert written["model"]["transformer"]["patch_size"] == [2, 1, 1]
    assert written["loop"]["steps"] == 3
    list(progress)
    model = RolloutModel(short.model)
    model.load_state_dict(torch.load(tmp_path / ROLLOUT_FILE, weights_only=True))
    np.testing.assert_allclose(model.states_mean, episodes.states.mean((0, 1)), atol=1e-5)
    assert json.loads((tmp_path / "facts.json").read_text())["steps"] == 3


def test_latents_of_other_episodes_are_refused(
    recipe: RolloutRecipe, autoencoder: FrameAutoencoder, episodes: EpisodeTensors, tmp_path: Path
) -> None:
    short = replace(recipe, loop=replace(recipe.loop, steps=1))
    list(train_rollout(short, autoencoder, episodes, episodes, tmp_path))
    with pytest.raises(DatasetError, match="other episodes"):
        list(train_rollout(short, autoencoder, moving_squares(4), episodes, tmp_path))


def test_episodes_shorter_than_a_clip_are_refused(
    recipe: RolloutRecipe, autoencoder: FrameAutoencoder, episodes: EpisodeTensors, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match="a clip needs 6"):
        next(train_rollout(recipe, autoencoder, moving_squares(num_frames=5), episodes, tmp_path))


def test_a_share_of_the_times_is_exactly_noise_and_the_rest_is_logistic_normal(recipe: RolloutRecipe) -> None:
    times = draw_times(recipe, 20_000, torch.Generator().manual_seed(0))
    is_noise = times == 1.0
    assert is_noise.float().mean() == pytest.approx(recipe.pure_noise_share, abs=0.01)
    logits = times[~is_noise].double().logit()
    assert logits.mean() == pytest.approx(recipe.time_mean, abs=0.03)
    assert logits.std() == pytest.approx(recipe.time_std, abs=0.03)


def batch_of(latents: Tensor, states: Tensor) -> Batch:
    return Batch(latents, states, torch.zeros(len(latents), *latents.shape[-2:], dtype=torch.bool))


class RecordingModel(RolloutModel):
    """Notes the states it is conditioned on."""

    def condition(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        self.seen = states
        return super().condition(states)


@pytest.mark.parametrize("share", [0.1, 0.0, 1.0])
def test_states_are_dropped_as_often_as_configured(recipe: RolloutRecipe, share: float) -> None:
    model = RecordingModel(recipe.model)
    generator = torch.Generator().manual_seed(0)
    latents, states = torch.randn(4000, 6, 8, 2, 2, generator=generator), torch.ones(4000, 6, 6)
    with torch.no_grad():
        flow_loss(model, batch_of(latents, states), replace(recipe, state_dropout=share), generator)
    kept = model.seen.flatten(1)
    assert ((kept == 0).all(1) | (kept == 1).all(1)).all()  # a clip loses all of its states or none
    assert (kept == 0).all(1).float().mean() == pytest.approx(share, abs=0.015)


def test_the_loss_sees_the_future_alone_and_weighs_clean_times_more(recipe: RolloutRecipe) -> None:
    model = RolloutModel(recipe.model).eval()
    torch.nn.init.zeros_(model.transformer.proj_out.weight)
    torch.nn.init.zeros_(model.transformer.proj_out.bias)
    latents = torch.zeros(1, 6, 8, 2, 2)
    latents[:, 2:] = 1.0  # an empty head copies the last context latent, so each future value is wrong by 1
    for is_noise, expected in ((1.0, 1.0), (0.0, None)):
        chosen = replace(recipe, pure_noise_share=is_noise, time_mean=-9.0, time_std=0.0)
        batch = batch_of(latents, torch.zeros(1, 6, 6))
        loss = flow_loss(model, batch, chosen, torch.Generator().manual_seed(0)).item()
        assert loss == pytest.approx(recipe.max_loss_weight if expected is None else expected)


def test_errors_near_uncertain_objects_count_more_and_the_scale_of_the_loss_stays(recipe: RolloutRecipe) -> None:
    model = RolloutModel(recipe.model).eval()
    torch.nn.init.zeros_(model.transformer.proj_out.weight)
    torch.nn.init.zeros_(model.transformer.proj_out.bias)
    latents = torch.zeros(1, 6, 8, 2, 2)
    latents[:, 2:, :, 0, 0] = 1.0  # wrong by 1 in one cell of four
    noise_only = replace(recipe, pure_noise_share=1.0, uncertain_weight=4.0)
    losses = []
    for cell in ((0, 0), (1, 1)):
        is_uncertain = torch.zeros(1, 2, 2, dtype=torch.bool)
        is_uncertain[:, *cell] = True
        batch = Batch(latents, torch.zeros(1, 6, 6), is_uncertain)
        losses.append(flow_loss(model, batch, noise_only, torch.Generator().manual_seed(0)).item())
    assert losses == pytest.approx([0.25 * 5 / 2, 0.25 * 1 / 2])


def test_cells_are_near_an_object_up_to_half_a_cell_away() -> None:
    masks = np.zeros((1, 1, 32, 32), np.uint8)
    masks[0, 0, 12, 12] = 2
    near = near_objects(masks, 8)
    assert near.shape == (1, 1, 4, 4)
    assert near[0, 0].nonzero().tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert not near_objects(np.zeros_like(masks), 8).any()


def test_the_blocks_matrices_go_to_muon_and_each_parameter_to_one_optimiser(recipe: RolloutRecipe) -> None:
    model = RolloutModel(recipe.model)
    adamw, muon = build_optimizers(model, recipe)
    assert isinstance(muon, Muon)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    given = [[names[id(p)] for group in opt.param_groups for p in group["params"]] for opt in (adamw, muon)]
    assert sorted(given[0] + given[1]) == sorted(names.values())
    assert all(".blocks." in name and name.endswith(".weight") and "norm" not in name for name in given[1])
    assert len(given[1]) == 2 * (4 + 4 + 2)
    assert len(build_optimizers(model, replace(recipe, is_muon=False))) == 1
