"""The other runtimes of the full-size measurement, at reduced depth: ONNX Runtime on CUDA, TensorRT, beside torch."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from wan_bench import Bench, NotMeasured, StepRun
from wan_parts import Clip, build_rollout, like

from foreframe_engines.errors import EngineError, RuntimeUnavailable
from foreframe_engines.runtime.cuda import CudaDevice
from foreframe_engines.runtime.engine_cache import EngineKey, EngineRecord, StoredEngine
from foreframe_engines.runtime.onnx_files import read_graph
from foreframe_engines.runtime.ort import CPU_PROVIDER, OrtSession, import_runtime
from foreframe_engines.runtime.session import Session
from foreframe_engines.runtime.tensorrt import TensorRtSession
from foreframe_engines.runtime.tensorrt_builder import BuildOrder, Length, build_engine
from foreframe_engines.runtime.tensorrt_library import find_library
from foreframe_engines.runtime.typed_graph import Precision, lower
from foreframe_models.graph import export_graph
from foreframe_models.precision import Storage, round_to_half
from foreframe_models.rollout import RolloutModel
from foreframe_models.rollout_graphs import flow_graphs_of
from foreframe_models.timing import Way, time_in_turns
from foreframe_models.torch_engine import TorchOptions, place_rollout
from foreframe_models.weights import WEIGHTS, StoredWeights, save_weights

CUDA_PROVIDER = "CUDAExecutionProvider"
MAX_APART = 5e-2
_STORAGE = Storage(torch.bfloat16, whole=("norm", "scale_shift_table", "time_embedder", "state_branch", "states_"))
_NUM_THREADS = 1

Inputs = Mapping[str, np.ndarray]
OpenSession = Callable[[Path, Bench], Session]


def runtimes(bench: Bench) -> dict[str, object]:
    """Export a step of few layers, then check and time it on every runtime that is here, in turns with torch."""
    bench.require_time(150, "an export and other runtimes")
    _require_any(bench)
    config = bench.sizes.config(bench.sizes.clips[0])
    config = replace(config, transformer=replace(config.transformer, num_layers=bench.sizes.runtime_layers))
    model = build_rollout(config, torch.device("cpu"), Precision.FP32)
    with tempfile.TemporaryDirectory() as folder:
        path = _export(model, Path(folder))
        return {"layers": bench.sizes.runtime_layers} | _compare(bench, model, path)


def _require_any(bench: Bench) -> None:
    """Raise NotMeasured where an export would serve nothing."""
    if bench.device.type != "cuda" or CUDA_PROVIDER in import_runtime().get_available_providers():
        return
    try:
        find_library()
    except RuntimeUnavailable as error:
        raise NotMeasured(f"ONNX Runtime has no CUDA here, and {error}") from error


def _export(model: RolloutModel, folder: Path) -> Path:
    round_to_half(model, _STORAGE)
    save_weights(folder / WEIGHTS, {"rollout": model}, _STORAGE)
    path = folder / "step.onnx"
    proto = export_graph(flow_graphs_of(model)["step"], StoredWeights.read(folder / WEIGHTS))
    path.write_bytes(proto.SerializeToString())
    return path


def _compare(bench: Bench, model: RolloutModel, path: Path) -> dict[str, object]:
    clip = Clip.draw(model.config, 1, torch.device("cpu"))
    exact = StepRun.of(flow_graphs_of(model), clip, model, 1)
    inputs = {name: np.stack([np.asarray(row) for row in rows]) for name, rows in exact.rows.items()}
    expected = exact().to_host()
    sessions: dict[str, Session] = {"torch eager": _open_torch(bench, model)}
    found: dict[str, object] = {}
    for name, open_session in (("ONNX Runtime", _open_onnxruntime), ("TensorRT", _open_tensorrt)):
        try:
            sessions[name] = open_session(path, bench)
        except EngineError as error:
            found[name] = f"not measured: {error}"
    apart = {name: _apart(session, inputs, expected) for name, session in sessions.items()}
    ways: dict[str, Way] = {name: partial(sessions[name].run, inputs) for name in sessions if apart[name] <= MAX_APART}
    timings = time_in_turns(ways, bench.device, rounds=bench.sizes.rounds)
    for name, distance in apart.items():
        times = asdict(timings[name]) if name in timings else {"median": "not timed: it differs too much"}
        found[name] = {**times, "from torch in single precision": distance}
    for session in sessions.values():
        session.close()
    return found


def _apart(session: Session, inputs: Inputs, expected: np.ndarray) -> float:
    """Return the error of the move that a step made, as a share of the move."""
    (output,) = session.run(inputs).values()
    error = np.linalg.norm(output - expected) / np.linalg.norm(expected - inputs["latents"])
    return float(error) if np.isfinite(error) else float("inf")


def _open_torch(bench: Bench, model: RolloutModel) -> Session:
    served = like(model)
    place_rollout(served, TorchOptions(str(bench.device), bench.precision))
    clip = Clip.draw(model.config, 1, bench.device)
    return StepRun.of(flow_graphs_of(served), clip, served, 1).session


def _open_onnxruntime(path: Path, bench: Bench) -> Session:
    if bench.device.type != "cuda":
        return OrtSession(path, num_threads=_NUM_THREADS, provider=CPU_PROVIDER)
    graph = onnx.load(path, load_external_data=False)
    lower(graph, bench.precision)
    lowered = path.with_name("step-lowered.onnx")
    lowered.write_bytes(graph.SerializeToString())
    return OrtSession(lowered, num_threads=_NUM_THREADS, provider=CUDA_PROVIDER)


def _open_tensorrt(path: Path, bench: Bench) -> Session:
    device, library = CudaDevice(), find_library()
    profile = {"b": Length.fixed(1)}
    order = BuildOrder(read_graph(path), device.architecture, (profile,), bench.precision)
    built = build_engine(library, order)
    plan = path.with_name("step.plan")
    plan.write_bytes(built.plan)
    key = EngineKey(
        graph="step",
        graph_sha256="",
        weights_sha256="",
        library=library.name,
        library_version=library.version,
        cuda=device.runtime,
        driver=device.driver,
        architecture=device.architecture,
        profiles=("b:1..1..1",),
        precision=bench.precision,
        flags=(),
    )
    record = EngineRecord(key, "", len(built.plan), built.seconds, built.inputs, built.outputs)
    return TensorRtSession(StoredEngine(record, plan, memoryview(built.plan)), library, device)
