"""The flow: what a step moves, how velocity and clean latents relate, and what the switches add."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from foreframe_models.rollout import RolloutConfig, RolloutModel, Target, eve_tabletop_config
from foreframe_models.state_branch import Combination

MakeModel = Callable[..., RolloutModel]
MakeConfig = Callable[..., RolloutConfig]
CONTEXT = 2
SWITCHES = [
    {"target": Target.CLEAN},
    {"target": Target.VELOCITY},
    {"target": Target.VELOCITY, "is_residual": False, "is_mapped": False},
]


def times(value: float, count: int = 2, length: int = 6) -> Tensor:
    row = torch.full((count, length), value)
    row[:, :CONTEXT] = 0.0
    return row


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(2, 6, 8, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def states() -> Tensor:
    return torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("switches", SWITCHES)
def test_a_step_never_moves_the_context(
    make_model: MakeModel, switches: dict[str, object], latents: Tensor, states: Tensor
) -> None:
    model = make_model(**switches)
    moved = model.step(latents, times(0.7), times(0.3), *model.condition(states))
    assert torch.equal(moved[:, :CONTEXT], latents[:, :CONTEXT])
    assert (moved[:, CONTEXT:] != latents[:, CONTEXT:]).all()


@torch.no_grad()
@pytest.mark.parametrize("switches", SWITCHES)
def test_one_step_from_noise_to_data_is_the_posterior_mean(
    make_model: MakeModel, switches: dict[str, object], latents: Tensor, states: Tensor
) -> None:
    model = make_model(**switches)
    tables = model.condition(states)
    stepped = model.step(latents, times(1.0), times(0.0), *tables)
    clean = model.clean(latents, times(1.0), *tables)
    torch.testing.assert_close(stepped[:, CONTEXT:], clean[:, CONTEXT:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("time", [1.0, 0.5, 0.05])
def test_velocity_and_clean_latents_say_the_same(
    make_model: MakeModel, switches: dict[str, object], time: float, latents: Tensor, states: Tensor
) -> None:
    model = make_model(**switches)
    tables = model.condition(states)
    velocity = model.velocity(latents, times(time), *tables)
    clean = model.clean(latents, times(time), *tables)
    expected = latents - time * velocity
    torch.testing.assert_close(clean[:, CONTEXT:], expected[:, CONTEXT:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_empty_head_copies_the_last_context_latent_only_with_the_residual(
    make_model: MakeModel, latents: Tensor, states: Tensor
) -> None:
    last = latents[:, CONTEXT - 1 : CONTEXT].expand(-1, 4, -1, -1, -1)
    for is_residual in (True, False):
        model = make_model(is_residual=is_residual)
        model.transformer.proj_out.weight.zero_()
        model.transformer.proj_out.bias.zero_()
        clean = model.clean(latents, times(1.0), *model.condition(states))[:, CONTEXT:]
        assert torch.equal(clean, last if is_residual else torch.zeros_like(last))


@torch.no_grad()
def test_members_of_one_batch_do_not_mix(make_model: MakeModel, latents: Tensor, states: Tensor) -> None:
    model = make_model()
    tables = model.condition(states)
    together = model.step(latents, times(1.0), times(0.5), *tables)
    for index in range(2):
        row = slice(index, index + 1)
        own = [None if table is None else table[row] for table in tables]
        alone = model.step(latents[row], times(1.0, 1), times(0.5, 1), *own)
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_states_move_the_prediction(make_model: MakeModel, latents: Tensor, states: Tensor) -> None:
    model = make_model()
    one = model.clean(latents, times(1.0), *model.condition(states))
    other = model.clean(latents, times(1.0), *model.condition(states + 1.0))
    assert (one - other).abs().max() > 1e-3


def test_normalised_states_are_deviations_from_the_training_mean(make_model: MakeModel) -> None:
    model = make_model()
    model.states_mean.fill_(2.0)
    model.states_std.fill_(4.0)
    assert torch.equal(model.normalise(torch.full((1, 2, 6), 10.0)), torch.full((1, 2, 6), 2.0))


def test_the_papers_switches_are_the_default() -> None:
    config = RolloutConfig()
    assert (config.is_residual, config.state.is_mapped, config.target) == (False, False, Target.VELOCITY)
    assert (config.num_latents, config.state.strides) == (6, (2, 2))


@torch.no_grad()
def test_the_untrained_embedded_model_predicts_something_finite() -> None:
    torch.manual_seed(0)
    config = eve_tabletop_config()
    model = RolloutModel(config).eval()
    latents = torch.randn(1, config.num_latents, 32, *config.latent_size)
    time = torch.cat([torch.zeros(1, 4), torch.ones(1, 8)], dim=1)
    future = model.step(latents, time, time * 0.0, *model.condition(torch.randn(1, 12, 25)))
    assert future.shape == latents.shape
    assert future.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("combination", Combination)
def test_an_untrained_state_branch_leaves_the_base_as_it_is_bit_for_bit(
    make_config: MakeConfig, latents: Tensor, states: Tensor, combination: Combination
) -> None:
    torch.manual_seed(0)
    config = make_config(is_residual=False, is_mapped=False, target=Target.VELOCITY)
    model = RolloutModel(replace(config, state=replace(config.state, combination=combination))).eval()
    time = times(0.7)
    alone = model.transformer(latents.transpose(1, 2), model.frame_timesteps(time), model.prompt).transpose(1, 2)
    assert torch.equal(model.velocity(latents, time, *model.condition(states)), alone)
    tables = model.state_branch.robot_modulation
    tables[1].add_(0.1)
    model.state_branch.r_projection[1].bias.add_(0.1)
    assert not torch.equal(model.velocity(latents, time, *model.condition(states)), alone)


def test_the_papers_setup_has_21_rows_of_states_and_1536_tokens() -> None:
    config = replace(RolloutConfig(), num_state_rows=21)
    assert config.state_rows == 21
    assert config.state.num_latents(config.state_rows) == config.num_latents == 6
    assert config.token_grid == (6, 16, 16)
    assert eve_tabletop_config().state_rows == 12


def test_a_model_is_guidable_where_another_branch_says_something_else(make_config: MakeConfig) -> None:
    config = make_config()
    assert not RolloutModel(config).is_guidable
    assert RolloutModel(replace(config, state=replace(config.state, has_no_states_token=True))).is_guidable
    texted = RolloutModel(replace(config, has_negative_prompt=True))
    assert not texted.is_guidable
    assert texted.negative_prompt is not None
    texted.negative_prompt[0, 0] = 1.0
    assert texted.is_guidable
    assert "negative_prompt" in texted.state_dict()
    assert "negative_prompt" not in RolloutModel(config).state_dict()
