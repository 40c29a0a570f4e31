"""Engines from ONNX graphs, by TensorRT and by TensorRT-RTX alike: strongly typed, one profile a bucket.

TensorRT builds on the GPU that will run the engine; TensorRT-RTX builds ahead of time, also where there is none.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foreframe_engines.errors import BundleError, RuntimeUnavailable
from foreframe_engines.runtime.memory import free_host_bytes, require_memory
from foreframe_engines.runtime.onnx_files import GraphFile
from foreframe_engines.runtime.session import TensorSpec
from foreframe_engines.runtime.tensorrt_library import LibraryLog, TensorRtLibrary
from foreframe_engines.runtime.typed_graph import Precision, lower, put_bytes_at_the_border

_HOST_BYTES = 2**29
_HOST_BYTES_A_WEIGHT_BYTE = 6
"""float16 weights lie in the builder as float32, and once more in the engine."""


@dataclass(frozen=True, slots=True)
class Length:
    """Least, usual and most of an axis whose length varies."""

    least: int
    usual: int
    most: int

    @classmethod
    def fixed(cls, length: int) -> "Length":
        """Return one length for all three."""
        return cls(length, length, length)


Profile = Mapping[str, Length]
"""Lengths by the names of a graph's free axes; kernels are chosen for the usual ones."""


@dataclass(frozen=True, slots=True, eq=False)
class BuildOrder:
    """What to build. `ranges`: see `lower`. `timings` of earlier builds spare measuring the same kernels again."""

    graph: GraphFile
    architecture: str
    profiles: tuple[Profile, ...]
    precision: Precision = Precision.FP32
    ranges: Mapping[str, float] | None = None
    timings: bytes = b""


@dataclass(frozen=True, slots=True, eq=False)
class BuiltEngine:
    """A serialised engine (`plan`), what it takes and gives, and the kernels' timings."""

    plan: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    seconds: float
    timings: bytes = b""


def build_engine(library: TensorRtLibrary, order: BuildOrder) -> BuiltEngine:
    """Build one engine; the graph is rewritten in place.

    Raises BundleError naming the node or axis that the library refuses, RuntimeUnavailable for an architecture it does
    not know, for too little memory, and where it needs a GPU that is not here.
    """
    library.require_architecture(order.architecture)
    _require_host_memory(order.graph)
    log = library.open_log()
    builder = _open_builder(library, log)
    network = _parse(library, builder, order, log)
    config = _configure(library, builder, order)
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    if any(_free_axes(tensor) for tensor in inputs):
        for profile in order.profiles:
            config.add_optimization_profile(_profile(builder, order.graph, inputs, profile))
    started = time.monotonic()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BundleError(f"{order.graph.path.name}: {library.name} builds no engine: {log.last_error()}")
    return BuiltEngine(
        bytes(plan),
        tuple(_spec(library, tensor) for tensor in inputs),
        tuple(_spec(library, tensor) for tensor in outputs),
        time.monotonic() - started,
        b"" if library.is_portable else bytes(config.get_timing_cache().serialize()),
    )


def _require_host_memory(graph: GraphFile) -> None:
    free = free_host_bytes()
    if free is not None:
        needed = _HOST_BYTES + _HOST_BYTES_A_WEIGHT_BYTE * graph.weight_bytes
        require_memory(f"building {graph.path.name}", needed, free, "of memory")


def _open_builder(library: TensorRtLibrary, log: LibraryLog) -> Any:  # noqa: ANN401 - the library has no types
    try:
        return library.module.Builder(log.sink)
    except (TypeError, RuntimeError) as error:  # a null pointer where it found no GPU
        raise RuntimeUnavailable(f"{library.name} cannot build here: {log.last_error() or error}") from error


def _parse(library: TensorRtLibrary, builder: Any, order: BuildOrder, log: LibraryLog) -> Any:  # noqa: ANN401
    trt, graph = library.module, order.graph
    put_bytes_at_the_border(graph.proto)
    lower(graph.proto, order.precision, order.ranges)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log.sink)
    # Without a path the library opens no file: weights outside the graph are given to it.
    is_read = parser.load_model_proto(graph.proto.SerializeToString()) and all(
        parser.load_initializer(tensor.name, tensor.values.ctypes.data, tensor.values.nbytes)
        for tensor in graph.tensors
    )
    if not is_read or not parser.parse_model_proto():
        raise BundleError(f"{graph.path.name}: {library.name} refuses {_complaint(parser)}")
    return network


def _complaint(parser: Any) -> str:  # noqa: ANN401
    if not parser.num_errors:
        return "the graph without saying why"
    error = parser.get_error(0)
    return f"node {error.node_name()!r} ({error.node_operator()}): {' '.join(error.desc().split())}"


def _configure(library: TensorRtLibrary, builder: Any, order: BuildOrder) -> Any:  # noqa: ANN401
    trt, config = library.module, builder.create_builder_config()
    if order.precision is Precision.FP32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if library.is_portable:
        config.num_compute_capabilities = 1
        capability = trt.ComputeCapability.__members__[order.architecture.upper()]
        config.set_compute_capability(capability, 0)
    else:
        config.set_timing_cache(config.create_timing_cache(order.timings), ignore_mismatch=False)
    return config


def _profile(builder: Any, graph: GraphFile, inputs: list[Any], lengths: Profile) -> Any:  # noqa: ANN401
    profile = builder.create_optimization_profile()
    for tensor in inputs:
        if tensor.is_shape_tensor:
            raise BundleError(f"{graph.path.name}: input {tensor.name!r} decides a shape, which no profile can bound")
        axes = _free_axes(tensor)
        if missing := [name for name in axes.values() if name not in lengths]:
            raise BundleError(f"{graph.path.name}: axis {missing[0]!r} of {tensor.name!r} has no length")
        chosen = {index: lengths[name] for index, name in axes.items()}
        fixed = {index: Length.fixed(length) for index, length in enumerate(tensor.shape) if length >= 0}
        ordered = [(fixed | chosen)[index] for index in range(len(tensor.shape))]
        bounds = ([each.least for each in ordered], [each.usual for each in ordered], [each.most for each in ordered])
        profile.set_shape(tensor.name, *bounds)
    return profile


def _free_axes(tensor: Any) -> dict[int, str]:  # noqa: ANN401
    """Name the axes of any length by their places."""
    return {index: tensor.get_dimension_name(index) or "" for index, length in enumerate(tensor.shape) if length < 0}


def _spec(library: TensorRtLibrary, tensor: Any) -> TensorSpec:  # noqa: ANN401
    shape = tuple(None if length < 0 else int(length) for length in tensor.shape)
    return TensorSpec(tensor.name, library.dtype_name(tensor.dtype), shape)
