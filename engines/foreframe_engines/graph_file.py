"""ONNX files as bytes: which operators a graph runs and where its weights lie, checked before any library reads it.

A graph is arithmetic: no operators of its own, no loops, no random numbers, no files but the weights' it names.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foreframe_engines.errors import BundleError
from foreframe_engines.graph_operators import DOMAINS, OPERATORS, OPSETS
from foreframe_engines.opened_files import OpenFolder, is_plain_name
from foreframe_engines.protobuf import Damaged, Value, read_fields, read_integers, read_message, read_text

MAX_GRAPH_BYTES = 2**28
_MAX_DEPTH = 8
_LARGEST_LENGTH = 2**63

# Field numbers of onnx.proto.
_MODEL_GRAPH, _MODEL_OPSET, _MODEL_TRAINING, _MODEL_FUNCTION = 7, 8, 20, 25
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_GRAPH_NODE, _GRAPH_TENSOR, _GRAPH_SPARSE = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_TENSOR_LENGTH, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_PLACE, _TENSOR_IS_OUTSIDE = 1, 2, 8, 13, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2

# ONNX's numbers of the types that weights have; numpy holds bfloat16 and the 8-bit floats as plain bits.
_NAMES = ("float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "", "bool", "float16", "float64")
_DTYPES = (
    dict(enumerate(_NAMES, 1)) | {12: "uint32", 13: "uint64", 16: "uint16"} | dict.fromkeys(range(17, 21), "uint8")
)

FindFile = Callable[[str], memoryview | None]
"""Returns the bytes of a file that lies beside a graph, None when there is none."""


@dataclass(frozen=True, slots=True, eq=False)
class OutsideTensor:
    """An initializer whose values lie in another file.

    element_type: ONNX's number; values: as stored, read-only, of the tensor's shape. bfloat16 is there as uint16.
    """

    name: str
    file: str
    element_type: int
    values: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class StoredGraph:
    """A checked graph without its weights, and the weights."""

    name: str
    content: memoryview
    tensors: tuple[OutsideTensor, ...]


def check_graph(name: str, content: memoryview, find_file: FindFile) -> StoredGraph:
    """Check a graph's bytes and find its weights.

    Raises BundleError naming the operator that is not allowed, or the tensor whose values lie elsewhere than in a file
    beside the graph, or beyond that file's end.
    """
    scan = _Scan(name)
    try:
        scan.read_model(bytes(content))
    except Damaged as error:
        raise BundleError(f"{name} is not a readable ONNX graph") from error
    return StoredGraph(name, content, tuple(_find_values(name, place, find_file) for place in scan.places))


def open_graph(path: Path) -> StoredGraph:
    """Open a graph that stands by itself, and the weights beside it. Raises BundleError as `check_graph` does."""
    with OpenFolder(path.parent) as folder:
        names = {entry.name for entry in path.parent.iterdir()}
        return check_graph(
            path.name,
            folder.read(path.name, MAX_GRAPH_BYTES),
            lambda name: folder.read(name) if name in names else None,
        )


@dataclass(frozen=True, slots=True)
class _Place:
    name: str
    element_type: int
    shape: tuple[int, ...]
    entries: dict[str, str]


class _Scan:
    """One walk through a model; `places` are the tensors that lie outside."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.places: list[_Place] = []

    def read_model(self, data: bytes) -> None:
        num_nodes = 0
        for number, value in read_fields(data):
            if number == _MODEL_GRAPH:
                num_nodes += self._read_graph(read_message(value), depth=0)
            elif number == _MODEL_OPSET:
                self._require_opset(read_message(value))
            elif number in (_MODEL_FUNCTION, _MODEL_TRAINING):
                raise BundleError(f"{self._name} defines functions of its own, which never run")
        if not num_nodes:
            raise Damaged

    def _require_opset(self, data: bytes) -> None:
        fields = dict(read_fields(data))
        domain = read_text(fields.get(_OPSET_DOMAIN, b""))
        version = fields.get(_OPSET_VERSION, 0)
        if not isinstance(version, int):
            raise Damaged
        if domain not in DOMAINS or version not in OPSETS:
            known = f"{OPSETS.start}..{OPSETS.stop - 1}"
            raise BundleError(
                f"{self._name} wants operators {domain or 'onnx'!r} {version}; ONNX's own {known} run here"
            )

    def _read_graph(self, data: bytes, depth: int) -> int:
        if depth > _MAX_DEPTH:
            raise BundleError(f"{self._name} has graphs more than {_MAX_DEPTH} deep inside each other")
        num_nodes = 0
        for number, value in read_fields(data):
            if number == _GRAPH_NODE:
                num_nodes += 1
                self._read_node(read_message(value), depth)
            elif number == _GRAPH_TENSOR:
                self._read_tensor(read_message(value), may_be_outside=depth == 0)
            elif number == _GRAPH_SPARSE:
                raise BundleError(f"{self._name} has sparse weights, which are not read")
        return num_nodes

    def _read_node(self, data: bytes, depth: int) -> None:
        for number, value in read_fields(data):
            if number == _NODE_OPERATOR and (operator := read_text(value)) not in OPERATORS:
                raise BundleError(f"{self._name}: operator {operator!r} is not one that a bundle may run")
            if number == _NODE_DOMAIN and (domain := read_text(value)) not in DOMAINS:
                raise BundleError(f"{self._name}: operators of {domain!r} are not ONNX's own")
            if number == _NODE_ATTRIBUTE:
                self._read_attribute(read_message(value), depth)

    def _read_attribute(self, data: bytes, depth: int) -> None:
        for number, value in read_fields(data):
            if number in _ATTRIBUTE_TENSORS:
                self._read_tensor(read_message(value), may_be_outside=False)
            elif number in _ATTRIBUTE_GRAPHS:
                self._read_graph(read_message(value), depth + 1)
            elif number in _ATTRIBUTE_SPARSE:
                raise BundleError(f"{self._name} has sparse weights, which are not read")

    def _read_tensor(self, data: bytes, *, may_be_outside: bool) -> None:
        lengths: list[int] = []
        kinds: dict[int, Value] = {}
        entries: list[tuple[str, str]] = []
        for number, value in read_fields(data):
            if number == _TENSOR_LENGTH:
                lengths += read_integers(value)
            elif number == _TENSOR_PLACE:
                entries.append(_read_entry(read_message(value)))
            else:
                kinds[number] = value
        if not entries and not kinds.get(_TENSOR_IS_OUTSIDE):
            return
        name = read_text(kinds.get(_TENSOR_NAME, b""))
        if not may_be_outside or len(dict(entries)) < len(entries):
            raise BundleError(f"{self._name}: {name!r}: only an initializer of the graph may lie in one other file")
        element_type = kinds.get(_TENSOR_TYPE, 0)
        if not isinstance(element_type, int):
            raise Damaged
        self.places.append(_Place(name, element_type, tuple(lengths), dict(entries)))


