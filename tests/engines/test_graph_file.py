"""What may stand in a graph; the library that writes graphs says what they hold."""

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from foreframe_engines import BundleError, builtin_bundle
from foreframe_engines.graph_file import check_graph, open_graph
from foreframe_engines.graph_operators import OPERATORS

WEIGHTS = memoryview(np.arange(6, dtype=np.float32).tobytes())


def outside(**entries: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 3], data_location=TensorProto.EXTERNAL)
    for key, value in ({"location": "w.bin", "offset": "0", "length": "24"} | entries).items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def make_model(*nodes: onnx.NodeProto, weight: TensorProto | None = None, opset: int = 21) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])
    chosen = nodes or (helper.make_node("Add", ["x", "w"], ["y"]),)
    graph = helper.make_graph(chosen, "g", [x], [y], [outside() if weight is None else weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def check(model: onnx.ModelProto, **files: memoryview):
    content = memoryview(model.SerializeToString())
    return check_graph("g.onnx", content, {"w.bin": WEIGHTS, **files}.get)


def test_weights_are_found_where_the_graph_says() -> None:
    (tensor,) = check(make_model()).tensors
    np.testing.assert_array_equal(tensor.values, np.arange(6, dtype=np.float32).reshape(2, 3))
    assert (tensor.name, tensor.file, tensor.element_type) == ("w", "w.bin", TensorProto.FLOAT)
    assert not tensor.values.flags.writeable


def test_the_shipped_graphs_hold_what_their_library_finds() -> None:
    for path in builtin_bundle().glob("*.onnx"):
        found = {tensor.name: tensor.values for tensor in open_graph(path).tensors}
        model = onnx.load(path)
        expected = [
            tensor for tensor in onnx.load(path, load_external_data=False).graph.initializer if tensor.external_data
        ]
        assert found.keys() == {tensor.name for tensor in expected}
        for tensor in model.graph.initializer:
            if tensor.name in found:
                np.testing.assert_array_equal(found[tensor.name], numpy_helper.to_array(tensor))


def branch_model(inner: onnx.NodeProto) -> onnx.ModelProto:
    branch = helper.make_graph([inner], "branch", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])])
    return make_model(helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch))


def with_function() -> onnx.ModelProto:
    model = make_model()
    node = helper.make_node("Abs", ["a"], ["b"])
    model.functions.append(helper.make_function("mine", "f", ["a"], ["b"], [node], [helper.make_opsetid("", 21)]))
    return model


def with_training() -> onnx.ModelProto:
    model = make_model()
    model.training_info.add()
    return model


def with_sparse() -> onnx.ModelProto:
    model = make_model()
    model.graph.sparse_initializer.add()
    return model


def with_domain() -> onnx.ModelProto:
    model = make_model()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def with_entry_twice() -> onnx.ModelProto:
    weight = outside()
    weight.external_data.add(key="location", value="/etc/hostname")
    return make_model(weight=weight)


def deep(levels: int) -> onnx.ModelProto:
    node = helper.make_node("Abs", ["x"], ["y"])
    for _ in range(levels):
        branch = helper.make_graph([node], "g", [], [])
        node = helper.make_node("If", ["c"], ["y"], then_branch=branch)
    return make_model(node)


