"""Graphs rewritten for strongly typed runtimes: where pixels turn to numbers, and which nodes run in fewer bits.

Precision is said in the graph, because TensorRT takes no hints: matrix products, convolutions and the attention's
softmax go in bfloat16 (products of large weights in fp8), everything between them (norms, modulation, rotary
positions, the solver, residuals) stays float32, and so do inputs and outputs. Knows no weights.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Attention")
_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")
_FP8_LARGEST, _SMALLEST = 448.0, 1e-12
MIN_FP8_LENGTH = 128
"""Both sides of a weight that is multiplied in fp8 are at least this long."""
NUM_SPARED = 8
"""Products at either end of a graph, about one block, that stay in bfloat16: errors there weigh most."""


class Precision(StrEnum):
    """What the large products are computed in."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP8 = "fp8"


@dataclass(frozen=True, slots=True)
class Product:
    """One product of an activation with a stored weight, by the names of its tensors."""

    node: str
    activation: str
    weight: str


def put_bytes_at_the_border(proto: "onnx.ModelProto") -> None:
    """Let uint8 tensors be inputs and outputs alone, in place: TensorRT computes nothing on them.

    A conversion to uint8 before a mere change of shape moves behind it; an input is converted before anything else.
    """
    for value in list(proto.graph.output):
        _sink_conversion(proto, value.name)
    for value in list(proto.graph.input):
        _lift_conversion(proto, value)
    del proto.graph.value_info[:]  # types of what moved have changed


def lower(proto: "onnx.ModelProto", precision: Precision, ranges: Mapping[str, float] | None = None) -> None:
    """Let the large products run in `precision`, in place.

    ranges: for fp8, the largest magnitude of every activation and weight that `fp8_products` names; a product without
    its ranges stays in bfloat16.
    """
    if precision is Precision.FP32:
        return
    known = ranges or {}
    is_fp8 = precision is Precision.FP8
    products = {item.node: item for item in fp8_products(proto)} if is_fp8 else {}
    writer = _Writer(_element_types(proto))
    for node in proto.graph.node:
        product = products.get(node.output[0])
        if _is_lowered(proto, node):
            has_ranges = product is not None and {product.activation, product.weight} <= known.keys()
            writer.write_low(node, known if has_ranges else None, product)
        else:
            writer.nodes.append(node)
    _replace_nodes(proto, _without_unused(writer.nodes, proto))
    proto.graph.initializer.extend(writer.scales)
    del proto.graph.value_info[:]


def fp8_products(proto: "onnx.ModelProto") -> tuple[Product, ...]:
    """List the products whose weights are large, but for the first and last few of the graph."""
    made = {name: node for node in proto.graph.node for name in node.output}
    dims = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    found = []
    for node in proto.graph.node:
        weight = _stored_weight(node.input[1], made, dims) if node.op_type == "MatMul" else None
        if weight is not None and len(dims[weight]) == 2 and min(dims[weight]) >= MIN_FP8_LENGTH:
            found.append(Product(node.output[0], node.input[0], weight))
    return tuple(found[NUM_SPARED:-NUM_SPARED])


def _stored_weight(name: str, made: Mapping[str, "onnx.NodeProto"], stored: Collection[str]) -> str | None:
    """Follow a tensor back through casts and changes of shape to the initializer it is."""
    while name not in stored:
        node = made.get(name)
        if node is None or node.op_type not in {*_MOVES, "Cast"}:
            return None
        name = node.input[0]
    return name


def _is_lowered(proto: "onnx.ModelProto", node: "onnx.NodeProto") -> bool:
    if node.op_type != "Softmax":
        return node.op_type in _PRODUCTS
    users = [each for each in proto.graph.node if node.output[0] in each.input]
    return bool(users) and all(user.op_type == "MatMul" for user in users)


