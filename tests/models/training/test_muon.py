"""Muon's update is near-orthogonal, in float32 from end to end."""

import pytest
import torch
from torch import Tensor

from foreframe_models.training.muon import NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS, Muon, orthogonalise


def slow_orthogonalise(matrix: Tensor) -> Tensor:
    """Apply the iteration's polynomial to the singular values."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.square().sum().sqrt()
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ vh


@pytest.fixture(params=[(24, 24), (24, 96), (96, 24)], ids=str)
def matrix(request: pytest.FixtureRequest) -> Tensor:
    return torch.randn(request.param, generator=torch.Generator().manual_seed(0))


def test_singular_values_come_close_to_1(matrix: Tensor) -> None:
    if matrix.shape[0] == matrix.shape[1]:
        matrix = matrix + 6.0 * torch.eye(len(matrix))  # five steps do not lift values that are almost 0
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_the_scale_of_the_gradient_does_not_matter(matrix: Tensor) -> None:
    torch.testing.assert_close(orthogonalise(matrix), orthogonalise(1e3 * matrix), atol=1e-4, rtol=1e-3)


def test_it_is_computed_in_float32(matrix: Tensor) -> None:
    exact = slow_orthogonalise(matrix.double())
    assert orthogonalise(matrix).dtype == torch.float32
    assert (orthogonalise(matrix) - exact).abs().max() < 1e-4
    assert (orthogonalise(matrix.bfloat16()).double() - exact).abs().max() > 1e-3  # what the check would catch


def test_the_state_is_one_float32_buffer_a_matrix(matrix: Tensor) -> None:
    weight = torch.nn.Parameter(matrix)
    optimizer = Muon([weight], lr=0.01)
    weight.square().sum().backward()
    optimizer.step()
    (state,) = optimizer.state.values()
    assert {name: (value.dtype, value.shape) for name, value in state.items()} == {
        "momentum": (torch.float32, matrix.shape)
    }


def test_steps_of_one_size_whatever_the_gradient_and_downhill() -> None:
    sizes = []
    for scale in (1e-3, 1e3):
        weight = torch.nn.Parameter(torch.eye(8))
        (scale * weight.sum() + scale * weight.diagonal().sum()).backward()
        Muon([weight], lr=0.1).step()
        sizes.append((torch.eye(8) - weight.detach()).norm())
        assert weight.detach().diagonal().sum() < 8.0
    torch.testing.assert_close(sizes[0], sizes[1], rtol=1e-2, atol=0)


def test_weight_decay_shrinks_a_matrix_without_gradient_direction() -> None:
    weight = torch.nn.Parameter(torch.eye(4))
    weight.grad = torch.zeros(4, 4)
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), 0.95 * torch.eye(4))


def test_a_closure_is_refused() -> None:
    with pytest.raises(NotImplementedError):
        Muon([torch.nn.Parameter(torch.eye(2))], lr=0.1).step(lambda: 0.0)
