"""ONNX files as data: a graph without its weights, and where those lie. A graph never reads outside its folder.

The library `onnx` is imported when a graph is read, not before.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foreframe_engines.errors import BundleError, RuntimeUnavailable
from foreframe_engines.graph_file import OutsideTensor, StoredGraph, open_graph

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True, eq=False)
class GraphFile:
    """One graph to be rewritten, its weights, and where it lies."""

    path: Path
    proto: "onnx.ModelProto"
    tensors: tuple[OutsideTensor, ...]

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Name the files of its folder that hold its weights."""
        return tuple(sorted({tensor.file for tensor in self.tensors}))

    @property
    def weight_bytes(self) -> int:
        """Size of the weights outside the graph, as stored."""
        return sum(tensor.values.nbytes for tensor in self.tensors)


def read_graph(path: Path) -> GraphFile:
    """Read a graph that stands by itself. Raises as `parse_graph`, and BundleError for one that may not run."""
    return parse_graph(open_graph(path), path)


def parse_graph(graph: StoredGraph, path: Path) -> GraphFile:
    """Parse a checked graph.

    Raises BundleError for a file that is no graph, RuntimeUnavailable without the library.
    """
    try:
        import onnx  # noqa: PLC0415 - importing the package must not need it
    except ImportError as error:
        raise RuntimeUnavailable("onnx is not installed; run `pip install onnx`") from error
    try:
        proto = onnx.load_model_from_string(bytes(graph.content))
    except Exception as error:  # protobuf's own error shares no base with anything
        raise BundleError(f"{path.name} is not a readable ONNX graph") from error
    return GraphFile(path, proto, graph.tensors)
