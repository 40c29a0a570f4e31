"""Draws on torch: where they end, what members share, and the kept modulation of a schedule."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from foreframe_engines import get_schedule
from foreframe_engines.solvers import Solver
from foreframe_models.flow import FlowNetwork
from foreframe_models.rollout import RolloutModel
from foreframe_models.sampling import Plan, TimeTables, sample_latents, sample_with_tables
from foreframe_models.savings import NO_SAVINGS

CONTEXT, FUTURE = 2, 4
TIMES = get_schedule(3, 3.0)


@pytest.fixture
def model(make_model: Callable[..., RolloutModel]) -> RolloutModel:
    return make_model()


@pytest.fixture
def clip() -> tuple[Tensor, Tensor, Tensor]:
    """Clean context, noise of three members, states."""
    generator = torch.Generator().manual_seed(1)
    context, noise = (torch.randn(*shape, 8, 2, 2, generator=generator) for shape in ((CONTEXT,), (3, FUTURE)))
    return context, noise, torch.randn(6, 6, generator=generator)


def joined(context: Tensor, future: Tensor) -> Tensor:
    return torch.cat([context.expand(len(future), -1, -1, -1, -1), future], dim=1)


def times(time: float) -> Tensor:
    return torch.tensor([0.0] * CONTEXT + [time] * FUTURE).expand(3, -1)


@torch.no_grad()
def test_euler_draws_are_the_models_own_steps(model: RolloutModel, clip: tuple[Tensor, Tensor, Tensor]) -> None:
    context, noise, states = clip
    tables = model.condition(model.normalise(states[None]))
    latents = joined(context, noise)
    for time, next_time in pairwise(TIMES):
        latents = model.step(latents, times(time), times(next_time), *tables)
    drawn = sample_latents(FlowNetwork(model, NO_SAVINGS), *clip, Plan(TIMES, Solver.EULER))
    assert torch.equal(drawn, latents[:, CONTEXT:])


@torch.no_grad()
@pytest.mark.parametrize("solver", Solver)
def test_one_step_is_the_posterior_mean(
    model: RolloutModel, clip: tuple[Tensor, Tensor, Tensor], solver: Solver
) -> None:
    context, noise, states = clip
    tables = model.condition(model.normalise(states[None]))
    mean = model.clean(joined(context, noise), times(1.0), *tables)[:, CONTEXT:]
    drawn = sample_latents(FlowNetwork(model), *clip, Plan((1.0, 0.0), solver))
    torch.testing.assert_close(drawn, mean, atol=1e-5, rtol=0)


@torch.no_grad()
def test_kept_time_terms_are_those_of_every_step(model: RolloutModel) -> None:
    network = FlowNetwork(model)
    kept = TimeTables(network, TIMES)
    for index, time in enumerate(TIMES[:-1]):
        terms, expected = kept.at(index), network.embed_times(times(time)[:1])
        torch.testing.assert_close(terms.head, expected.head, atol=1e-6, rtol=0)
        torch.testing.assert_close(terms.blocks, expected.blocks, atol=1e-6, rtol=0)
        assert not torch.allclose(terms.blocks, kept.at((index + 1) % 3).blocks)


@torch.no_grad()
def test_members_share_what_is_made_of_the_states_or_bring_their_own(
    model: RolloutModel, clip: tuple[Tensor, Tensor, Tensor]
) -> None:
    context, noise, states = clip
    network, plan = FlowNetwork(model), Plan(TIMES)
    shared = sample_latents(network, context, noise, states, plan)
    own = sample_with_tables(network, context, noise, network.tables(states.expand(3, -1, -1)), plan)
    torch.testing.assert_close(own, shared, atol=1e-5, rtol=0)
    for row in range(3):
        alone = sample_latents(network, context, noise[row : row + 1], states, plan)
        torch.testing.assert_close(alone[0], shared[row], atol=1e-5, rtol=0)
    assert (sample_latents(network, context, noise, states + 1.0, plan) - shared).abs().max() > 1e-3
