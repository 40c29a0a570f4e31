"""A rewritten graph has its products in fewer bits and nothing else, and still gives what it gave."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from foreframe_engines import builtin_bundle
from foreframe_engines.runtime.onnx_files import GraphFile, read_graph
from foreframe_engines.runtime.ort import OrtSession
from foreframe_engines.runtime.parity import TOLERANCES, GoldenRun, compare_outputs
from foreframe_engines.runtime.ranges import measure_ranges
from foreframe_engines.runtime.typed_graph import (
    NUM_SPARED,
    Precision,
    fp8_products,
    lower,
    put_bytes_at_the_border,
)

FOLDER_KEY = "session.model_external_initializers_file_folder_path"
STEP = builtin_bundle() / "step.onnx"


def types_of(proto: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(proto).graph
    found = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def run_rounded(proto: onnx.ModelProto, folder: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a lowered graph on a CPU without bfloat16 kernels: in float32, rounding wherever the graph says bfloat16."""
    nodes = []
    for node in proto.graph.node:
        copy = NodeProto()
        copy.CopyFrom(node)
        nodes.append(copy)
        is_cast = node.op_type == "Cast"
        if is_cast and node.attribute[0].i != TensorProto.BFLOAT16:
            continue
        for place, name in enumerate(node.output):
            if name.endswith(".bf16"):
                exact, rounded = (name, f"{name}.rounded") if is_cast else (f"{name}.exact", f"{name}.rounded")
                copy.output[place] = rounded if is_cast else exact
                if not is_cast:
                    nodes.append(helper.make_node("Cast", [exact], [rounded], to=TensorProto.BFLOAT16))
                nodes.append(helper.make_node("Cast", [rounded], [name], to=TensorProto.FLOAT))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(FOLDER_KEY, str(folder))
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


@pytest.fixture(scope="module")
def step_run() -> GoldenRun:
    """A step of the embedded model on random inputs."""
    session = OrtSession(STEP, num_threads=1)
    rng = np.random.default_rng(0)
    inputs = {
        spec.name: rng.standard_normal([length or 1 for length in spec.shape], dtype=np.float32)
        for spec in session.inputs
    }
    inputs |= {"time": np.full((1, 12), 0.8, np.float32), "next_time": np.full((1, 12), 0.5, np.float32)}
    outputs = session.run(inputs)
    session.close()
    return GoldenRun(inputs, outputs)


def lowered_step(precision: Precision, run: GoldenRun) -> GraphFile:
    graph = read_graph(STEP)
    ranges = measure_ranges(graph, [run]) if precision is Precision.FP8 else None
    put_bytes_at_the_border(graph.proto)
    lower(graph.proto, precision, ranges)
    return graph


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP8])
def test_products_run_in_fewer_bits_and_the_rest_in_float32(precision: Precision, step_run: GoldenRun) -> None:
    proto = lowered_step(precision, step_run).proto
    types = types_of(proto)
    kinds = {node.op_type: set() for node in proto.graph.node}
    for node in proto.graph.node:
        kinds[node.op_type] |= {types.get(name) for name in (*node.input, *node.output) if name}
    for name in ("MatMul", "Conv", "Softmax"):
        assert kinds[name] == {TensorProto.BFLOAT16}, name
    for name in ("LayerNormalization", "ReduceMean", "Gelu", "Sigmoid", "Cos", "Sub"):
        assert TensorProto.BFLOAT16 not in kinds[name], name
    assert {types[value.name] for value in (*proto.graph.input, *proto.graph.output)} == {TensorProto.FLOAT}


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP8])
def test_a_lowered_step_is_within_its_tolerance(precision: Precision, step_run: GoldenRun) -> None:
    graph = lowered_step(precision, step_run)
    outputs = run_rounded(graph.proto, STEP.parent, step_run.inputs)
    parity = compare_outputs("step", outputs, step_run.outputs, TOLERANCES[precision], "onnxruntime")
    assert 0.01 < parity.share < 0.7  # rounding that changes nothing would prove nothing