def _read_entry(data: bytes) -> tuple[str, str]:
    fields = dict(read_fields(data))
    return read_text(fields.get(_ENTRY_KEY, b"")), read_text(fields.get(_ENTRY_VALUE, b""))


def _find_values(graph: str, place: _Place, find_file: FindFile) -> OutsideTensor:
    where, file = f"{graph}: {place.name!r}", place.entries.get("location", "")
    if not is_plain_name(file):
        raise BundleError(f"{where} lies outside the folder, in {file!r}")
    content = find_file(file)
    if content is None:
        raise BundleError(f"{where} lies in {file!r}, which is no file of the folder")
    dtype = _DTYPES.get(place.element_type)
    if not dtype or any(length >= _LARGEST_LENGTH for length in place.shape):
        raise BundleError(f"{where} has a type or a shape that no weight has")
    size = math.prod(place.shape) * np.dtype(dtype).itemsize
    offset = _count(place.entries.get("offset", "0"), where)
    length = _count(place.entries.get("length", str(size)), where)
    if length != size:
        raise BundleError(f"{where} has {length} bytes, its shape and type need {size}")
    if offset + size > len(content):
        raise BundleError(f"{where} ends at byte {offset + size}, {file!r} has {len(content)}")
    values = np.frombuffer(content[offset : offset + size], dtype).reshape(place.shape)
    return OutsideTensor(place.name, file, place.element_type, values)


def _count(text: str, where: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > len(str(_LARGEST_LENGTH)):
        raise BundleError(f"{where} lies at {text!r}, which is no number of bytes")
    return int(text)
