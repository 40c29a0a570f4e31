"""Real engines of small graphs, built by TensorRT-RTX without a GPU."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from foreframe_engines import BundleError, RuntimeUnavailable
from foreframe_engines.runtime import tensorrt_builder, typed_graph
from foreframe_engines.runtime.onnx_files import read_graph
from foreframe_engines.runtime.session import TensorSpec
from foreframe_engines.runtime.tensorrt_builder import BuildOrder, Length, build_engine
from foreframe_engines.runtime.tensorrt_library import TensorRtLibrary
from foreframe_engines.runtime.typed_graph import Precision

PROFILES = ({"b": Length.fixed(1)}, {"b": Length.fixed(4)})


def order_of(path: Path, **changes: object) -> BuildOrder:
    return BuildOrder(**{"graph": read_graph(path), "architecture": "sm89", "profiles": PROFILES} | changes)


def save_graph(path: Path, node: onnx.NodeProto, inputs: dict[str, tuple], outputs: dict[str, tuple]) -> Path:
    def infos(values: dict[str, tuple]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in values.items()]

    graph = helper.make_graph([node], "graph", infos(inputs), infos(outputs))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def test_an_engine_is_built_with_its_bindings_and_bytes_at_the_border(rtx: TensorRtLibrary, network: Path) -> None:
    built = build_engine(rtx, order_of(network))
    assert built.inputs == (TensorSpec("x", "float32", (None, 128)),)
    assert built.outputs == (TensorSpec("y", "float32", (None, 128)), TensorSpec("pixels", "uint8", (None, 8, 16)))
    assert len(built.plan) > 2 * 2 * 128 * 128  # the weights are inside
    assert built.seconds > 0


@pytest.mark.parametrize("architecture", ["sm80", "sm120"])
def test_engines_of_two_architectures_differ(rtx: TensorRtLibrary, network: Path, architecture: str) -> None:
    other = build_engine(rtx, order_of(network, architecture=architecture)).plan
    assert other != build_engine(rtx, order_of(network)).plan


def test_fewer_bits_make_smaller_engines(rtx: TensorRtLibrary, make_network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typed_graph, "NUM_SPARED", 1)
    path = make_network(layers=8)
    ranges = {f"t{layer}": 1.0 for layer in range(8)} | {f"w{layer}": 0.5 for layer in range(8)}
    sizes = [len(build_engine(rtx, order_of(path, precision=each, ranges=ranges)).plan) for each in Precision]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


def test_an_operator_that_the_library_does_not_know_is_named(rtx: TensorRtLibrary, tmp_path: Path) -> None:
    value = {"x": (TensorProto.FLOAT, [2, 3])}
    node = helper.make_node("DFT", ["x"], ["y"], name="spectrum")
    path = save_graph(tmp_path / "odd.onnx", node, value, {"y": (TensorProto.FLOAT, [2, 3])})
    with pytest.raises(BundleError, match=r"^odd\.onnx: tensorrt-rtx refuses node 'spectrum' \(DFT\): .+"):
        build_engine(rtx, order_of(path))


def test_an_input_that_decides_a_shape_is_refused_by_name(rtx: TensorRtLibrary, tmp_path: Path) -> None:
    inputs = {"x": (TensorProto.FLOAT, ["b", 3]), "size": (TensorProto.INT64, [2])}
    node = helper.make_node("Reshape", ["x", "size"], ["y"])
    path = save_graph(tmp_path / "shaped.onnx", node, inputs, {"y": (TensorProto.FLOAT, [None, None])})
    with pytest.raises(BundleError, match="input 'size' decides a shape"):
        build_engine(rtx, order_of(path))


def test_an_axis_without_a_length_is_named(rtx: TensorRtLibrary, network: Path) -> None:
    with pytest.raises(BundleError, match=r"network\.onnx: axis 'b' of 'x' has no length"):
        build_engine(rtx, order_of(network, profiles=({"other": Length.fixed(1)},)))


def test_lengths_that_contradict_each_other_build_nothing(rtx: TensorRtLibrary, network: Path) -> None:
    with pytest.raises((BundleError, ValueError)):
        build_engine(rtx, order_of(network, profiles=({"b": Length(4, 2, 1)},)))


def test_another_architecture_is_refused_before_anything_is_parsed(rtx: TensorRtLibrary, network: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="not sm90"):
        build_engine(rtx, order_of(network, architecture="sm90"))


def test_too_little_memory_is_said_with_numbers(rtx: TensorRtLibrary, network: Path, monkeypatch) -> None:
    monkeypatch.setattr(tensorrt_builder, "free_host_bytes", lambda: 2**28)
    with pytest.raises(
        RuntimeUnavailable, match=r"building network\.onnx needs about 0\.5 GiB of memory, 0\.2 GiB are"
    ):
        build_engine(rtx, order_of(network))


def test_a_graph_without_free_axes_needs_no_profile(rtx: TensorRtLibrary, tmp_path: Path) -> None:
    value = {"x": (TensorProto.FLOAT, [2, 3])}
    path = save_graph(tmp_path / "fixed.onnx", helper.make_node("Tanh", ["x"], ["y"]), value, {"y": value["x"]})
    built = build_engine(rtx, order_of(path))
    assert built.inputs == (TensorSpec("x", "float32", (2, 3)),)
