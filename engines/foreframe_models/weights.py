"""Weights stored once as float16 safetensors, and graphs that point into them behind a cast. Knows no model."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

WEIGHTS = "model.safetensors"
MIN_EXTERNAL_BYTES = 4096
"""Tensors below this size stay in the graph; more would cost a page each."""


def save_weights(path: Path, models: Mapping[str, nn.Module]) -> None:
    """Store every model's tensors as float16, each name behind its model's and a dot."""
    tensors = {
        f"{prefix}.{name}": tensor for prefix, model in models.items() for name, tensor in model.state_dict().items()
    }
    halves = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    save_file(halves, path, metadata={"format": "foreframe-weights/1"})


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """Where each tensor's bytes lie in the safetensors file, and what they are."""

    offsets: Mapping[str, tuple[int, int]]
    by_content: Mapping[tuple[tuple[int, ...], bytes], str]

    @classmethod
    def read(cls, path: Path) -> "StoredWeights":
        """Read the header and bytes of a float16 safetensors file."""
        content = path.read_bytes()
        (header_length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + header_length])
        header.pop("__metadata__", None)
        start = 8 + header_length
        offsets, by_content = {}, {}
        for name, item in header.items():
            low, high = (start + offset for offset in item["data_offsets"])
            offsets[name] = (low, high)
            by_content[tuple(item["shape"]), content[low:high]] = name
        return cls(offsets, by_content)

    def share(self, proto: onnx.ModelProto) -> None:
        """Point every large float initializer whose shape and bytes are stored at the file, behind a cast.

        Matching by content, not by name, cannot bind the wrong tensor. The exporter folds a linear layer's
        transpose into its weight, so a matrix may also match transposed and is turned back in the graph.
        """
        initializers, nodes = [], []
        for initializer in proto.graph.initializer:
            found = self._find(initializer)
            if found is None:
                initializers.append(initializer)
                continue
            name, is_transposed = found
            stored, added = self._replace(initializer, name, is_transposed=is_transposed)
            initializers.append(stored)
            nodes.extend(added)
        nodes.extend(proto.graph.node)
        graph = helper.make_graph(nodes, proto.graph.name, proto.graph.input, proto.graph.output, initializers)
        proto.graph.CopyFrom(graph)

    def _find(self, initializer: onnx.TensorProto) -> tuple[str, bool] | None:
        """Return the stored tensor's name and whether it lies transposed."""
        if initializer.data_type != TensorProto.FLOAT:
            return None
        values = numpy_helper.to_array(initializer)
        halves = values.astype(np.float16)
        if values.nbytes < MIN_EXTERNAL_BYTES or not np.array_equal(halves.astype(np.float32), values):
            return None
        if name := self.by_content.get((halves.shape, halves.tobytes())):
            return name, False
        name = self.by_content.get((halves.T.shape, halves.T.tobytes()))
        return None if name is None else (name, True)

    def _replace(
        self, initializer: onnx.TensorProto, name: str, *, is_transposed: bool
    ) -> tuple[onnx.TensorProto, list[onnx.NodeProto]]:
        low, high = self.offsets[name]
        target, half = initializer.name, f"{initializer.name}.half"
        dims = reversed(initializer.dims) if is_transposed else initializer.dims
        tensor = TensorProto(name=half, data_type=TensorProto.FLOAT16, dims=dims)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS), ("offset", low), ("length", high - low)):
            tensor.external_data.add(key=key, value=str(value))
        if not is_transposed:
            return tensor, [helper.make_node("Cast", [half], [target], to=TensorProto.FLOAT)]
        turned = f"{target}.turned"
        return tensor, [
            helper.make_node("Transpose", [half], [turned]),
            helper.make_node("Cast", [turned], [target], to=TensorProto.FLOAT),
        ]
