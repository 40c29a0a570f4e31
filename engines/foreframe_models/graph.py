"""One graph to export, and the export of it by torch's dynamo exporter. Knows no model."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from foreframe_models.weights import StoredWeights


@dataclass(frozen=True, slots=True)
class Graph:
    """One graph to export: its module, example inputs by name, output names, and the names of dynamic axes."""

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: Mapping[str, Mapping[int, str]]


def export_graph(graph: Graph, weights: StoredWeights | None = None) -> onnx.ModelProto:
    """Export one module with torch's dynamo exporter; weights that are stored are left where they are.

    Without `weights` all of them lie inside, which protobuf allows up to 2 GB.
    """
    dims = {axis: torch.export.Dim(axis, min=1, max=64) for axes in graph.dynamic.values() for axis in axes.values()}
    shapes = {name: {i: dims[axis] for i, axis in graph.dynamic.get(name, {}).items()} for name in graph.inputs}
    with _quiet_exporter():
        program = torch.onnx.export(
            graph.module,
            kwargs=dict(graph.inputs),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=shapes,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    model = cast("torch.onnx.ONNXProgram", program).model  # None only without dynamo
    if weights is not None:
        weights.share_model(model)
    proto = ir.serde.serialize_model(model)
    _strip_metadata(proto)
    return proto


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's warnings about its own deprecations, and its news that torchvision is not installed."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _strip_metadata(proto: onnx.ModelProto) -> None:
    """Drop the exporter's stack traces, which name files of the machine that exported."""
    for item in _all_items(proto.graph):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")
    for function in proto.functions:
        function.ClearField("metadata_props")
    proto.ClearField("metadata_props")
    proto.ClearField("doc_string")


def _all_items(
    graph: onnx.GraphProto,
) -> Iterator[onnx.NodeProto | onnx.ValueInfoProto | onnx.TensorProto | onnx.GraphProto]:
    yield graph
    yield from graph.node
    yield from graph.value_info
    yield from graph.input
    yield from graph.output
    yield from graph.initializer
