"""Engines run by TensorRT or TensorRT-RTX on one GPU. The libraries are imported when a session is opened."""

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foreframe_engines.errors import ModelFault, RuntimeUnavailable
from foreframe_engines.runtime.cuda import CudaDevice
from foreframe_engines.runtime.cuda_memory import CudaMemory, CudaPart
from foreframe_engines.runtime.engine_cache import StoredEngine
from foreframe_engines.runtime.memory import require_memory
from foreframe_engines.runtime.resident import DeviceBatch, Row, RowInputs
from foreframe_engines.runtime.session import TensorSpec
from foreframe_engines.runtime.tensorrt_library import TensorRtLibrary


class TensorRtSession:
    """One engine on one GPU: each run takes the profile that its shapes fit, and device memory that is kept.

    Runs from several threads take turns, as they share the device's stream.
    """

    device = "cuda"

    def __init__(self, stored: StoredEngine, library: TensorRtLibrary, device: CudaDevice) -> None:
        """Load an engine.

        Raises RuntimeUnavailable when it was built for another GPU or library, or the memory or driver is not there.
        """
        key = stored.record.key
        self._name = f"{key.graph} on {library.name}"
        _require_same("architecture", key.architecture, device.architecture, self._name)
        _require_same("driver", key.driver or device.driver, device.driver, self._name)
        _require_same(
            "library", f"{key.library} {key.library_version}", f"{library.name} {library.version}", self._name
        )
        require_memory(self._name, stored.record.plan_bytes, device.free_bytes(), "on the GPU")
        self._library, self._gpu, self._lock = library, device, threading.Lock()
        self._log = library.open_log()
        self._runtime, self._engine = self._load(stored)
        self.inputs, self.outputs = stored.record.inputs, stored.record.outputs
        self.input_names = tuple(spec.name for spec in self.inputs)
        self.output_names = tuple(spec.name for spec in self.outputs)
        self._contexts: dict[int, Any] = {}
        self._buffers = {name: _Buffer() for name in (*self.input_names, *self.output_names)}
        self._memory = CudaMemory(device)
        self._rows = RowInputs(self._memory)

    @property
    def memory(self) -> CudaMemory:
        """Where resident runs read and write."""
        return self._memory

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the engine once; the outputs are new arrays. Raises ModelFault when it fails or no profile fits."""
        with self._lock:
            arrays = {spec.name: self._array(spec, inputs.get(spec.name)) for spec in self.inputs}
            context = self._context({name: array.shape for name, array in arrays.items()})
            for name, array in arrays.items():
                context.set_input_shape(name, array.shape)
                self._gpu.upload(self._bind(context, name, array.nbytes), array)
            outputs = {spec.name: np.empty(self._output_shape(context, spec), spec.dtype) for spec in self.outputs}
            pointers = {name: self._bind(context, name, array.nbytes) for name, array in outputs.items()}
            self._execute(context)
            for name, array in outputs.items():
                self._gpu.download(array, pointers[name])
            self._gpu.synchronise()
            return outputs

    def run_resident(
        self, inputs: Mapping[str, Sequence[Row]], size: int, lasting: Collection[str] = ()
    ) -> dict[str, DeviceBatch]:
        """Run the engine once on rows; what it gives stays on the device. Raises ModelFault as `run` does."""
        memory = self._memory
        with self._lock:
            parts = {
                spec.name: self._part(spec, inputs.get(spec.name), size, is_lasting=spec.name in lasting)
                for spec in self.inputs
            }
            context = self._context({name: part.shape for name, part in parts.items()})
            for name, part in parts.items():
                context.set_input_shape(name, part.shape)
                context.set_tensor_address(name, part.pointer)
            outputs = {
                spec.name: memory.empty(self._output_shape(context, spec), np.dtype(spec.dtype), f"{spec.name!r}")
                for spec in self.outputs
            }
            for name, part in outputs.items():
                context.set_tensor_address(name, part.pointer)
            self._execute(context)
            self._gpu.synchronise()
        return {name: DeviceBatch(part, part.shape, part.dtype, memory) for name, part in outputs.items()}

    def close(self) -> None:
        """Free the engine and its memory once the last run has returned."""
        with self._lock:
            self._contexts.clear()
            for buffer in self._buffers.values():
                if buffer.num_bytes:
                    self._gpu.free(buffer.pointer)
            self._buffers.clear()
            self._rows = RowInputs(self._memory)  # forgets what it kept
            self._memory.close()
            self._engine = self._runtime = None

    def _load(self, stored: StoredEngine) -> tuple[Any, Any]:
        runtime = self._library.module.Runtime(self._log.sink)
        engine = runtime.deserialize_cuda_engine(stored.plan)
        if engine is None:
            raise RuntimeUnavailable(f"{self._name} cannot be loaded: {self._log.last_error()}")
        require_memory(f"running {self._name}", int(engine.device_memory_size_v2), self._gpu.free_bytes(), "on the GPU")
        return runtime, engine

    def _execute(self, context: Any) -> None:  # noqa: ANN401 - the library has no types
        if not context.execute_async_v3(self._gpu.stream):
            raise ModelFault(f"{self._name} failed: {self._log.last_error()}")

    def _part(self, spec: TensorSpec, rows: Sequence[Row] | None, size: int, *, is_lasting: bool) -> CudaPart:
        if not rows or not spec.fits(TensorSpec(spec.name, str(rows[0].dtype), (size, *rows[0].shape))):
            raise ModelFault(f"{self._name}: input {spec.name!r} is not {spec.dtype} {list(spec.shape)}")
        return self._memory.aligned(self._rows.bring(spec.name, rows, size, is_lasting=is_lasting))

    def _array(self, spec: TensorSpec, values: np.ndarray | None) -> np.ndarray:
        if values is None or not spec.fits(TensorSpec(spec.name, str(values.dtype), values.shape)):
            raise ModelFault(f"{self._name}: input {spec.name!r} is not {spec.dtype} {list(spec.shape)}")
        return np.ascontiguousarray(values)

    def _context(self, shapes: Mapping[str, tuple[int, ...]]) -> Any:  # noqa: ANN401 - the library has no types
        place = self._find_profile(shapes)
        if place not in self._contexts:
            # Memory for the profile's own sizes; by default each context takes what the largest needs.
            strategy = self._library.module.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
            context = self._engine.create_execution_context(strategy)
            if context is None:
                raise ModelFault(f"{self._name} cannot run: {self._log.last_error()}")
            context.set_optimization_profile_async(place, self._gpu.stream)
            self._contexts[place] = context
        return self._contexts[place]

    def _find_profile(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        free = [spec.name for spec in self.inputs if None in spec.shape]
        if not free:
            return 0
        for place in range(self._engine.num_optimization_profiles):
            if all(_is_within(shapes[name], self._engine.get_tensor_profile_shape(name, place)) for name in free):
                return place
        raise ModelFault(f"{self._name} was built for no such sizes: {_say_shapes(shapes)}")

    def _output_shape(self, context: Any, spec: TensorSpec) -> tuple[int, ...]:  # noqa: ANN401
        return tuple(int(length) for length in context.get_tensor_shape(spec.name))

    def _bind(self, context: Any, name: str, num_bytes: int) -> int:  # noqa: ANN401
        """Give a tensor memory of at least its size; it is kept for the next run."""
        buffer = self._buffers[name]
        if buffer.num_bytes < num_bytes:
            if buffer.num_bytes:
                self._gpu.free(buffer.pointer)
                buffer.num_bytes = 0
            buffer.pointer = self._gpu.allocate(num_bytes, f"{name!r} of {self._name}")
            buffer.num_bytes = num_bytes
        context.set_tensor_address(name, buffer.pointer)
        return buffer.pointer


@dataclass(slots=True)
class _Buffer:
    pointer: int = field(default=0)
    num_bytes: int = field(default=0)


def _require_same(what: str, built: str, present: str, name: str) -> None:
    if built != present:
        raise RuntimeUnavailable(f"{name} was built for {what} {built}, this machine has {present}")


def _is_within(shape: tuple[int, ...], bounds: Sequence[Sequence[int]]) -> bool:
    least, _, most = bounds
    return all(low <= length <= high for low, length, high in zip(least, shape, most, strict=True))


def _say_shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
