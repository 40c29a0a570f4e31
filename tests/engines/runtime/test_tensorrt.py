"""Sessions on a toy GPU: profiles, memory and refusals; and what the real library says where there is no GPU."""

import gc
import hashlib
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foreframe_engines import ModelFault, RuntimeUnavailable
from foreframe_engines.runtime.cuda import CudaDevice
from foreframe_engines.runtime.cuda_memory import CudaMemory
from foreframe_engines.runtime.engine_cache import EngineCache, EngineKey, EngineRecord, StoredEngine
from foreframe_engines.runtime.onnx_files import read_graph
from foreframe_engines.runtime.ort import OrtSession
from foreframe_engines.runtime.resident import ResidentSession, Traffic
from foreframe_engines.runtime.session import Session
from foreframe_engines.runtime.tensorrt import TensorRtSession
from foreframe_engines.runtime.tensorrt_builder import BuildOrder, Length, build_engine
from foreframe_engines.runtime.tensorrt_library import TensorRtLibrary, find_library
from foreframe_engines.testing_gpu import ToyGpu

KEY = EngineKey("network", "a", "b", "tensorrt", "11.0", "13.0", "13.1", "sm90", (), "fp32")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ToyGpu:
    toy = ToyGpu()
    for name, module in toy.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return toy


MakeStored = Callable[..., StoredEngine]


@pytest.fixture
def make_stored(gpu: ToyGpu, network: Path, tmp_path: Path) -> MakeStored:
    """Build the small network for the toy GPU and store it, with changes to its key."""

    def make(*sizes: int, **changes: str) -> StoredEngine:
        profiles = tuple({"b": Length.fixed(size)} for size in sizes or (1, 4))
        built = build_engine(find_library(), BuildOrder(read_graph(network), "sm90", profiles))
        digest = hashlib.sha256(built.plan).hexdigest()
        key = replace(KEY, **changes)
        record = EngineRecord(key, digest, len(built.plan), built.seconds, built.inputs, built.outputs)
        return EngineCache(tmp_path / "engines").store(record, built.plan)

    return make


def open_session(stored: StoredEngine) -> TensorRtSession:
    return TensorRtSession(stored, find_library(), CudaDevice())


def inputs_of(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((rows, 128), dtype=np.float32)}


def test_a_session_gives_what_onnxruntime_gives(make_stored: MakeStored, network: Path) -> None:
    session, reference = open_session(make_stored()), OrtSession(network, num_threads=1)
    assert isinstance(session, Session)
    assert (session.device, session.input_names, session.output_names) == ("cuda", ("x",), ("y", "pixels"))
    for rows in (1, 4, 1):
        outputs, expected = session.run(inputs_of(rows, rows)), reference.run(inputs_of(rows, rows))
        for name, values in expected.items():
            np.testing.assert_array_equal(outputs[name], values)
            assert outputs[name].dtype == values.dtype


def test_sizes_without_a_profile_are_refused_by_name(make_stored: MakeStored) -> None:
    with pytest.raises(ModelFault, match=r"network on tensorrt was built for no such sizes: x \[3, 128\]"):
        open_session(make_stored()).run(inputs_of(3))


@pytest.mark.parametrize(
    "inputs",
    [{}, {"x": np.zeros((1, 128))}, {"x": np.zeros(128, np.float32)}, {"other": np.zeros((1, 128), np.float32)}],
    ids=["missing", "dtype", "rank", "name"],
)
def test_inputs_of_another_form_are_a_model_fault(make_stored: MakeStored, inputs: dict[str, np.ndarray]) -> None:
    with pytest.raises(ModelFault, match=r"input 'x' is not float32 \[None, 128\]"):
        open_session(make_stored()).run(inputs)


def test_arrays_that_are_not_contiguous_are_taken(make_stored: MakeStored) -> None:
    session, values = open_session(make_stored()), np.asfortranarray(inputs_of(4)["x"])
    np.testing.assert_array_equal(session.run({"x": values})["y"], session.run(inputs_of(4))["y"])


