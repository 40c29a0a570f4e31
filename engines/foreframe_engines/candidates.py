"""The ways to run a bundle that serving has without torch, each named with what it runs on."""

from functools import partial

from foreframe_engines.bundle import Bundle
from foreframe_engines.choice import OpenEngine
from foreframe_engines.rollout import open_rollout_engine
from foreframe_engines.runtime.cuda import CudaDevice
from foreframe_engines.runtime.ort import CUDA_PROVIDER, import_runtime
from foreframe_engines.tensorrt_engine import Builds, EngineSpec, open_tensorrt_engine


def onnxruntime_candidates(bundle: Bundle, *, num_threads: int) -> dict[str, OpenEngine]:
    """Return ONNX Runtime on the CPU: every thread a forward of its own, and all threads on one forward at a time.

    Raises RuntimeUnavailable without ONNX Runtime.
    """
    version = import_runtime().__version__
    candidates: dict[str, OpenEngine] = {
        _name(version, num_threads, num_lanes): partial(
            open_rollout_engine, bundle, num_threads=num_threads, num_lanes=num_lanes
        )
        for num_lanes in (num_threads, 1)
    }
    return candidates


def cuda_candidate(bundle: Bundle) -> dict[str, OpenEngine]:
    """Return ONNX Runtime on the GPU, where the one that is installed has it. Raises RuntimeUnavailable without it."""
    runtime = import_runtime()
    if CUDA_PROVIDER not in runtime.get_available_providers():
        return {}
    return {
        f"onnxruntime {runtime.__version__} cuda": partial(
            open_rollout_engine, bundle, num_threads=1, provider=CUDA_PROVIDER
        )
    }


def tensorrt_candidate(
    builds: Builds, spec: EngineSpec, device: CudaDevice, *, num_threads: int
) -> dict[str, OpenEngine]:
    """Return the bundle on TensorRT, where its step has an engine."""
    step, target = builds["step"], spec.target
    if step.stored is None:
        return {}
    name = f"{target.library.name} {target.library.version} {step.precision} on {target.architecture}"
    return {name: partial(open_tensorrt_engine, builds, spec, device, num_threads=num_threads)}


def _name(version: str, num_threads: int, num_lanes: int) -> str:
    return f"onnxruntime {version} cpu, {num_threads} threads in {num_lanes} lanes"
