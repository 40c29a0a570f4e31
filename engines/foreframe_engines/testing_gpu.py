"""A toy GPU for tests: `cuda-bindings` on host memory, and TensorRT that runs its engines on ONNX Runtime.

The modules stand in for the real ones in `sys.modules`; what the engines package does with them is the real thing.
An engine is the graph itself with its profiles, so only graphs in float32 can be built.
"""

import ctypes
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

_DTYPES = {1: "FLOAT", 2: "UINT8", 7: "INT64", 9: "BOOL"}


@dataclass(slots=True)
class ToyGpu:
    """What a toy GPU is, and what is planted in it.

    error: what every float that an engine gives is off by. refused: types of nodes that no engine can have.
    """

    architecture: tuple[int, int] = (9, 0)
    total_bytes: int = 2**30
    driver: int = 13010
    error: float = 0.0
    refused: tuple[str, ...] = ()
    used_bytes: int = 0
    blocks: dict[int, Any] = field(default_factory=dict)
    num_builds: int = 0

    def modules(self, library: str = "tensorrt", version: str = "11.0") -> dict[str, ModuleType]:
        """Return the modules that stand for this GPU, by the names they are imported with."""
        names = ("cuda", "cuda.bindings", "cuda.bindings.runtime")
        modules = {name: ModuleType(name) for name in names}
        vars(modules[names[-1]]).update(_cuda_functions(self))
        trt = ModuleType(library)
        vars(trt).update(_library_contents(self), __version__=version)
        return {**modules, library: trt}


_Status = IntEnum("_Status", {"cudaSuccess": 0, "cudaErrorMemoryAllocation": 2, "cudaErrorNoDevice": 100})


def _cuda_functions(gpu: ToyGpu) -> dict[str, object]:
    def malloc(num_bytes: int) -> tuple[_Status, int | None]:
        if gpu.used_bytes + num_bytes > gpu.total_bytes:
            return _Status.cudaErrorMemoryAllocation, None
        block = ctypes.create_string_buffer(num_bytes)
        gpu.blocks[ctypes.addressof(block)] = block
        gpu.used_bytes += num_bytes
        return _Status.cudaSuccess, ctypes.addressof(block)

    def free(pointer: int) -> tuple[_Status]:
        gpu.used_bytes -= len(gpu.blocks.pop(pointer))
        return (_Status.cudaSuccess,)

    def copy(target: int, source: int, num_bytes: int, kind: int, stream: int) -> tuple[_Status]:  # noqa: ARG001
        ctypes.memmove(target, source, num_bytes)
        return (_Status.cudaSuccess,)

    def number(value: object) -> object:
        return lambda *_: (_Status.cudaSuccess, value)

    attributes = SimpleNamespace(cudaDevAttrComputeCapabilityMajor=0, cudaDevAttrComputeCapabilityMinor=1)
    return {
        "cudaSetDevice": lambda at: (_Status.cudaErrorNoDevice,) if at else (_Status.cudaSuccess,),
        "cudaDeviceAttr": attributes,
        "cudaDeviceGetAttribute": lambda which, _: (_Status.cudaSuccess, gpu.architecture[which]),
        "cudaDriverGetVersion": number(gpu.driver),
        "cudaRuntimeGetVersion": number(13000),
        "cudaStreamCreate": number(7),
        "cudaStreamDestroy": lambda _: (_Status.cudaSuccess,),
        "cudaStreamSynchronize": lambda _: (_Status.cudaSuccess,),
        "cudaMemGetInfo": lambda: (_Status.cudaSuccess, gpu.total_bytes - gpu.used_bytes, gpu.total_bytes),
        "cudaMalloc": malloc,
        "cudaFree": free,
        "cudaMemcpyAsync": copy,
        "cudaMemcpyKind": SimpleNamespace(
            cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
        ),
    }


def _library_contents(gpu: ToyGpu) -> dict[str, object]:
    class Builder(_Builder):
        def build_serialized_network(self, network: "_Network", config: "_Config") -> bytes:
            gpu.num_builds += 1
            return super().build_serialized_network(network, config)

    class Runtime(_Runtime):
        def deserialize_cuda_engine(self, plan: Any) -> "_Engine | None":  # noqa: ANN401 - any buffer
            return self.load(bytes(plan), gpu)

    class Parser(_Parser):
        def parse_model_proto(self) -> bool:
            return self.read(gpu.refused)

    return {
        "ILogger": type("ILogger", (), {"Severity": SimpleNamespace(ERROR=1)}),
        "Builder": Builder,
        "Runtime": Runtime,
        "OnnxParser": Parser,
        "NetworkDefinitionCreationFlag": SimpleNamespace(STRONGLY_TYPED=0),
        "BuilderFlag": SimpleNamespace(TF32=0),
        "ComputeCapability": IntEnum("ComputeCapability", ["NONE", "SM89", "SM90"]),
        "ExecutionContextAllocationStrategy": SimpleNamespace(ON_PROFILE_CHANGE=1),
    }


@dataclass(slots=True, eq=False)
class _Tensor:
    """An input or output of a network."""

    name: str
    dtype: Any
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    is_shape_tensor: bool = False

    def get_dimension_name(self, index: int) -> str:
        return self.axes[index]


@dataclass(slots=True, eq=False)
class _Network:
    proto: bytes = b""
    inputs: list[_Tensor] = field(default_factory=list)
    outputs: list[_Tensor] = field(default_factory=list)

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, index: int) -> _Tensor:
        return self.inputs[index]

    def get_output(self, index: int) -> _Tensor:
        return self.outputs[index]