def test_outputs_are_new_arrays_every_time(make_stored: MakeStored) -> None:
    session = open_session(make_stored())
    first = session.run(inputs_of(1, 1))["y"]
    kept = first.copy()
    session.run(inputs_of(1, 2))
    np.testing.assert_array_equal(first, kept)


def test_memory_is_kept_between_runs_and_given_back_at_the_end(make_stored: MakeStored, gpu: ToyGpu) -> None:
    session = open_session(make_stored())
    session.run(inputs_of(4))
    used = gpu.used_bytes
    assert used == 4 * (128 * 4 + 128 * 4 + 128)
    for rows in (1, 4, 4, 1):
        session.run(inputs_of(rows))
    assert gpu.used_bytes == used
    session.close()
    assert gpu.used_bytes == 0


def test_runs_from_several_threads_take_turns(make_stored: MakeStored) -> None:
    session = open_session(make_stored())
    expected = [session.run(inputs_of(1 + 3 * (seed % 2), seed))["y"] for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: session.run(inputs_of(1 + 3 * (seed % 2), seed))["y"], range(12)))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "sm89"}, "network on tensorrt was built for architecture sm89, this machine has sm90"),
        ({"driver": "12.8"}, "built for driver 12.8, this machine has 13.1"),
        ({"library_version": "10.13"}, "built for library tensorrt 10.13, this machine has tensorrt 11.0"),
        ({"library": "tensorrt-rtx"}, "built for library tensorrt-rtx 11.0"),
    ],
)
def test_an_engine_for_another_machine_is_refused(make_stored: MakeStored, changes: dict[str, str], words: str) -> None:
    with pytest.raises(RuntimeUnavailable, match=words):
        open_session(make_stored(**changes))


def test_an_engine_for_any_driver_is_taken(make_stored: MakeStored) -> None:
    open_session(make_stored(driver="")).close()


def test_a_plan_that_cannot_be_loaded_is_refused_in_one_line(make_stored: MakeStored) -> None:
    stored = replace(make_stored(), plan=memoryview(b"not an engine"))
    with pytest.raises(RuntimeUnavailable, match="network on tensorrt cannot be loaded: the plan cannot be read"):
        open_session(stored)


@pytest.mark.parametrize(
    ("total_bytes", "words"),
    [(64, "network on tensorrt needs about"), (40_000, "needs about .* GiB on the GPU, 0.0 GiB are free")],
)
def test_too_little_memory_on_the_gpu_is_said_with_numbers(make_stored, gpu, total_bytes: int, words: str) -> None:
    stored = make_stored(1, 64)
    gpu.total_bytes = total_bytes
    with pytest.raises(RuntimeUnavailable, match=words):
        open_session(stored).run(inputs_of(64))


def test_a_toy_gpu_can_be_wrong(make_stored: MakeStored, gpu: ToyGpu) -> None:
    session = open_session(make_stored())
    right = session.run(inputs_of(1))["y"]
    gpu.error = 0.5
    np.testing.assert_allclose(session.run(inputs_of(1))["y"], right + 0.5, rtol=1e-6)


def test_the_real_library_without_a_driver_is_refused_in_one_line(
    rtx: TensorRtLibrary, network: Path, tmp_path
) -> None:
    built = build_engine(rtx, BuildOrder(read_graph(network), "sm89", ({"b": Length.fixed(1)},)))
    digest = hashlib.sha256(built.plan).hexdigest()
    key = replace(KEY, library=rtx.name, library_version=rtx.version, driver="", architecture="sm89")
    record = EngineRecord(key, digest, len(built.plan), built.seconds, built.inputs, built.outputs)
    stored = EngineCache(tmp_path / "engines").store(record, built.plan)
    toy = ToyGpu(architecture=(8, 9))
    with pytest.MonkeyPatch.context() as patch:
        for name, module in toy.modules().items():
            patch.setitem(sys.modules, name, module)
        device = CudaDevice()
    if has_gpu():
        pytest.skip("there is a GPU here")
    with pytest.raises(RuntimeUnavailable, match=r"^network on tensorrt-rtx cannot be loaded: .*driver[^\n]*$"):
        TensorRtSession(stored, rtx, device)


