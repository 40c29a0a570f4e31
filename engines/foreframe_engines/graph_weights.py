"""The weights of one ONNX graph: which stored tensors it reads, and small ones that lie inside and may be replaced.

What no output depends on is not read: exporters leave such tensors behind. A replacement keeps every length.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from foreframe_engines.graph_file import StoredGraph
from foreframe_engines.protobuf import read_fields, read_message, read_text
from foreframe_engines.tensor_file import TensorPlace

# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_TENSOR, _GRAPH_OUTPUT = 1, 5, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_ATTRIBUTE = 1, 2, 5
_ATTRIBUTE_GRAPHS = (6, 11)
_TENSOR_NAME, _TENSOR_RAW = 8, 9
_VALUE_NAME = 1


class GraphWeights:
    """A checked graph as bytes. `content` is the graph, with what was replaced."""

    def __init__(self, graph: StoredGraph, weights: memoryview) -> None:
        self.content = bytes(graph.content)
        self.is_changed = False
        self._live = _live_names(self.content)
        start = _address(np.frombuffer(weights, np.uint8))
        self._places = {
            (_address(tensor.values) - start, tensor.values.nbytes)
            for tensor in graph.tensors
            if tensor.name in self._live
        }

    def reads(self, place: TensorPlace) -> bool:
        """Whether an output depends on a stored tensor."""
        return (place.start, place.end - place.start) in self._places

    def replace(self, name: str, before: np.ndarray, after: np.ndarray, *, is_alone: bool) -> bool:
        """Replace a float32 tensor inside the graph; whether an output depends on it.

        It has the values `before` and the name or, as exporters rename what they reshape, is the only one of these
        values; `is_alone` says that no other stored tensor has them.
        """
        raw, new = before.astype(np.float32).tobytes(), after.astype(np.float32).tobytes()
        alike = [tensor for tensor in self._inside() if tensor.raw == raw]
        found = [tensor for tensor in alike if tensor.name == name] or (alike if is_alone else [])
        if len(found) != 1:
            return False
        message = found[0].message
        self.content = self.content.replace(message, message.replace(raw, new))
        self.is_changed = True
        return True

    def _inside(self) -> "Iterator[_Inside]":
        """Find every tensor that lies inside and that an output depends on."""
        for message in _messages(_graph_of(self.content), _GRAPH_TENSOR):
            fields = dict(read_fields(message))
            name, raw = read_text(fields.get(_TENSOR_NAME, b"")), fields.get(_TENSOR_RAW)
            if isinstance(raw, bytes) and name in self._live:
                yield _Inside(name, raw, message)


@dataclass(frozen=True, slots=True)
class _Inside:
    name: str
    raw: bytes
    message: bytes


def _address(values: np.ndarray) -> int:
    address: int = values.__array_interface__["data"][0]
    return address


def _graph_of(content: bytes) -> bytes:
    return next(_messages(content, _MODEL_GRAPH))


def _live_names(content: bytes) -> set[str]:
    """Name everything that the graph's outputs depend on."""
    graph = _graph_of(content)
    makers = {output: inputs for inputs, outputs in map(_ends, _messages(graph, _GRAPH_NODE)) for output in outputs}
    ahead = [_texts(output, _VALUE_NAME)[0] for output in _messages(graph, _GRAPH_OUTPUT)]
    live: set[str] = set()
    while ahead:
        name = ahead.pop()
        if name not in live:
            live.add(name)
            ahead += makers.get(name, ())
    return live


def _ends(node: bytes) -> tuple[list[str], list[str]]:
    """Return what a node reads, its inner graphs' nodes included, and what it makes."""
    inputs = _texts(node, _NODE_INPUT)
    for attribute in _messages(node, _NODE_ATTRIBUTE):
        for inner in (graph for number in _ATTRIBUTE_GRAPHS for graph in _messages(attribute, number)):
            inputs += [name for each in _messages(inner, _GRAPH_NODE) for name in _ends(each)[0]]
            inputs += [_texts(output, _VALUE_NAME)[0] for output in _messages(inner, _GRAPH_OUTPUT)]
    return inputs, _texts(node, _NODE_OUTPUT)


def _messages(data: bytes, wanted: int) -> Iterator[bytes]:
    return (read_message(value) for number, value in read_fields(data) if number == wanted)


def _texts(data: bytes, wanted: int) -> list[str]:
    return [read_text(value) for number, value in read_fields(data) if number == wanted]