@dataclass(slots=True, eq=False)
class _Writer:
    """Writes nodes anew; `low` holds the bfloat16 name of every tensor that has one."""

    types: Mapping[str, int]
    nodes: "list[onnx.NodeProto]" = field(default_factory=list)
    scales: "list[onnx.TensorProto]" = field(default_factory=list)
    low: dict[str, str] = field(default_factory=dict)

    def write_low(self, node: "onnx.NodeProto", ranges: Mapping[str, float] | None, product: Product | None) -> None:
        """Write one node so that it takes and gives bfloat16, with float32 copies of what it gives."""
        from onnx import NodeProto, TensorProto, helper  # noqa: PLC0415

        written = NodeProto()
        written.CopyFrom(node)
        written.input[:] = [self._lowered(name) for name in node.input]
        if ranges is not None and product is not None:
            written.input[0] = self._quantised(written.input[0], ranges[product.activation])
            written.input[1] = self._quantised(written.input[1], ranges[product.weight])
        is_float = self.types.get(node.output[0]) == TensorProto.FLOAT
        if not is_float:
            self.nodes.append(written)
            return
        for place, name in enumerate(node.output):
            self.low[name] = written.output[place] = f"{name}.bf16"
        self.nodes.append(written)
        self.nodes += [helper.make_node("Cast", [self.low[name]], [name], to=TensorProto.FLOAT) for name in node.output]

    def _lowered(self, name: str) -> str:
        from onnx import TensorProto, helper  # noqa: PLC0415

        if self.types.get(name) != TensorProto.FLOAT:
            return name
        if name not in self.low:
            self.low[name] = f"{name}.bf16"
            self.nodes.append(helper.make_node("Cast", [name], [self.low[name]], to=TensorProto.BFLOAT16))
        return self.low[name]

    def _quantised(self, name: str, largest: float) -> str:
        """Round a tensor to fp8 and back; runtimes multiply in fp8 where they find this pair."""
        from onnx import TensorProto, helper  # noqa: PLC0415

        quantised, back, scale, zero = (f"{name}.{part}" for part in ("fp8", "back", "scale", "zero"))
        if scale not in {tensor.name for tensor in self.scales}:
            size = max(largest, _SMALLEST) / _FP8_LARGEST
            self.scales += [
                helper.make_tensor(scale, TensorProto.BFLOAT16, (), [size]),
                helper.make_tensor(zero, TensorProto.FLOAT8E4M3FN, (), [0.0]),
            ]
            self.nodes += [
                helper.make_node("QuantizeLinear", [name, scale, zero], [quantised]),
                helper.make_node("DequantizeLinear", [quantised, scale, zero], [back]),
            ]
        return back


def _sink_conversion(proto: "onnx.ModelProto", output: str) -> None:
    from onnx import TensorProto, helper  # noqa: PLC0415

    nodes = list(proto.graph.node)
    made = {name: node for node in nodes for name in node.output}
    moves, node = [], made.get(output)
    while node is not None and node.op_type in _MOVES and _num_users(nodes, node.input[0]) == 1:
        moves.append(node)
        node = made.get(node.input[0])
    if node is None or not moves or node.op_type != "Cast" or _target(node) != TensorProto.UINT8:
        return
    moves[-1].input[0] = node.input[0]
    moves[0].output[0] = f"{output}.float"
    nodes.remove(node)
    nodes.append(helper.make_node("Cast", [moves[0].output[0]], [output], to=TensorProto.UINT8))
    _replace_nodes(proto, nodes)


def _lift_conversion(proto: "onnx.ModelProto", value: "onnx.ValueInfoProto") -> None:
    from onnx import TensorProto, helper  # noqa: PLC0415

    if value.type.tensor_type.elem_type != TensorProto.UINT8:
        return
    nodes, number = list(proto.graph.node), f"{value.name}.float"
    for node in nodes:
        node.input[:] = [number if name == value.name else name for name in node.input]
    _replace_nodes(proto, [helper.make_node("Cast", [value.name], [number], to=TensorProto.FLOAT), *nodes])


def _element_types(proto: "onnx.ModelProto") -> dict[str, int]:
    from onnx.shape_inference import infer_shapes  # noqa: PLC0415

    graph = infer_shapes(proto).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    values = (*graph.input, *graph.output, *graph.value_info)
    return types | {value.name: value.type.tensor_type.elem_type for value in values}


def _without_unused(nodes: "Iterable[onnx.NodeProto]", proto: "onnx.ModelProto") -> "list[onnx.NodeProto]":
    """Leave out the casts whose results nobody reads."""
    written = list(nodes)
    read = {name for node in written for name in node.input} | {value.name for value in proto.graph.output}
    return [node for node in written if node.op_type != "Cast" or node.output[0] in read]


def _replace_nodes(proto: "onnx.ModelProto", nodes: "Iterable[onnx.NodeProto]") -> None:
    kept = list(_copied(nodes))
    del proto.graph.node[:]
    proto.graph.node.extend(kept)


def _copied(nodes: "Iterable[onnx.NodeProto]") -> "Iterator[onnx.NodeProto]":
    """Copy nodes, which die with the list they lie in."""
    for node in nodes:
        copy = type(node)()
        copy.CopyFrom(node)
        yield copy


def _num_users(nodes: "Iterable[onnx.NodeProto]", name: str) -> int:
    return sum(list(node.input).count(name) for node in nodes)


def _target(node: "onnx.NodeProto") -> int:
    return next(attribute.i for attribute in node.attribute if attribute.name == "to")
