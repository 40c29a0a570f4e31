"""How large the tensors around a graph's products get: what fp8 needs to be scaled by. Runs on ONNX Runtime's CPU."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from foreframe_engines.errors import BundleError
from foreframe_engines.graph_file import StoredGraph
from foreframe_engines.runtime.onnx_files import GraphFile
from foreframe_engines.runtime.ort import import_runtime, lend_weights
from foreframe_engines.runtime.parity import GoldenRun
from foreframe_engines.runtime.typed_graph import fp8_products

if TYPE_CHECKING:
    import onnx

_SUFFIX = ".largest"


def measure_ranges(graph: GraphFile, runs: Sequence[GoldenRun]) -> dict[str, float]:
    """Return the largest magnitude of every activation, over all runs, and weight that `fp8_products` names.

    Raises BundleError when there are no runs or no such products, or a magnitude is not finite.
    """
    if not runs:
        raise BundleError(f"{graph.path.name}: there are no runs to measure ranges with")
    products = fp8_products(graph.proto)
    if not products:
        raise BundleError(f"{graph.path.name} has no products that are large enough for fp8")
    names = sorted({product.activation for product in products})
    ranges = _largest_weights(graph, {product.weight for product in products})
    ranges |= _largest_activations(graph, names, runs)
    if unusable := [name for name, largest in ranges.items() if not np.isfinite(largest)]:
        raise BundleError(f"{graph.path.name}: {unusable[0]!r} is not finite")
    return ranges


def _largest_weights(graph: GraphFile, names: Collection[str]) -> dict[str, float]:
    from onnx import TensorProto, numpy_helper  # noqa: PLC0415 - importing the package must not need it

    outside = {tensor.name: tensor for tensor in graph.tensors}
    found = {}
    for tensor in (each for each in graph.proto.graph.initializer if each.name in names):
        whole = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        if tensor.name in outside:
            whole.raw_data = outside[tensor.name].values.tobytes()
        values = numpy_helper.to_array(whole if tensor.name in outside else tensor)
        found[tensor.name] = float(np.abs(values.astype(np.float32)).max())
    return found


def _largest_activations(graph: GraphFile, names: Sequence[str], runs: Iterable[GoldenRun]) -> dict[str, float]:
    runtime = import_runtime()
    options = runtime.SessionOptions()
    watched = StoredGraph(graph.path.name, memoryview(_with_outputs(graph.proto, names)), graph.tensors)
    held = lend_weights(runtime, options, watched)
    session = runtime.InferenceSession(bytes(watched.content), options, providers=["CPUExecutionProvider"])
    outputs = [f"{name}{_SUFFIX}" for name in names]
    found = np.stack([session.run(outputs, dict(run.inputs)) for run in runs])
    del session, held
    return dict(zip(names, found.max(axis=0).ravel().tolist(), strict=True))


def _with_outputs(proto: "onnx.ModelProto", names: Sequence[str]) -> bytes:
    from onnx import ModelProto, TensorProto, helper  # noqa: PLC0415

    watched = ModelProto()
    watched.CopyFrom(proto)
    watched.graph.node.extend(_watchers(names))
    infos = (helper.make_tensor_value_info(f"{name}{_SUFFIX}", TensorProto.FLOAT, ()) for name in names)
    watched.graph.output.extend(infos)
    return watched.SerializeToString()


def _watchers(names: Sequence[str]) -> "Iterator[onnx.NodeProto]":
    from onnx import helper  # noqa: PLC0415

    for name in names:
        yield helper.make_node("Abs", [name], [f"{name}.magnitude"])
        yield helper.make_node("ReduceMax", [f"{name}.magnitude"], [f"{name}{_SUFFIX}"], keepdims=0)
