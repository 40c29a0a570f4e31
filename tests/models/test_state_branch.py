"""How states reach the transformer: layout, lengths, where a row acts, and that the branch starts as nothing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from foreframe_models.rollout import RolloutConfig, RolloutModel
from foreframe_models.state_branch import StateBranch, StateBranchConfig, StateMap, augment

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
    branch = StateBranch(StateBranchConfig(hidden=16, strides=strides), width=24, num_layers=1)
    assert branch(torch.randn(2, num_rows, 25)).shape == (2, num_latents, 6, 24)


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
