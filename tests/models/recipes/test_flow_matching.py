"""What the recipe mixes clips with, and the loss it makes of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from foreframe_models.data.latent_clips import Clips
from foreframe_models.recipes.flow_matching import Disturbed, FlowConfig, FlowObjective, disturb
from foreframe_models.rollout import RolloutConfig, RolloutModel
from foreframe_models.state_branch import StateBranchConfig
from foreframe_models.testing import TOY_WAN

CONTEXT, LATENTS = 2, 6


def toy_model(*, has_token: bool = False) -> RolloutModel:
    torch.manual_seed(0)
    state = StateBranchConfig(hidden=16, has_no_states_token=has_token)
    config = RolloutConfig(TOY_WAN, state, CONTEXT, LATENTS - CONTEXT, (4, 4), prompt_length=3, num_state_rows=21)
    model = RolloutModel(config)
    torch.nn.init.normal_(model.state_branch.r_projection[1].weight, std=0.2)  # type: ignore[union-attr]
    return model


def toy_clips(count: int) -> Clips:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(count, LATENTS, 4, 4, 4, generator=generator)
    return Clips(latents, torch.randn(count, 21, 25, generator=generator))


def test_a_clips_disturbance_depends_on_seed_and_place_alone() -> None:
    clips = toy_clips(4)
    whole = disturb(clips, FlowConfig(state_dropout=0.5), 7, range(10, 14))
    part = disturb(Clips(clips.latents[2:], clips.states[2:]), FlowConfig(state_dropout=0.5), 7, range(12, 14))
    for name in Disturbed.__slots__:
        torch.testing.assert_close(getattr(whole, name)[2:], getattr(part, name), atol=0, rtol=0)
    assert not torch.equal(whole.noise, disturb(clips, FlowConfig(), 8, range(10, 14)).noise)
    assert not torch.equal(whole.noise[0], whole.noise[1])


def test_times_are_the_shifted_table_that_wan_is_trained_on() -> None:
    times = FlowConfig().times()
    assert (len(times), times[0]) == (1000, 1.0)
    # The table of DiffSynth-Studio: sigmas from 1 down in 1,000 steps, shifted 5 s / (1 + 4 s).
    sigmas = np.linspace(1.0, 0.0, 1001)[:-1]
    np.testing.assert_allclose(times, 5 * sigmas / (1 + 4 * sigmas), atol=1e-6)
    drawn = disturb(toy_clips(1), FlowConfig(), 0, [0]).time
    assert drawn.item() in times


def test_drawn_times_are_spread_over_the_table() -> None:
    clips = Clips(torch.zeros(4000, 1, 1, 1, 1), torch.zeros(4000, 1, 1))
    time = disturb(clips, FlowConfig(shift=1.0), 0, range(4000)).time
    assert time.mean().item() == pytest.approx(0.5, abs=0.02)
    assert time.std().item() == pytest.approx(math.sqrt(1 / 12), abs=0.02)


def test_the_bell_counts_once_on_average_and_nothing_at_pure_noise() -> None:
    config = FlowConfig()
    times, weights = config.times(), config.weights()
    assert weights.mean() == pytest.approx(1.0, abs=1e-5)
    assert weights[0] == 0.0
    assert abs(times[weights.argmax()] - 0.5) < 0.01
    # DiffSynth-Studio writes it in timesteps: exp(-2 ((t - 500) / 1000)^2), less its minimum, over its mean.
    bell = np.exp(-2 * ((times * 1000.0 - 500.0) / 1000.0) ** 2)
    np.testing.assert_allclose(weights, (bell - bell.min()) * 1000 / (bell - bell.min()).sum(), atol=1e-4)
    assert (replace(config, is_bell_weighted=False).weights() == 1.0).all()


class Answering(RolloutModel):
    """Answers with what it is told to, and notes what it was asked."""

    given: Tensor

    def velocity(self, latents: Tensor, time: Tensor, modulation: Tensor, token_bias: Tensor | None) -> Tensor:
        self.asked = latents, time, modulation
        return self.given


def test_the_target_is_noise_less_clean_on_the_future_alone() -> None:
    model = Answering(toy_model().config)
    clips = disturb(toy_clips(3), FlowConfig(), 0, range(3))
    model.given = clips.noise - clips.latents
    model.given[:, :CONTEXT] = 99.0  # what is said about the context counts nothing
    assert FlowObjective(model)(clips).item() == 0.0
    latents, time, _ = model.asked
    assert torch.equal(latents[:, :CONTEXT], clips.latents[:, :CONTEXT])
    assert (time[:, :CONTEXT] == 0.0).all()
    assert torch.equal(time[:, CONTEXT:], clips.time[:, None].expand(-1, LATENTS - CONTEXT))
    share = clips.time[:, None, None, None, None]
    torch.testing.assert_close(latents[:, CONTEXT:], ((1 - share) * clips.latents + share * clips.noise)[:, CONTEXT:])


def test_an_error_counts_as_much_as_its_clips_weight() -> None:
    model = Answering(toy_model().config)
    clips = disturb(toy_clips(2), FlowConfig(), 0, [3, 4])
    model.given = clips.noise - clips.latents
    model.given[1] += 2.0
    assert FlowObjective(model)(clips).item() == pytest.approx(clips.weight[1].item() * 4.0 / 2)


def test_dropped_states_make_no_difference_and_kept_ones_do() -> None:
    model = toy_model(has_token=True)
    clips = disturb(toy_clips(2), FlowConfig(state_dropout=1.0), 0, [5, 6])
    assert clips.is_dropped.all()
    other = replace(clips, states=clips.states + 1.0)
    objective = FlowObjective(model)
    assert objective(clips).item() == objective(other).item()
    kept = [objective(replace(each, is_dropped=torch.zeros(2, dtype=torch.bool))).item() for each in (clips, other)]
    assert kept[0] != kept[1]


def test_states_are_dropped_as_often_as_configured() -> None:
    clips = Clips(torch.zeros(4000, 1, 1, 1, 1), torch.zeros(4000, 1, 1))
    for share in (0.0, 0.1):
        is_dropped = disturb(clips, FlowConfig(state_dropout=share), 0, range(4000)).is_dropped
        assert is_dropped.float().mean().item() == pytest.approx(share, abs=0.015)
