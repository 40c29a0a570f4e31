"""A recording does what its archive does, for inputs it has not seen, in single precision whatever the archive says."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from foreframe_engines.errors import CheckpointError
from foreframe_models.torchscript import load_script, record, run_single

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning"
)  # these tests make archives


class Arithmetic(nn.Module):
    """Shapes computed from the input, constants, an in-place sum, several outputs, casts to half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3, padding=1)
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, channels, length = x.shape
        pairs = self.conv(x.reshape(batch, channels, length // 2, 2).flatten(2))
        offset = (self.table / (self.table + 1.0)).atanh()[:, None]
        first, second = torch.split(pairs.to(torch.bfloat16).float(), [2, 2], dim=1)
        first = first.clone()
        first += second
        return torch.cat([first, second], dim=1) + offset, pairs


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(x.shape[-1] // 2):
            x = x * 2.0
        return x if x.shape[0] > 1 else x + 1.0


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "arithmetic.jit"
    torch.manual_seed(0)
    torch.jit.trace(Arithmetic().eval(), torch.zeros(1, 2, 6)).save(path)
    return path


def test_a_recording_does_what_the_archive_does(archive: Path) -> None:
    script = load_script(archive)
    module = record(lambda x: script(x)[0], "x", torch.zeros(1, 2, 6))
    assert [node.op for node in module.graph.nodes].count("placeholder") == 1
    for seed in range(3):
        unseen = torch.randn(1, 2, 6, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(module(unseen), run_single(script, unseen)[0])
        assert not torch.equal(module(unseen), module(unseen + 0.1))
        plain = script(unseen)[0].detach()  # with the archive's own rounding to half precision
        assert 0 < float((module(unseen) - plain).abs().max()) < 0.05


def test_what_does_not_depend_on_the_input_is_a_constant(archive: Path) -> None:
    module = record(lambda x: load_script(archive)(x)[0], "x", torch.zeros(1, 2, 6))
    assert "atanh" not in module.code
    assert {tuple(buffer.shape) for buffer in module.buffers()} == {(4, 2, 3), (4,), (4, 1)}


def test_branches_and_loops_are_decided_by_the_example(tmp_path: Path) -> None:
    path = tmp_path / "branching.jit"
    torch.jit.script(Branching()).save(path)
    module = record(load_script(path), "x", torch.zeros(1, 6))
    assert module(torch.ones(1, 6)).tolist() == [[9.0] * 6]


def test_files_that_are_no_archives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.jit is missing"):
        load_script(tmp_path / "nothing.jit")
    (tmp_path / "text.jit").write_text("not an archive")
    with pytest.raises(CheckpointError, match=r"text\.jit is not a TorchScript archive"):
        load_script(tmp_path / "text.jit")