def has_gpu() -> bool:
    try:
        CudaDevice()
    except RuntimeUnavailable:
        return False
    return True


def test_resident_runs_give_what_runs_through_the_host_give(make_stored: MakeStored) -> None:
    session = open_session(make_stored())
    assert isinstance(session, ResidentSession)
    for rows in (1, 3, 4):
        inputs = inputs_of(rows, rows)
        size = 1 if rows == 1 else 4
        filled = np.concatenate([inputs["x"], np.zeros((size - rows, 128), np.float32)])
        expected = session.run({"x": filled})
        outputs = session.run_resident({"x": list(inputs["x"])}, size)
        for name, batch in outputs.items():
            np.testing.assert_array_equal(np.stack(batch.rows(rows)), expected[name][:rows])


def test_a_resident_chain_copies_nothing_and_keeps_what_came_before(make_stored: MakeStored) -> None:
    session, reference = open_session(make_stored()), open_session(make_stored())
    values, kept = inputs_of(4)["x"], []
    rows: list = list(values)
    for _ in range(3):
        batch = session.run_resident({"x": rows}, 4)["y"]
        rows = batch.rows(4)
        kept.append(batch)
    assert session.memory.traffic == Traffic(uploaded_bytes=values.nbytes)
    for batch in kept:
        values = reference.run({"x": values})["y"]
        np.testing.assert_array_equal(batch.to_host(), values)


def test_rows_from_everywhere_meet_on_the_gpu(make_stored: MakeStored) -> None:
    session = open_session(make_stored())
    ones, twos = (session.run_resident({"x": list(inputs_of(4, seed)["x"])}, 4)["y"] for seed in (1, 2))
    host = inputs_of(1, 3)["x"][0]
    company = [ones.rows(4)[2], host, twos.rows(4)[0]]
    found = session.run_resident({"x": company}, 4)["y"].to_host()
    expected = session.run({"x": np.stack([*company, np.zeros(128, np.float32)])})["y"]
    np.testing.assert_array_equal(found, expected)
    assert session.memory.traffic.gathered_bytes == 2 * 128 * 4


def test_a_part_at_an_odd_address_is_copied_to_a_whole_one(make_stored: MakeStored, gpu: ToyGpu) -> None:
    memory = CudaMemory(CudaDevice())
    whole = memory.gather(list(np.arange(12, dtype=np.float32).reshape(3, 4)), 3)
    odd = memory.view(whole, 1, (4,))
    assert memory.aligned(whole) is whole
    copied = memory.aligned(odd)
    np.testing.assert_array_equal(memory.download(copied), [1, 2, 3, 4])
    assert memory.traffic.gathered_bytes == 16


@pytest.mark.parametrize(
    "rows",
    [{}, {"x": [np.zeros(128)]}, {"x": [np.zeros((1, 128), np.float32)]}, {"x": []}],
    ids=["missing", "dtype", "rank", "none"],
)
def test_rows_of_another_form_are_a_model_fault(make_stored: MakeStored, rows: dict) -> None:
    with pytest.raises(ModelFault, match=r"input 'x' is not float32 \[None, 128\]"):
        open_session(make_stored()).run_resident(rows, 1)


def test_resident_memory_is_used_again_and_given_back(make_stored: MakeStored, gpu: ToyGpu) -> None:
    session = open_session(make_stored())
    rows: list = list(inputs_of(4)["x"])
    used = []
    for _ in range(6):
        rows = session.run_resident({"x": rows}, 4)["y"].rows(4)
        gc.collect()
        used.append(gpu.used_bytes)
    assert used[2:] == used[2:3] * 4
    session.close()
    assert gpu.used_bytes == 4 * 128 * 4, "what is still held"
    del rows
    gc.collect()
    assert gpu.used_bytes == 0
