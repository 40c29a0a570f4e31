"""A converted tokenizer says what its archives say; what is none, or says something else, is refused by name."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from foreframe_engines.errors import BundleError, CheckpointError
from foreframe_models import cosmos_tokenizer
from foreframe_models.cosmos_tokenizer import (
    Golden,
    Scripts,
    TokenizerFacts,
    compare_graphs,
    convert_tokenizer,
    make_golden,
    open_scripts,
    open_tokenizer,
    run_graphs,
)
from foreframe_models.cosmos_toy import Archives, ToyEncoder, write_toy_archives
from foreframe_models.tokenizer import ScalarQuantizer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning"
)  # these tests make archives

SIZE, WINDOW = 16, (17, 16, 16)


@dataclass(frozen=True, slots=True, eq=False)
class Converted:
    archives: Archives
    folder: Path
    facts: TokenizerFacts
    scripts: Scripts
    golden: Golden


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    folder = tmp_path_factory.mktemp("cosmos")
    archives = write_toy_archives(folder, size=SIZE)
    facts = convert_tokenizer(archives.encoder, archives.decoder, folder / "out", size=SIZE)
    scripts = open_scripts(archives.encoder, archives.decoder, WINDOW)
    return Converted(archives, folder / "out", facts, scripts, make_golden(scripts))


@pytest.fixture
def folder(converted: Converted, tmp_path: Path) -> Path:
    """A copy of the converted tokenizer that a test may change."""
    return Path(shutil.copytree(converted.folder, tmp_path / "tokenizer"))


def change_weights(folder: Path, graph: str, amount: float) -> None:
    proto = onnx.load(str(folder / f"{graph}.onnx"))
    tensor = max(proto.graph.initializer, key=lambda each: np.prod(each.dims))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(amount), tensor.name))
    (folder / f"{graph}.weights").unlink()
    onnx.save_model(proto, folder / f"{graph}.onnx", save_as_external_data=True, location=f"{graph}.weights")


def test_the_graphs_say_what_the_archives_say(converted: Converted) -> None:
    ids, frames = run_graphs(converted.folder, converted.golden)
    np.testing.assert_array_equal(ids, converted.golden.ids)
    np.testing.assert_allclose(frames.astype(int), converted.golden.frames.astype(int), atol=1)
    assert (converted.facts.equal_ids, converted.facts.pixel_levels) == (1.0, 0)
    assert len(np.unique(ids)) > 30  # they are not all one id
    assert frames.std() > 20


def test_the_facts_are_those_of_the_window(converted: Converted) -> None:
    facts = open_tokenizer(converted.folder)
    assert facts == converted.facts
    tokens = facts.token_spec(max_grids=6, max_candidates=8)
    assert (tokens.vocabulary, tokens.tokens, tokens.frames_per_grid) == (64_000, 4, (1, 8, 8))
    assert len(facts.encoder_sha256) == len(facts.decoder_sha256) == 64


def test_ids_follow_the_codes_by_cosmos_arithmetic() -> None:
    torch.manual_seed(0)
    ids, codes, loss = ToyEncoder()(torch.rand(1, 3, *WINDOW) * 2 - 1)
    bases = torch.tensor([1, 8, 64, 512, 2560, 12800])
    halves = torch.tensor([4, 4, 4, 2, 2, 2])
    digits = codes.movedim(1, -1) * halves + halves
    assert torch.equal(ids.long(), (digits.round().long() * bases).sum(-1))
    assert torch.allclose(ScalarQuantizer((8, 8, 8, 5, 5, 5)).codes(ids.long()), codes.movedim(1, -1), atol=1e-6)
    assert float(loss.abs().max()) == 0.0


@pytest.mark.parametrize(
    ("graph", "message"),
    [("tokenize", r"tokenize\.onnx: only [\d.]+% of the ids are those of encoder\.jit"),
     ("detokenize", r"detokenize\.onnx: pixels differ by \d+ levels from decoder\.jit's")],
)  # fmt: skip
def test_a_graph_that_says_something_else_is_refused(
    converted: Converted, folder: Path, graph: str, message: str
) -> None:
    compare_graphs(converted.scripts, converted.golden, folder)
    change_weights(folder, graph, 0.05)
    with pytest.raises(CheckpointError, match=message):
        compare_graphs(converted.scripts, converted.golden, folder)


def test_archives_of_half_precision_are_converted_in_single(tmp_path: Path) -> None:
    archives = write_toy_archives(tmp_path, size=SIZE, dtype=torch.bfloat16)
    assert torch.jit.load(archives.encoder).state_dict()["conv_in.weight"].dtype == torch.bfloat16
    facts = convert_tokenizer(archives.encoder, archives.decoder, tmp_path / "out", size=SIZE)
    assert (facts.equal_ids, facts.pixel_levels) == (1.0, 0)
    weights = [
        numpy_helper.to_array(each) for each in onnx.load(str(tmp_path / "out" / "tokenize.onnx")).graph.initializer
    ]
    assert {each.dtype for each in weights if each.size > 100} == {np.dtype(np.float32)}


def test_what_is_no_tokenizer_is_refused_by_name_and_leaves_nothing(converted: Converted, tmp_path: Path) -> None:
    encoder, decoder = converted.archives.encoder, converted.archives.decoder
    text = tmp_path / "text.jit"
    text.write_text("no archive")
    continuous = tmp_path / "continuous.jit"
    torch.jit.trace(torch.nn.Conv3d(3, 16, 1), torch.zeros(1, 3, *WINDOW)).save(continuous)
    cases = [
        (text, decoder, r"text\.jit is not a TorchScript archive"),
        (encoder, tmp_path / "none.jit", r"none\.jit is missing"),
        (decoder, encoder, r"decoder\.jit does not take pictures of shape \(1, 3, 17, 16, 16\)"),
        (encoder, encoder, r"encoder\.jit does not take ids of shape \(1, 3, 2, 2\)"),
        (continuous, decoder, r"continuous\.jit gives no ids and codes"),
    ]
    for first, second, message in cases:
        with pytest.raises(CheckpointError, match=message):
            convert_tokenizer(first, second, tmp_path / "out", size=SIZE)
    assert not list(tmp_path.glob("out*"))


class OtherArithmetic(ToyEncoder):
    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ids, codes, loss = super().forward(pictures)
        return ids.flip(-1) // 8, codes, loss


def test_ids_of_other_levels_are_refused(converted: Converted, tmp_path: Path) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        traced = torch.jit.trace(OtherArithmetic().eval(), torch.rand(1, 3, *WINDOW), check_trace=False)
    traced.save(tmp_path / "other.jit")
    with pytest.raises(CheckpointError, match=r"other\.jit: its ids are not the sum of digit times base over the lev"):
        open_scripts(tmp_path / "other.jit", converted.archives.decoder, WINDOW)


def test_a_converted_tokenizer_that_was_changed_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no converted tokenizer"):
        open_tokenizer(tmp_path)
    (folder / "tokenize.weights").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"'tokenize\.weights' differs from the manifest"):
        open_tokenizer(folder)


def test_an_earlier_conversion_stays_when_a_later_one_fails(converted: Converted, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        convert_tokenizer(converted.archives.encoder, tmp_path / "none.jit", folder, size=SIZE)
    assert open_tokenizer(folder) == converted.facts
    assert converted.facts.levels == cosmos_tokenizer.LEVELS
