"""What a server opens: plain without a folder, measured with one, and on a GPU built while it serves."""

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from foreframe_engines import Bundle, open_rollout_engine
from foreframe_engines.candidates import cuda_candidate
from foreframe_engines.errors import RuntimeUnavailable
from foreframe_engines.rollout import GraphRolloutEngine
from foreframe_engines.runtime.engine_cache import EngineCache
from foreframe_engines.runtime.ort import CUDA_PROVIDER, import_runtime
from foreframe_engines.selftest import random_rows
from foreframe_engines.serving_engine import open_serving_engine
from foreframe_engines.swapping import Stage, SwappingRolloutEngine
from foreframe_engines.tensorrt_engine import beside
from foreframe_engines.testing_gpu import ToyGpu

TIMEOUT_S = 60.0


@pytest.fixture
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle.open(bundle_folder)


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ToyGpu:
    toy = ToyGpu()
    for name, module in toy.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return toy


def test_without_a_folder_nothing_is_measured_or_written(bundle: Bundle, no_gpu: None) -> None:
    with closing(open_serving_engine(bundle, num_threads=1, cache=None)) as engine:
        assert isinstance(engine, GraphRolloutEngine)
    assert not beside(bundle).folder.exists()


@pytest.mark.parametrize("is_beside", [True, False])
def test_with_a_folder_the_fastest_way_is_measured_and_kept(bundle, cache, no_gpu, is_beside: bool) -> None:
    folder = beside(bundle).folder if is_beside else cache.folder
    folder.mkdir()
    with closing(open_serving_engine(bundle, num_threads=2, cache=None if is_beside else cache)) as engine:
        assert engine.determinism == "bitwise"
    (choice,) = folder.glob("choice-*.json")
    measured = choice.stat().st_mtime_ns
    open_serving_engine(bundle, num_threads=2, cache=EngineCache(folder)).close()
    assert choice.stat().st_mtime_ns == measured


def test_on_a_gpu_engines_are_built_while_the_processor_serves(bundle: Bundle, cache, gpu: ToyGpu) -> None:
    engine = open_serving_engine(bundle, num_threads=1, cache=cache)
    assert isinstance(engine, SwappingRolloutEngine)
    with closing(engine), closing(open_rollout_engine(bundle, num_threads=1)) as reference:
        rows = random_rows(reference, 3)
        expected = reference.step(rows)
        for _ in range(2):
            for one, other in zip(engine.step(rows), expected, strict=True):
                np.testing.assert_allclose(one, other, atol=1e-5)
            assert engine.join(TIMEOUT_S).stage is Stage.SERVING
    assert gpu.num_builds == 4
    assert len(list(cache.folder.glob("*.plan"))) == 4


def test_a_second_start_finds_the_engines(bundle: Bundle, cache, gpu: ToyGpu) -> None:
    for _ in range(2):
        engine = open_serving_engine(bundle, num_threads=1, cache=cache)
        assert engine.join(TIMEOUT_S).stage is Stage.SERVING
        engine.close()
    assert gpu.num_builds == 4
    assert gpu.used_bytes == 0


def test_engines_that_differ_leave_the_processor_serving(bundle: Bundle, cache, gpu: ToyGpu) -> None:
    gpu.error = 0.3
    with closing(open_serving_engine(bundle, num_threads=1, cache=cache)) as engine:
        handover = engine.join(TIMEOUT_S)
        assert handover.stage is Stage.REFUSED
        assert "differs from onnxruntime" in handover.reason
        assert engine.step(random_rows(engine, 1))


def test_a_gpu_without_tensorrt_changes_nothing(bundle: Bundle, cache, gpu: ToyGpu, monkeypatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with closing(open_serving_engine(bundle, num_threads=1, cache=cache)) as engine:
        assert not isinstance(engine, SwappingRolloutEngine)


def test_importing_it_loads_no_library() -> None:
    code = "import sys, foreframe_engines.serving_engine; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "foreframe_engines" in loaded
    assert loaded.isdisjoint({"torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx_bindings", "cuda"})


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_onnx_runtime_for_gpus_is_taken_where_it_is_installed(bundle, cache, gpu, monkeypatch) -> None:
    real = import_runtime().get_available_providers()
    monkeypatch.setattr(import_runtime(), "get_available_providers", lambda: [CUDA_PROVIDER, *real])
    (name,) = cuda_candidate(bundle)
    assert name.endswith(" cuda")
    # Listed and not there, as onnxruntime-gpu says on a machine without a driver: nothing runs on the CPU instead.
    with pytest.raises(RuntimeUnavailable, match="not CUDAExecutionProvider"):
        open_serving_engine(bundle, num_threads=1, cache=cache)


def test_onnx_runtime_for_processors_offers_no_gpu(bundle: Bundle) -> None:
    assert cuda_candidate(bundle) == {}
