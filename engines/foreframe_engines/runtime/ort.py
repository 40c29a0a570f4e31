"""Graphs run by ONNX Runtime. The library is imported when a session is opened, not before."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from foreframe_engines.errors import BundleError, ModelFault, RuntimeUnavailable
from foreframe_engines.graph_file import StoredGraph, open_graph
from foreframe_engines.runtime.ort_memory import OrtMemory
from foreframe_engines.runtime.resident import DeviceBatch, Row, RowInputs
from foreframe_engines.runtime.session import TensorSpec

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
_ERROR_SEVERITY = 3
_DTYPES = {"float": "float32", "double": "float64"}


class OrtSession:
    """One graph on one execution provider, loaded from memory: the library opens no file.

    The thread count is fixed and idle threads sleep instead of spinning, so a server's other threads keep their
    cores. With a fixed thread count a run's bytes depend on its inputs alone, also when runs overlap.
    """

    def __init__(self, graph: StoredGraph | Path, *, num_threads: int, provider: str = CPU_PROVIDER) -> None:
        """Load a graph of a bundle, or one that stands by itself in a file.

        Raises RuntimeUnavailable when ONNX Runtime or the provider is missing, BundleError when the file is no graph
        or one that may not run.
        """
        runtime = import_runtime()
        _require_provider(provider, runtime.get_available_providers())
        self._errors = _runtime_errors(runtime)
        stored = open_graph(graph) if isinstance(graph, Path) else graph
        options = _session_options(runtime, num_threads)
        try:
            self._weights = lend_weights(runtime, options, stored)
            self._session = runtime.InferenceSession(bytes(stored.content), sess_options=options, providers=[provider])
        except self._errors as error:
            raise BundleError(f"{stored.name} does not load: {error}") from error
        # A provider that fails to start is replaced by the CPU without an error.
        _require_provider(provider, self._session.get_providers()[:1])
        self.device = provider.removesuffix("ExecutionProvider").lower()
        self.inputs = tuple(_tensor_spec(node) for node in self._session.get_inputs())
        self.outputs = tuple(_tensor_spec(node) for node in self._session.get_outputs())
        self.input_names = tuple(spec.name for spec in self.inputs)
        self.output_names = tuple(spec.name for spec in self.outputs)
        self._name = stored.name
        self._memory = OrtMemory(runtime, self._session, self.device)
        self._rows = RowInputs(self._memory)

    @property
    def memory(self) -> OrtMemory:
        """Where resident runs read and write."""
        return self._memory

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph once; the outputs are new arrays. Raises ModelFault when it fails."""
        try:
            outputs = self._session.run(self.output_names, inputs)
        except self._errors as error:
            raise ModelFault(f"{self._name} failed: {error}") from error
        # The library's 64-bit integers are C's long long, which numpy holds to be another type than its own int64.
        own = (output.view(output.dtype.str) for output in outputs)
        return dict(zip(self.output_names, own, strict=True))

    def run_resident(
        self, inputs: Mapping[str, Sequence[Row]], size: int, lasting: Collection[str] = ()
    ) -> dict[str, DeviceBatch]:
        """Run the graph once on rows; what it gives stays on the device. Raises ModelFault when it fails."""
        memory = self._memory
        parts = {name: self._rows.bring(name, rows, size, is_lasting=name in lasting) for name, rows in inputs.items()}
        try:
            binding = self._session.io_binding()
            for name, part in parts.items():
                binding.bind_input(name, memory.device, 0, part.dtype, part.shape, part.pointer)
            for name in self.output_names:
                binding.bind_output(name, memory.device, 0)
            self._session.run_with_iobinding(binding)
            values = binding.get_outputs()
        except self._errors as error:
            raise ModelFault(f"{self._name} failed: {error}") from error
        outputs = zip(self.outputs, values, strict=True)
        return {spec.name: self._batch(value, np.dtype(spec.dtype)) for spec, value in outputs}

    def close(self) -> None:
        """Free the graph and its threads once the last run has returned, and no row that it gave is in use."""
        del self._session, self._memory, self._rows, self._weights

    def _batch(self, value: Any, dtype: np.dtype[Any]) -> DeviceBatch:  # noqa: ANN401 - the library has no types
        part = self._memory.own(value, dtype)
        return DeviceBatch(part, part.shape, dtype, self._memory)


class _Node(Protocol):
    name: str
    type: str
    shape: list[int | str | None]


def import_runtime() -> ModuleType:
    """Import the library. Raises RuntimeUnavailable when it is missing."""
    try:
        import onnxruntime  # noqa: PLC0415 - importing the package must not need a runtime
    except ImportError as error:
        raise RuntimeUnavailable("ONNX Runtime is not installed; run `pip install onnxruntime`") from error
    return onnxruntime


def lend_weights(runtime: ModuleType, options: Any, graph: StoredGraph) -> list[Any]:  # noqa: ANN401
    """Give a session's options the values that lie outside its graph; keep what is returned as long as the session."""
    if not graph.tensors:
        return []
    arrays = ((np.require(tensor.values, requirements="A"), tensor.element_type) for tensor in graph.tensors)
    values = [runtime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, kind) for array, kind in arrays]
    options.add_external_initializers([tensor.name for tensor in graph.tensors], values)
    return values


def _require_provider(provider: str, present: list[str]) -> None:
    if provider not in present:
        raise RuntimeUnavailable(f"ONNX Runtime offers {', '.join(present)} here, not {provider}")


def _session_options(runtime: ModuleType, num_threads: int) -> Any:  # noqa: ANN401 - the library has no types
    options = runtime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.use_deterministic_compute = True
    options.log_severity_level = _ERROR_SEVERITY
    return options


def _runtime_errors(runtime: ModuleType) -> tuple[type[Exception], ...]:
    """List what the library raises: its own classes share no base."""
    classes = vars(runtime.capi.onnxruntime_pybind11_state).values()
    own = (kind for kind in classes if isinstance(kind, type) and issubclass(kind, Exception))
    return (*own, RuntimeError, ValueError, TypeError)


def _tensor_spec(node: _Node) -> TensorSpec:
    element = node.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(length if isinstance(length, int) else None for length in node.shape)
    return TensorSpec(node.name, _DTYPES.get(element, element), shape)
