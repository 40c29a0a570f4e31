"""A build compares every way to run a bundle with torch, keeps what it built, and says what it could not."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from foreframe_engines import Bundle, BundleError, ModelFault, RuntimeUnavailable, builtin_bundle, write_manifest
from foreframe_engines.choice import read_choice
from foreframe_engines.runtime.engine_cache import EngineCache
from foreframe_engines.runtime.tensorrt_library import find_library
from foreframe_engines.runtime.typed_graph import Precision
from foreframe_engines.serving_engine import open_serving_engine
from foreframe_engines.testing_gpu import ToyGpu
from foreframe_models.build import Backend, BuildAsk, build_bundle, record_goldens

BUNDLE = builtin_bundle()
GRAPHS = {"encode", "condition", "step", "decode", "tokenize", "detokenize", "frame_step", "top_k"}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ToyGpu:
    toy = ToyGpu()
    for name, module in toy.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return toy


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)


@pytest.fixture
def rtx() -> None:
    """TensorRT-RTX must be here."""
    try:
        find_library(("tensorrt-rtx",))
    except RuntimeUnavailable as error:
        pytest.skip(str(error))


def ask(folder: Path, **options: object) -> BuildAsk:
    return BuildAsk(**{"folder": folder, "buckets": (1, 2), "num_threads": 1} | options)


def test_onnxruntime_agrees_with_torch_and_both_are_measured(tmp_path: Path, no_gpu: None) -> None:
    report = build_bundle(BUNDLE, ask(tmp_path))
    assert {graph.graph for graph in report.graphs} == GRAPHS
    assert all(graph.parity.reference == "torch" for graph in report.graphs)
    assert max(graph.parity.share for graph in report.graphs) < 0.1
    assert (report.device, report.buckets) == ("cpu", (1, 2))
    assert {name.split()[0] for name in report.choice.measured} == {"onnxruntime", "torch"}
    assert all(took.step_ms[2] > 0 for took in report.choice.measured.values())
    assert read_choice(report.choice.key, EngineCache(tmp_path)) == report.choice


def test_a_server_takes_over_what_was_measured(tmp_path: Path, no_gpu: None, exported) -> None:
    report = build_bundle(exported.folder, ask(tmp_path, buckets=()))
    (kept,) = tmp_path.glob("choice-*.json")
    written = kept.stat().st_mtime_ns
    bundle = Bundle.open(exported.folder)
    assert report.buckets == bundle.contract.buckets
    open_serving_engine(bundle, num_threads=1, cache=EngineCache(tmp_path)).close()
    assert [path.stat().st_mtime_ns for path in tmp_path.glob("choice-*.json")] == [written]


def test_engines_are_built_ahead_of_time_and_wait_for_their_gpu(tmp_path: Path, no_gpu, exported, rtx) -> None:
    options = {"device": "sm89", "precision": Precision.BF16, "buckets": (1,)}
    report = build_bundle(exported.folder, ask(tmp_path, **options))
    found = {graph.graph: graph for graph in report.graphs}
    assert found.keys() == GRAPHS
    assert {graph.backend for graph in report.graphs} == {Backend.TENSORRT}
    assert (found["step"].precision, found["decode"].precision, found["condition"].precision) == (
        "bf16",
        "bf16",
        "fp32",
    )
    assert found["step"].num_bytes > 10_000
    assert all(graph.parity is None for graph in report.graphs)
    assert "decides a shape" in found["top_k"].refusal
    assert report.choice is None
    again = build_bundle(exported.folder, ask(tmp_path, **options))
    assert all(graph.is_from_cache for graph in again.graphs if not graph.refusal)


def test_a_model_too_small_for_fp8_says_so(tmp_path: Path, no_gpu: None, exported, rtx: None) -> None:
    report = build_bundle(exported.folder, ask(tmp_path, device="sm89", precision=Precision.FP8, buckets=(1,)))
    refusals = {graph.graph: graph.refusal for graph in report.graphs}
    assert refusals["step"] == "step.onnx has no products that are large enough for fp8"
    assert refusals["decode"] == ""


def test_on_a_gpu_engines_are_compared_with_torch_and_compete(tmp_path: Path, gpu: ToyGpu) -> None:
    report = build_bundle(BUNDLE, ask(tmp_path, device="cuda"))
    engines = {graph.graph: graph for graph in report.graphs if graph.backend is Backend.TENSORRT}
    assert engines.keys() == GRAPHS
    assert all(graph.parity.reference == "torch" for graph in engines.values() if not graph.refusal)
    assert engines["step"].parity.share < 0.1
    assert {name.split()[0] for name in report.choice.measured} == {"onnxruntime", "tensorrt", "torch"}
    assert report.choice.key.machine.endswith("sm90")


def test_an_engine_that_differs_from_torch_is_left_out(tmp_path: Path, gpu: ToyGpu) -> None:
    gpu.error = 0.2
    report = build_bundle(BUNDLE, ask(tmp_path, device="cuda", backends=(Backend.TENSORRT,)))
    step = next(graph for graph in report.graphs if graph.graph == "step")
    assert "differs from torch" in step.refusal
    assert report.choice is None


def test_a_bundle_whose_graphs_are_not_its_weights_is_refused(tmp_path: Path, no_gpu: None, exported) -> None:
    folder = Path(shutil.copytree(exported.folder, tmp_path / "planted"))
    content = bytearray((folder / "decode.onnx").read_bytes())
    place = content.find(np.float32(127.5).tobytes())  # what pictures are scaled by
    content[place : place + 4] = np.float32(120).tobytes()
    (folder / "decode.onnx").write_bytes(content)
    write_manifest(folder)
    with pytest.raises(ModelFault, match="decode on onnxruntime: 'frames' differs from torch"):
        build_bundle(folder, ask(tmp_path / "engines"))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"device": "cuda"}, RuntimeUnavailable, "cuda-bindings is not installed"),
        ({"backends": (Backend.TENSORRT,)}, RuntimeUnavailable, "tensorrt needs a GPU, or --device"),
        ({"backends": (Backend.TORCH,), "precision": Precision.BF16}, RuntimeUnavailable, "torch computes .* in fp32"),
        ({"buckets": (4, 1)}, BundleError, "buckets 4, 1: expected ascending"),
        ({"buckets": (0,)}, BundleError, "buckets 0: expected ascending"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(tmp_path, no_gpu, options, error, words: str) -> None:
    with pytest.raises(error, match=words):
        build_bundle(BUNDLE, ask(tmp_path, **options))


def test_runs_on_torch_cover_every_graph() -> None:
    runs = record_goldens(Bundle.open(BUNDLE), (1,))
    assert runs.keys() == GRAPHS
    assert all(runs.values())