node = helper.make_node
HOSTILE = {
    "absolute": (lambda: make_model(weight=outside(location="/etc/hostname")), "outside the folder"),
    "above": (lambda: make_model(weight=outside(location="../w.bin")), "outside the folder"),
    "nowhere": (lambda: make_model(weight=outside(location="")), "outside the folder"),
    "unlisted": (lambda: make_model(weight=outside(location="x.bin")), "no file of the folder"),
    "beyond the end": (lambda: make_model(weight=outside(offset="8")), "ends at byte 32, 'w.bin' has 24"),
    "offset of 2**64": (lambda: make_model(weight=outside(offset=str(2**64))), "no number of bytes"),
    "negative offset": (lambda: make_model(weight=outside(offset="-8")), "no number of bytes"),
    "length of another": (lambda: make_model(weight=outside(length="8")), "has 8 bytes, its shape and type need 24"),
    "two places": (with_entry_twice, "only an initializer"),
    "inside a node": (lambda: make_model(node("Constant", [], ["y"], value=outside())), "only an initializer"),
    "inside a branch": (lambda: branch_model(node("Constant", [], ["z"], value=outside())), "only an initializer"),
    "marked without a place": (
        lambda: make_model(weight=TensorProto(name="w", data_location=TensorProto.EXTERNAL)),
        "outside the folder",
    ),
    "own domain": (lambda: make_model(node("Evil", ["x"], ["y"], domain="my.ops")), "operator 'Evil'"),
    "known name, own domain": (lambda: make_model(node("Add", ["x"], ["y"], domain="my.ops")), "'my.ops' are not ONNX"),
    "domain imported": (with_domain, "wants operators 'com.microsoft' 1"),
    "compiled by another": (lambda: make_model(node("EPContext", ["x"], ["y"], domain="com.microsoft")), "'EPContext'"),
    "inside a branch, own": (lambda: branch_model(node("Evil", [], ["z"])), "operator 'Evil'"),
    "without end": (lambda: make_model(node("Loop", ["x"], ["y"])), "operator 'Loop'"),
    "random": (lambda: make_model(node("RandomNormalLike", ["x"], ["y"])), "operator 'RandomNormalLike'"),
    "scale of a batch": (lambda: make_model(node("DynamicQuantizeLinear", ["x"], ["y"])), "'DynamicQuantizeLinear'"),
    "pictures": (lambda: make_model(node("ImageDecoder", ["x"], ["y"])), "operator 'ImageDecoder'"),
    "functions": (with_function, "functions of its own"),
    "training": (with_training, "functions of its own"),
    "sparse": (with_sparse, "sparse weights"),
    "future": (lambda: make_model(opset=99), "'onnx' 99"),
    "deep": (lambda: deep(20), "more than 8 deep"),
    "texts": (
        lambda: make_model(weight=TensorProto(name="w", data_type=8, external_data=outside().external_data)),
        "type",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_graph_must_not_hold_is_refused_by_name(name: str) -> None:
    make, words = HOSTILE[name]
    with pytest.raises(BundleError, match=words):
        check(make())


def test_a_second_graph_cannot_hide_behind_the_first() -> None:
    """Protocol buffers merge what stands twice."""
    evil = onnx.ModelProto(graph=onnx.GraphProto(node=[helper.make_node("Loop", [], [])]))
    content = make_model().SerializeToString() + evil.SerializeToString()
    assert [node.op_type for node in onnx.load_model_from_string(content).graph.node] == ["Add", "Loop"]
    with pytest.raises(BundleError, match="'Loop'"):
        check_graph("g.onnx", memoryview(content), lambda _: WEIGHTS)


def test_every_operator_that_may_run_is_onnxs_own() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert known >= OPERATORS - {"Swish"} | {"Add"}


def test_any_damage_gives_a_refusal_or_a_graph_and_nothing_else() -> None:
    content = (builtin_bundle() / "top_k.onnx").read_bytes()
    weights = memoryview((builtin_bundle() / "model.safetensors").read_bytes())
    rng, refused = random.Random(0), 0
    for _ in range(3_000):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        cut = memoryview(damaged)[: rng.choice((len(damaged), rng.randrange(len(damaged))))]
        try:
            check_graph("top_k.onnx", cut, lambda _: weights)
        except BundleError:
            refused += 1
    assert refused > 1_000


def test_weights_may_be_of_any_type_that_numpy_or_its_bits_can_hold(tmp_path: Path) -> None:
    kinds = (TensorProto.BFLOAT16, TensorProto.FLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.INT64, TensorProto.BOOL)
    for kind in kinds:
        weight = outside()
        weight.data_type = kind
        size = check_size(kind)
        weight.external_data[2].value = str(6 * size)
        (tensor,) = check(make_model(weight=weight), **{"w.bin": memoryview(bytes(6 * size))}).tensors
        assert tensor.values.nbytes == 6 * size


def check_size(kind: int) -> int:
    return {TensorProto.INT64: 8, TensorProto.BOOL: 1, TensorProto.FLOAT8E4M3FN: 1}.get(kind, 2)
