"""The engine that a server opens: the fastest way to run a bundle here, and a better one as soon as it is built.

Without a folder for engines a bundle runs on ONNX Runtime as it lies, and nothing is measured.
"""

from functools import partial

from foreframe_engines.bundle import Bundle, rollout_graph_names
from foreframe_engines.candidates import cuda_candidate, onnxruntime_candidates
from foreframe_engines.choice import ChoiceKey, name_machine, open_fastest_engine
from foreframe_engines.engine import RolloutEngine
from foreframe_engines.errors import RuntimeUnavailable
from foreframe_engines.golden import Goldens, record_rollout
from foreframe_engines.rollout import open_rollout_engine
from foreframe_engines.runtime.cuda import CudaDevice
from foreframe_engines.runtime.engine_cache import EngineCache
from foreframe_engines.runtime.parity import TOLERANCES
from foreframe_engines.runtime.tensorrt_library import find_library
from foreframe_engines.runtime.typed_graph import Precision
from foreframe_engines.swapping import SwappingRolloutEngine
from foreframe_engines.tensorrt_engine import (
    EngineSpec,
    Target,
    approve_graphs,
    beside,
    build_graphs,
    open_tensorrt_engine,
)

_REFERENCE = "onnxruntime"


def open_serving_engine(
    bundle: Bundle, *, num_threads: int, cache: EngineCache | None, precision: Precision = Precision.FP32
) -> RolloutEngine:
    """Open a bundle's rollout model for serving.

    cache: where engines and measurements are kept; None takes the folder beside the bundle where there is one. On a
    machine with a GPU and TensorRT, its engines are built in a thread of their own and take over once they agree with
    ONNX Runtime. Raises BundleError for a bad bundle, RuntimeUnavailable without ONNX Runtime.
    """
    folder = cache or (beside(bundle) if beside(bundle).folder.is_dir() else None)
    if folder is None:
        return open_rollout_engine(bundle, num_threads=num_threads)
    gpu = _find_gpu()
    key = ChoiceKey(bundle.digest, name_machine("" if gpu is None else gpu.architecture), bundle.contract.buckets)
    # Beside a GPU the processor is not worth measuring: a step of a large model takes minutes there.
    candidates = {} if gpu is None else cuda_candidate(bundle)
    fallback = open_fastest_engine(candidates or onnxruntime_candidates(bundle, num_threads=num_threads), key, folder)
    if gpu is None:
        return fallback
    prepare = partial(prepare_tensorrt, bundle, gpu, folder, precision, num_threads=num_threads)
    swapping = SwappingRolloutEngine(fallback, prepare, tolerance=TOLERANCES[precision])
    swapping.start()
    return swapping


def prepare_tensorrt(
    bundle: Bundle, gpu: CudaDevice, cache: EngineCache, precision: Precision, *, num_threads: int
) -> RolloutEngine:
    """Find or build the rollout model's engines, compare them with ONNX Runtime, and open them.

    Raises RuntimeUnavailable without TensorRT, or when the step's engine is refused or differs.
    """
    spec = EngineSpec(bundle, Target.of_device(find_library(), gpu), precision, bundle.contract.buckets)
    goldens = _Goldens(spec, num_threads)
    builds = build_graphs(spec, cache, goldens, rollout_graph_names(bundle.graphs))
    if not all(build.is_approved for build in builds.values() if build.stored is not None):
        builds = approve_graphs(builds, spec, cache, gpu, goldens(), _REFERENCE)
    return open_tensorrt_engine(builds, spec, gpu, num_threads=num_threads)


class _Goldens:
    """Runs of every rollout graph on ONNX Runtime, recorded when they are first asked for."""

    def __init__(self, spec: EngineSpec, num_threads: int) -> None:
        self._spec, self._num_threads = spec, num_threads
        self._recorded: Goldens | None = None

    def __call__(self) -> Goldens:
        if self._recorded is None:
            engine = open_rollout_engine(self._spec.bundle, num_threads=self._num_threads)
            self._recorded = record_rollout(self._spec.bundle, engine.sessions, self._spec.buckets)
            engine.close()
        return self._recorded


def _find_gpu() -> CudaDevice | None:
    """Open the GPU where there is one and TensorRT can run on it."""
    try:
        library, gpu = find_library(), CudaDevice()
        library.require_architecture(gpu.architecture)
    except RuntimeUnavailable:
        return None
    return gpu