def test_attention_stays_in_bfloat16_from_product_to_product(step_run: GoldenRun) -> None:
    proto = lowered_step(Precision.BF16, step_run).proto
    made = {name: node for node in proto.graph.node for name in node.output}
    for node in proto.graph.node:
        if node.op_type == "Softmax":
            assert made[node.input[0]].op_type == "MatMul"
            users = [each.op_type for each in proto.graph.node if node.output[0] in each.input]
            assert users == ["MatMul"]


def test_single_precision_changes_nothing(step_run: GoldenRun) -> None:
    proto, untouched = read_graph(STEP).proto, read_graph(STEP).proto
    lower(proto, Precision.FP32)
    assert proto == untouched


def test_large_weights_are_multiplied_in_fp8_but_for_both_ends(step_run: GoldenRun) -> None:
    graph = read_graph(STEP)
    products, every = fp8_products(graph.proto), [node.output[0] for node in graph.proto.graph.node]
    sizes = {tensor.name: min(tensor.dims) for tensor in graph.proto.graph.initializer if len(tensor.dims) == 2}
    assert len(products) > 30
    assert all(sizes[product.weight] >= 128 for product in products)
    products_in_order = [node.output[0] for node in graph.proto.graph.node if node.op_type == "MatMul"]
    chosen = {product.node for product in products}
    assert not chosen & {*products_in_order[:NUM_SPARED], *products_in_order[-NUM_SPARED:]}
    assert [product.node for product in products] == sorted(chosen, key=every.index)


def test_fp8_rounds_each_tensor_once_and_only_where_its_range_is_known(step_run: GoldenRun) -> None:
    graph = read_graph(STEP)
    ranges = measure_ranges(graph, [step_run])
    first = fp8_products(graph.proto)[0]
    del ranges[first.activation]
    lower(graph.proto, Precision.FP8, ranges)
    counts = Counter(node.op_type for node in graph.proto.graph.node)
    assert counts["QuantizeLinear"] == counts["DequantizeLinear"] <= len(ranges)
    made = {name: node.op_type for node in graph.proto.graph.node for name in node.output}
    products = {node.output[0]: node for node in graph.proto.graph.node if node.op_type == "MatMul"}
    assert made[products[f"{first.node}.bf16"].input[0]] == "Cast"
    second = next(each for each in fp8_products(read_graph(STEP).proto) if each.activation != first.activation)
    assert made[products[f"{second.node}.bf16"].input[0]] == "DequantizeLinear"


def test_pixels_are_made_last(network: Path) -> None:
    graph = read_graph(network)
    put_bytes_at_the_border(graph.proto)
    made = {name: node for node in graph.proto.graph.node for name in node.output}
    assert made["pixels"].op_type == "Cast"
    types = types_of(graph.proto)
    assert [name for name, kind in types.items() if kind == TensorProto.UINT8] == ["pixels"]


def test_pixels_are_read_first() -> None:
    graph = read_graph(builtin_bundle() / "encode.onnx")
    before = types_of(graph.proto)
    put_bytes_at_the_border(graph.proto)
    after = types_of(graph.proto)
    assert sum(kind == TensorProto.UINT8 for kind in before.values()) > 1
    assert [name for name, kind in after.items() if kind == TensorProto.UINT8] == ["frames"]


def test_pixels_are_the_same_wherever_they_are_made(network: Path) -> None:
    inputs = {"x": np.random.default_rng(1).standard_normal((3, 128), dtype=np.float32)}
    session = OrtSession(network, num_threads=1)
    expected = session.run(inputs)
    graph = read_graph(network)
    put_bytes_at_the_border(graph.proto)
    (network.parent / "moved.onnx").write_bytes(graph.proto.SerializeToString())
    moved = OrtSession(network.parent / "moved.onnx", num_threads=1).run(inputs)
    for name, values in expected.items():
        np.testing.assert_array_equal(moved[name], values)
    assert len(np.unique(expected["pixels"])) > 50
