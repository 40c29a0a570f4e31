"""Every saving leaves the answer as it is and is off when it is switched off: the network and whole draws."""

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from foreframe_engines import get_schedule
from foreframe_engines.solvers import Solver
from foreframe_models.flow import FlowNetwork, Tables
from foreframe_models.folding import GatedReading
from foreframe_models.rollout import RolloutConfig, RolloutModel, Target
from foreframe_models.sampling import Plan, sample_latents
from foreframe_models.savings import ALL_SAVINGS, NO_SAVINGS, Savings

SWITCHES = [field.name for field in fields(Savings)]
ONE_SAVING = [replace(NO_SAVINGS, **{name: True}) for name in SWITCHES]
CONTEXT = 2
TOLERANCE = 1e-4


@pytest.fixture(params=["velocity", "clean"])
def model(request: pytest.FixtureRequest, make_config: Callable[..., RolloutConfig]) -> RolloutModel:
    """A model with state guidance and another prompt, whose own prompt is one row and padding."""
    torch.manual_seed(0)
    is_small = request.param == "clean"
    config = make_config(is_residual=is_small, is_mapped=is_small, target=Target(request.param))
    state = replace(config.state, has_no_states_token=True)
    model = RolloutModel(replace(config, prompt_length=64, has_negative_prompt=True, state=state)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.prompt[:, 0].normal_()
    assert model.negative_prompt is not None
    model.negative_prompt[:, :5].normal_()
    return model


@pytest.fixture
def clip() -> tuple[Tensor, Tensor, Tensor]:
    """Clean context, noise of three members, states."""
    generator = torch.Generator().manual_seed(1)
    context, noise = (torch.randn(*shape, 8, 2, 2, generator=generator) for shape in ((CONTEXT,), (3, 4)))
    return context, noise, torch.randn(6, 6, generator=generator)


def plan(solver: Solver, guidance: float) -> Plan:
    return Plan(get_schedule(4, 3.0), solver, guidance)


@pytest.mark.parametrize("solver", Solver)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("savings", [*ONE_SAVING, ALL_SAVINGS], ids=[*SWITCHES, "all"])
def test_a_saving_changes_no_draw(
    model: RolloutModel, clip: tuple[Tensor, Tensor, Tensor], savings: Savings, guidance: float, solver: Solver
) -> None:
    plain = sample_latents(FlowNetwork(model, NO_SAVINGS), *clip, plan(solver, guidance))
    saved = sample_latents(FlowNetwork(model, savings), *clip, plan(solver, guidance))
    assert plain.std() > 0.1
    assert (saved - plain).abs().max() <= TOLERANCE


@torch.no_grad()
def test_without_savings_the_network_is_the_model_bit_for_bit(
    model: RolloutModel, clip: tuple[Tensor, Tensor, Tensor]
) -> None:
    context, noise, states = clip
    latents = torch.cat([context.expand(3, -1, -1, -1, -1), noise], dim=1)
    time = torch.tensor([0.0] * CONTEXT + [0.6] * 4).expand(3, -1)
    network = FlowNetwork(model, NO_SAVINGS)
    tables = network.tables(states[None])
    future = network(latents, time, tables)
    expected = model.velocity(latents, time, tables.modulation, tables.token_bias)[:, CONTEXT:]
    assert torch.equal(model.as_velocity(future, latents[:, CONTEXT:], time[:, CONTEXT:]), expected)


def work_of(model: RolloutModel, clip: tuple[Tensor, Tensor, Tensor], savings: Savings, guidance: float) -> int:
    network = FlowNetwork(model, savings)
    with FlopCounterMode(display=False) as counter:
        sample_latents(network, *clip, plan(Solver.EULER, guidance))
    return counter.get_total_flops()


@pytest.mark.parametrize("savings", ONE_SAVING, ids=SWITCHES)
def test_a_saving_saves_work(model: RolloutModel, clip: tuple[Tensor, Tensor, Tensor], savings: Savings) -> None:
    model.state_branch.no_states_token = None
    model.negative_prompt.copy_(model.prompt)  # type: ignore[union-attr]
    assert work_of(model, clip, savings, 3.0) < work_of(model, clip, NO_SAVINGS, 3.0)
    assert work_of(model, clip, ALL_SAVINGS, 1.0) < work_of(model, clip, savings, 1.0)


@torch.no_grad()
def test_equal_branches_are_one(model: RolloutModel, clip: tuple[Tensor, Tensor, Tensor]) -> None:
    model.state_branch.no_states_token = None
    model.negative_prompt.copy_(model.prompt)  # type: ignore[union-attr]
    network = FlowNetwork(model)
    assert not model.is_guidable
    assert not network.is_guidable
    assert network.tables(clip[2][None]).free_modulation is None
    alone, guided = (sample_latents(network, *clip, plan(Solver.UNIPC, guidance)) for guidance in (1.0, 5.0))
    assert torch.equal(alone, guided)


@torch.no_grad()
@pytest.mark.parametrize("savings", [ALL_SAVINGS, NO_SAVINGS])
def test_guidance_goes_from_the_other_branch_through_the_told_one(
    model: RolloutModel, clip: tuple[Tensor, Tensor, Tensor], savings: Savings
) -> None:
    context, noise, states = clip
    latents = torch.cat([context.expand(3, -1, -1, -1, -1), noise], dim=1)
    time = torch.tensor([0.0] * CONTEXT + [0.6] * 4).expand(3, -1)
    network = FlowNetwork(model, savings)
    tables = network.tables(states[None])
    told = network(latents, time, tables)
    absent = model.state_branch(model.normalise(states[None]), torch.ones(1, dtype=torch.bool))
    swapped = RolloutModel(model.config).eval()
    swapped.load_state_dict(model.state_dict())
    swapped.prompt.copy_(model.other_prompt)
    free = FlowNetwork(swapped, savings)(latents, time, Tables(absent, None, tables.token_bias))
    guidance = torch.tensor([0.0, 1.0, 3.0])
    guided = network(latents, time, tables, guidance)
    assert (told - free).abs().max() > 0.01
    torch.testing.assert_close(guided[0], free[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(guided[1], told[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(guided[2], free[2] + 3 * (told[2] - free[2]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_network_holds_the_prompt_it_was_built_with(model: RolloutModel, clip: tuple[Tensor, Tensor, Tensor]) -> None:
    network, draw = FlowNetwork(model), plan(Solver.EULER, 1.0)
    assert isinstance(network.folded[0], GatedReading)  # type: ignore[index]
    before = sample_latents(network, *clip, draw)
    model.prompt[:, 0].neg_()
    assert torch.equal(sample_latents(network, *clip, draw), before)
    assert not torch.equal(sample_latents(FlowNetwork(model), *clip, draw), before)