class _Parser:
    def __init__(self, network: _Network, log: Any) -> None:  # noqa: ANN401
        self._network, self._log = network, log
        self._errors: list[SimpleNamespace] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> SimpleNamespace:
        return self._errors[index]

    def load_model_proto(self, content: bytes) -> bool:
        import onnx  # noqa: PLC0415

        self._proto = onnx.ModelProto.FromString(content)
        return True

    def load_initializer(self, name: str, pointer: int, size: int) -> bool:
        """Put values into the graph, as it has no folder."""
        (tensor,) = (each for each in self._proto.graph.initializer if each.name == name)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = ctypes.string_at(pointer, size)
        return True

    def read(self, refused: Collection[str]) -> bool:
        proto, network = self._proto, self._network
        network.proto = proto.SerializeToString()
        network.inputs = [_tensor(value) for value in proto.graph.input]
        network.outputs = [_tensor(value) for value in proto.graph.output]
        self._errors = [_refusal(node.name, node.op_type) for node in proto.graph.node if node.op_type in refused]
        return not self._errors


@dataclass(slots=True, eq=False)
class _Config:
    profiles: list[dict[str, list[list[int]]]] = field(default_factory=list)
    num_compute_capabilities: int = 0
    timings: bytes = b""

    def clear_flag(self, flag: int) -> None: ...

    def set_compute_capability(self, capability: int, index: int) -> None: ...

    def add_optimization_profile(self, profile: "_Profile") -> None:
        self.profiles.append(profile.bounds)

    def create_timing_cache(self, content: bytes) -> SimpleNamespace:
        return SimpleNamespace(serialize=lambda: content + b".")

    def set_timing_cache(self, cache: SimpleNamespace, *, ignore_mismatch: bool) -> None:  # noqa: ARG002
        self.timings = cache.serialize()

    def get_timing_cache(self) -> SimpleNamespace:
        return SimpleNamespace(serialize=lambda: self.timings)


@dataclass(slots=True, eq=False)
class _Profile:
    bounds: dict[str, list[list[int]]] = field(default_factory=dict)

    def set_shape(self, name: str, least: list[int], usual: list[int], most: list[int]) -> None:
        self.bounds[name] = [least, usual, most]


class _Builder:
    def __init__(self, log: Any) -> None:  # noqa: ANN401
        self._log = log

    def create_network(self, flags: int) -> _Network:  # noqa: ARG002
        return _Network()

    def create_builder_config(self) -> _Config:
        return _Config()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes:
        record = {"profiles": config.profiles}
        return json.dumps(record).encode() + b"\0" + network.proto


class _Runtime:
    def __init__(self, log: Any) -> None:  # noqa: ANN401
        self._log = log

    def load(self, plan: bytes, gpu: ToyGpu) -> "_Engine | None":
        try:
            record, _, proto = plan.partition(b"\0")
            return _Engine(json.loads(record), proto, gpu)
        except ValueError:
            self._log.log(1, "the plan cannot be read")
            return None


class _Engine:
    device_memory_size_v2 = 1024

    def __init__(self, record: dict[str, Any], proto: bytes, gpu: ToyGpu) -> None:
        import onnxruntime  # noqa: PLC0415

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
        self.profiles: list[dict[str, list[list[int]]]] = record["profiles"]
        self.gpu = gpu

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[list[int]]:
        return self.profiles[index][name]

    def create_execution_context(self, strategy: int) -> "_Context":  # noqa: ARG002
        return _Context(self)


class _Context:
    """Reads its inputs where they lie and writes its outputs where they shall lie."""

    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> None: ...

    def set_input_shape(self, name: str, shape: Sequence[int]) -> None:
        self._shapes[name] = tuple(shape)

    def set_tensor_address(self, name: str, pointer: int) -> None:
        self._addresses[name] = pointer

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Find an output's shape by running on zeros: the real one infers it."""
        zeros = {
            each.name: np.zeros(self._shapes[each.name], _dtype(each)) for each in self._engine.session.get_inputs()
        }
        return self._run(zeros)[name].shape

    def execute_async_v3(self, stream: int) -> bool:  # noqa: ARG002
        inputs = {
            each.name: _read(self._addresses[each.name], self._shapes[each.name], _dtype(each))
            for each in self._engine.session.get_inputs()
        }
        for name, values in self._run(inputs).items():
            off = values + np.float32(self._engine.gpu.error) if values.dtype == np.float32 else values
            content = np.ascontiguousarray(off).tobytes()
            ctypes.memmove(self._addresses[name], content, len(content))
        return True

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [each.name for each in self._engine.session.get_outputs()]
        return dict(zip(names, self._engine.session.run(names, dict(inputs)), strict=True))


def _refusal(node: str, operator: str) -> SimpleNamespace:
    return SimpleNamespace(node_name=lambda: node, node_operator=lambda: operator, desc=lambda: "is refused by the toy")


def _tensor(value: Any) -> _Tensor:  # noqa: ANN401 - onnx has no types
    kind = value.type.tensor_type
    shape = tuple(axis.dim_value if axis.HasField("dim_value") else -1 for axis in kind.shape.dim)
    axes = tuple(axis.dim_param for axis in kind.shape.dim)
    return _Tensor(value.name, SimpleNamespace(name=_DTYPES[kind.elem_type]), shape, axes)


def _dtype(node: Any) -> str:  # noqa: ANN401
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32"}.get(kind, kind)


def _read(pointer: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(ctypes.string_at(pointer, num_bytes), dtype).reshape(shape)
