"""ONNX files as data: a graph without its weights, and where those lie. A graph never reads outside its folder.

The library `onnx` is imported when a graph is read, not before.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foreframe_engines.errors import BundleError, RuntimeUnavailable

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True, eq=False)
class GraphFile:
    """One graph, and the files of its folder that hold its weights."""

    path: Path
    proto: "onnx.ModelProto"
    weight_files: tuple[str, ...]
    weight_bytes: int
    """Of the weights outside the graph, as stored."""


def read_graph(path: Path) -> GraphFile:
    """Read a graph and check where its weights lie.

    Raises BundleError for a file that is no graph or names weights outside its folder, RuntimeUnavailable without
    the library.
    """
    try:
        import onnx  # noqa: PLC0415 - importing the package must not need it
    except ImportError as error:
        raise RuntimeUnavailable("onnx is not installed; run `pip install onnx`") from error
    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own error shares no base with anything
        raise BundleError(f"{path.name} is not a readable ONNX graph") from error
    if not proto.graph.node:
        raise BundleError(f"{path.name} is not a readable ONNX graph")
    places = [_check_place(path, tensor) for tensor in _outside_tensors(proto)]
    files = tuple(sorted({place.file for place in places}))
    return GraphFile(path, proto, files, sum(place.num_bytes for place in places))


@dataclass(frozen=True, slots=True)
class _Place:
    file: str
    num_bytes: int


def _outside_tensors(proto: "onnx.ModelProto") -> "Iterator[onnx.TensorProto]":
    """List every tensor whose bytes lie in another file, also those inside nodes and their inner graphs."""
    graphs = [proto.graph]
    while graphs:
        graph = graphs.pop()
        tensors = [*graph.initializer]
        for node in graph.node:
            for attribute in node.attribute:
                tensors += [attribute.t, *attribute.tensors]
                graphs += [inner for inner in (attribute.g, *attribute.graphs) if inner.node]
        yield from (tensor for tensor in tensors if tensor.external_data)


def _check_place(path: Path, tensor: "onnx.TensorProto") -> _Place:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    file, where = entries.get("location", ""), f"{path.name}: {tensor.name!r}"
    if file in {"", ".", ".."} or set(file) & {"/", "\\", "\0", ":"}:
        raise BundleError(f"{where} lies outside the folder, in {file!r}")
    target = path.parent / file
    if target.is_symlink() or not target.is_file():
        raise BundleError(f"{where} lies in {file!r}, which is no file of the folder")
    offset, length = _count(entries.get("offset", "0"), where), _count(entries.get("length", "0"), where)
    if offset + length > target.stat().st_size:
        raise BundleError(f"{where} ends at byte {offset + length}, {file!r} has {target.stat().st_size}")
    return _Place(file, length)


def _count(text: str, where: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise BundleError(f"{where} lies at {text!r}, which is no number of bytes")
    return int(text)
