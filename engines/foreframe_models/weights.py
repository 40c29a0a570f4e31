"""Weights stored once as safetensors, and graphs that point into them. Knows no model.

The file is mapped, never read whole: one tensor at a time is in memory, however large the file is.
"""

import hashlib
import json
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from safetensors.torch import save_file
from torch import nn

from foreframe_models.precision import HALF, Storage

WEIGHTS = "model.safetensors"
MIN_EXTERNAL_BYTES = 4096
"""Tensors below this size stay in the graph; more would cost a page each."""

_STORED_TYPES = {
    "F16": (np.dtype(np.float16), ir.DataType.FLOAT16),
    "BF16": (np.dtype(ml_dtypes.bfloat16), ir.DataType.BFLOAT16),
    "F32": (np.dtype(np.float32), ir.DataType.FLOAT),
}
_NUMBERS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def save_weights(path: Path, models: Mapping[str, nn.Module], storage: Storage = HALF) -> None:
    """Store every model's tensors, each name behind its model's and a dot."""
    tensors = {
        f"{prefix}.{name}": storage.stored(name, tensor).contiguous()
        for prefix, model in models.items()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, path, metadata={"format": "foreframe-weights/1"})


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor's bytes lie in the file, and what they are: `kind` is safetensors' name of the type."""

    name: str
    kind: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """The tensors of a safetensors file, by their type, shape and the digest of their bytes."""

    by_content: Mapping[tuple[str, tuple[int, ...], bytes], StoredTensor]

    @classmethod
    def read(cls, path: Path) -> "StoredWeights":
        """Read a file's header, and its bytes once for their digests."""
        by_content = {}
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            (header_length,) = struct.unpack("<Q", content[:8])
            header = json.loads(content[8 : 8 + header_length])
            header.pop("__metadata__", None)
            for name, item in header.items():
                low, high = (8 + header_length + offset for offset in item["data_offsets"])
                with memoryview(content) as view, view[low:high] as part:
                    digest = hashlib.sha256(part).digest()
                key = item["dtype"], tuple(item["shape"]), digest
                by_content[key] = StoredTensor(name, item["dtype"], low, high - low)
        return cls(by_content)

    def share(self, proto: onnx.ModelProto) -> None:
        """Do as `share_model` does, in a serialised graph."""
        model = ir.serde.deserialize_model(proto)
        self.share_model(model)
        proto.CopyFrom(ir.serde.serialize_model(model))

    def share_model(self, model: ir.Model) -> None:
        """Point every large initializer whose shape and values are stored at the file, in place, behind a cast.

        Matching by content, not by name, cannot bind the wrong tensor. The exporter folds a linear layer's
        transpose into its weight, so a matrix may also match transposed and is turned back in the graph.
        """
        graph = model.graph
        first = next(iter(graph))
        for value in list(graph.initializers.values()):
            found = self._find(value.const_value)
            if found is not None:
                _replace(graph, first, value, found)

    def _find(self, tensor: ir.TensorProtocol | None) -> "_Match | None":
        if tensor is None or tensor.dtype not in _NUMBERS or tensor.nbytes < MIN_EXTERNAL_BYTES:
            return None
        values = np.asarray(tensor.numpy())
        for kind in sorted({stored_kind for stored_kind, _, _ in self.by_content} & _STORED_TYPES.keys()):
            stored = values.astype(_STORED_TYPES[kind][0])
            if not np.array_equal(stored.astype(values.dtype), values):
                continue
            for is_transposed in (False, True):
                rows = np.ascontiguousarray(stored.T if is_transposed else stored)
                place = self.by_content.get((kind, rows.shape, hashlib.sha256(rows.view(np.uint8).data).digest()))
                if place is not None:
                    return _Match(place=place, shape=rows.shape, wanted=tensor.dtype, is_transposed=is_transposed)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Match:
    place: StoredTensor
    shape: tuple[int, ...]
    wanted: ir.DataType
    is_transposed: bool


def _replace(graph: ir.Graph, first: ir.Node, value: ir.Value, match: _Match) -> None:
    """Let a graph read an initializer from the file, turned back and cast where it is stored otherwise."""
    name, (_, stored_type) = str(value.name), _STORED_TYPES[match.place.kind]
    shape, place = ir.Shape(match.shape), match.place
    tensor = ir.ExternalTensor(WEIGHTS, place.start, place.length, stored_type, shape=shape, name=f"{name}.half")
    source = ir.Value(name=tensor.name, shape=shape, type=ir.TensorType(stored_type), const_value=tensor)
    turning = [ir.node("Transpose", [source])] if match.is_transposed else []
    tail = turning[0].outputs[0] if turning else source
    casting = [ir.node("Cast", [tail], {"to": match.wanted})] if match.wanted != stored_type else []
    tail = casting[0].outputs[0] if casting else tail
    value.replace_all_uses_with(tail)
    del graph.initializers[name]
    tail.name = name
    graph.register_initializer(source)
    graph.insert_before(first, [*turning, *casting])
