"""How states reach the transformer: layout, lengths, where a row acts, and that the branch starts as nothing."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from foreframe_models.rollout import RolloutConfig, RolloutModel
from foreframe_models.state_branch import (
    Combination,
    StateBranch,
    StateBranchConfig,
    StateMap,
    augment,
    full_rate_states,
)

PAPER = StateBranchConfig()


@pytest.fixture
def branch() -> StateBranch:
    torch.manual_seed(0)
    branch = StateBranch(StateBranchConfig(hidden=16, strides=(2,)), width=24, num_layers=2)
    nn.init.normal_(branch.r_projection[-1].weight)
    return branch


def test_25_states_become_71_features_in_the_papers_order() -> None:
    states = torch.randn(2, 5, 25)
    features = augment(states, PAPER)
    continuous = [*range(21), 23, 24]
    assert PAPER.num_features == features.shape[-1] == 71
    assert torch.equal(features[..., :23], states[..., continuous])
    assert torch.equal(features[..., 23:46], states[..., continuous].sin())
    assert torch.equal(features[..., 46:69], states[..., continuous].cos())
    assert torch.equal(features[..., 69:], states[..., 21:23])


@pytest.mark.parametrize(("strides", "num_rows", "num_latents"), [((2, 2), 21, 6), ((2,), 12, 6), ((2, 2), 41, 11)])
def test_the_convolutions_reach_the_latent_frame_rate(
    strides: tuple[int, ...], num_rows: int, num_latents: int
) -> None:
    config = StateBranchConfig(hidden=16, strides=strides)
    branch = StateBranch(config, width=24, num_layers=1)
    assert branch(torch.randn(2, num_rows, 25)).shape == (2, num_latents, 6, 24)
    assert config.num_latents(num_rows) == num_latents


def test_all_77_rows_become_20_and_then_6_latent_frames() -> None:
    config = replace(full_rate_states(), hidden=16)
    branch = StateBranch(config, width=24, num_layers=1)
    first, second = (branch.robot_temporal_compression[index] for index in (0, 3))
    assert [(conv.kernel_size, conv.stride, conv.padding) for conv in (first, second)] == [
        ((5,), (4,), (2,)),
        ((5,), (3,), (1,)),
    ]
    assert first(torch.zeros(1, 16, 77)).shape[-1] == 20
    assert branch(torch.randn(2, 77, 25)).shape == (2, 6, 6, 24)
    assert config.num_latents(77) == 6


@torch.no_grad()
@pytest.mark.parametrize("config", [PAPER, full_rate_states()], ids=["21 rows", "77 rows"])
def test_the_branch_is_the_papers_order_of_operations(config: StateBranchConfig) -> None:
    torch.manual_seed(0)
    branch = StateBranch(replace(config, hidden=16), width=24, num_layers=1)
    nn.init.normal_(branch.r_projection[1].weight)
    weights = branch.state_dict()

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    states = torch.randn(2, 77 if config.kernel == 5 else 21, 25)
    hidden = linear(augment(states, config), "robot_state_compression.0")
    hidden = linear(functional.silu(hidden), "robot_state_compression.2").transpose(1, 2)
    for start, (stride, padding) in zip((0, 3), config.stages, strict=True):
        conv, norm = f"robot_temporal_compression.{start}", f"robot_temporal_compression.{start + 2}"
        hidden = functional.conv1d(hidden, weights[f"{conv}.weight"], weights[f"{conv}.bias"], stride, padding)
        hidden = functional.silu(hidden)
        groups = hidden.unflatten(1, (8, 2))  # the norm comes after the activation
        mean, var = (statistic(groups, dim=(2, 3), keepdim=True) for statistic in (torch.mean, biased_var))
        hidden = ((groups - mean) / (var + 1e-5).sqrt()).flatten(1, 2)
        hidden = hidden * weights[f"{norm}.weight"][:, None] + weights[f"{norm}.bias"][:, None]
    embedded = linear(functional.silu(linear(hidden.transpose(1, 2), "r_embedding.0")), "r_embedding.2")
    expected = linear(functional.silu(embedded), "r_projection.1").unflatten(-1, (6, 24))
    torch.testing.assert_close(branch(states), expected, atol=1e-5, rtol=1e-5)


def biased_var(x: Tensor, **options: object) -> Tensor:
    return torch.var(x, correction=0, **options)  # type: ignore[call-overload]


@torch.no_grad()
def test_a_blocks_table_is_added_to_the_terms_or_multiplies_them(branch: StateBranch) -> None:
    terms = torch.randn(2, 6, 6, 24)
    tables = [table.normal_() for table in branch.robot_modulation]
    assert all(torch.equal(own, terms + table) for own, table in zip(branch.per_block(terms), tables, strict=True))
    config = replace(branch.config, combination=Combination.MULTIPLICATIVE)
    product = StateBranch(config, width=24, num_layers=2)
    product.load_state_dict(branch.state_dict())
    assert all(torch.equal(own, terms * table) for own, table in zip(product.per_block(terms), tables, strict=True))


@pytest.mark.parametrize("combination", Combination)
def test_an_untrained_branch_is_nothing_and_yet_learns(combination: Combination) -> None:
    config = StateBranchConfig(hidden=16, strides=(2,), combination=combination)
    branch = StateBranch(config, width=24, num_layers=2)
    tables = branch.per_block(branch(torch.randn(1, 12, 25)))
    assert all(torch.equal(table, torch.zeros_like(table)) for table in tables)
    sum((table + 1.0).square().sum() for table in tables).backward()
    learning = [name for name, parameter in branch.named_parameters() if (parameter.grad != 0).any()]
    assert "robot_modulation.0" in learning
    assert ("r_projection.1.weight" in learning) == (combination is Combination.ADDITIVE)
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.sub_(0.01 * parameter.grad)
    sum((table + 1.0).square().sum() for table in branch.per_block(branch(torch.randn(1, 12, 25)))).backward()
    assert all((parameter.grad != 0).any() for parameter in branch.parameters())


def test_absent_states_are_one_learned_token() -> None:
    config = StateBranchConfig(hidden=16, strides=(2,), has_no_states_token=True)
    torch.manual_seed(0)
    branch = StateBranch(config, width=24, num_layers=1)
    nn.init.normal_(branch.r_projection[1].weight)
    assert branch.no_states_token is not None
    assert branch.no_states_token.shape == (1, 1, 16)
    assert branch.no_states_token.abs().max() < 6 * 0.02
    states, is_absent = torch.randn(3, 12, 25), torch.tensor([False, True, True])
    terms = branch(states, is_absent)
    torch.testing.assert_close(terms[1], terms[2])
    torch.testing.assert_close(terms[0], branch(states)[0])
    assert (branch(states)[1] != terms[1]).any()
    terms[1].sum().backward()
    assert branch.no_states_token.grad is not None
    assert (branch.no_states_token.grad != 0).any()


def test_states_cannot_be_absent_without_a_token(branch: StateBranch) -> None:
    with pytest.raises(ValueError, match="has_no_states_token"):
        branch(torch.randn(1, 12, 25), torch.tensor([True]))


@torch.no_grad()
def test_a_branch_in_half_precision_takes_states_in_single(branch: StateBranch) -> None:
    states = torch.randn(2, 12, 25)
    single = branch(states)
    half = branch.to(torch.bfloat16)(states)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), single, atol=0.5, rtol=0.1)


def test_the_first_convolution_halves_21_rows_to_11() -> None:
    stages = StateBranch(StateBranchConfig(hidden=16), width=24, num_layers=1).robot_temporal_compression
    assert stages[:3](torch.zeros(1, 16, 21)).shape[-1] == 11


@torch.no_grad()
def test_an_untrained_branch_leaves_the_transformer_as_it_is(make_config: Callable[..., RolloutConfig]) -> None:
    torch.manual_seed(0)
    model = RolloutModel(make_config(is_residual=False, is_mapped=True))
    latents, timestep = torch.randn(2, 8, 6, 2, 2), torch.tensor([[0.0, 500.0, 500.0]] * 2)
    modulation, token_bias = model.condition(torch.randn(2, 6, 6))
    tables = model.state_branch.per_block(modulation)
    alone = model.transformer(latents, timestep, model.prompt)
    assert torch.equal(
        model.transformer(latents, timestep, model.prompt, frame_modulation=tables, token_bias=token_bias), alone
    )
    model.state_branch.robot_modulation[1].add_(0.1)
    tables = model.state_branch.per_block(modulation)
    assert not torch.equal(model.transformer(latents, timestep, model.prompt, frame_modulation=tables), alone)


def changed_frames(function: Callable[[Tensor], Tensor], row: int, num_rows: int = 12) -> list[int]:
    """List the latent frames of the result that change when one state row does."""
    torch.manual_seed(1)
    states = torch.randn(1, num_rows, 25)
    other = states.clone()
    other[0, row] += 1.0
    difference = (function(states) - function(other)).abs().flatten(2).sum(-1)[0]
    return difference.nonzero()[:, 0].tolist()


@torch.no_grad()
@pytest.mark.parametrize(("row", "frames"), [(0, [0]), (4, [2]), (5, [2, 3]), (11, [5])])
def test_a_row_reaches_the_latent_frames_whose_convolution_sees_it(
    branch: StateBranch, row: int, frames: list[int]
) -> None:
    branch.robot_temporal_compression[2] = nn.Identity()
    assert changed_frames(branch, row) == frames


@torch.no_grad()
def test_the_group_norm_lets_every_row_scale_every_frame(branch: StateBranch) -> None:
    # The norm of the paper's branch runs over time too, so the reach above holds for the convolution alone.
    assert changed_frames(branch, 4) == list(range(6))


@torch.no_grad()
@pytest.mark.parametrize(("row", "frames"), [(0, [0]), (3, [0, 1, 2, 3, 4, 5]), (6, [2, 3]), (7, [3, 4]), (11, [5])])
def test_the_state_map_sees_its_frames_a_neighbour_each_way_and_the_last_context_row(
    row: int, frames: list[int]
) -> None:
    torch.manual_seed(0)
    state_map = StateMap(StateBranchConfig(hidden=16), 24, context=4, frames=2, positions=3)
    nn.init.normal_(state_map.net[-1].weight)
    assert state_map(torch.randn(1, 12, 25)).shape == (1, 6, 3, 24)
    assert changed_frames(state_map, row) == frames


def test_the_papers_branch_has_67_9_million_parameters() -> None:
    with torch.device("meta"):
        branch = StateBranch(PAPER, width=3072, num_layers=30)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in branch.named_children()}
    assert counts["r_projection"] == 56_641_536
    assert sum(counts.values()) == 67_903_232
