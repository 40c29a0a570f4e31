"""A small graph with weights outside, and the library that builds engines without a GPU."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from foreframe_engines import RuntimeUnavailable
from foreframe_engines.runtime.tensorrt_library import TensorRtLibrary, find_library

WIDTH = 128


@pytest.fixture(scope="session")
def rtx() -> TensorRtLibrary:
    """TensorRT-RTX, which builds real engines on any machine."""
    try:
        return find_library(("tensorrt-rtx",))
    except RuntimeUnavailable as error:
        pytest.skip(str(error))


def save_network(folder: Path, *, layers: int = 2, name: str = "network") -> Path:
    """Save `x -> tanh(x W) ...` with softmax between, bytes out, and float16 weights in a file beside it."""
    rng = np.random.default_rng(0)
    nodes, weights, stored, last = [], [], b"", "x"
    for layer in range(layers):
        half = (rng.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float16)
        tensor = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT16, dims=half.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "weights.bin"), ("offset", len(stored)), ("length", half.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        stored += half.tobytes()
        weights.append(tensor)
        nodes += [
            helper.make_node("Cast", [f"w{layer}"], [f"f{layer}"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", [last, f"f{layer}"], [f"m{layer}"], name=f"product{layer}"),
            helper.make_node("Tanh", [f"m{layer}"], [f"t{layer}"]),
        ]
        last = f"t{layer}"
    nodes += [
        helper.make_node("Mul", [last, "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "scale"], ["levels"]),
        helper.make_node("Cast", ["levels"], ["grey"], to=TensorProto.UINT8),
        helper.make_node("Reshape", ["grey", "picture"], ["pixels"]),
        helper.make_node("Identity", [last], ["y"]),
    ]
    weights += [numpy_helper.from_array(np.float32(127.5), "scale")]
    weights += [numpy_helper.from_array(np.array([-1, 8, 16], np.int64), "picture")]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", WIDTH])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", WIDTH]),
            helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["b", 8, 16]),
        ],
        weights,
    )
    (folder / "weights.bin").write_bytes(stored)
    path = folder / f"{name}.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path))
    return path


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return save_network(tmp_path)


@pytest.fixture
def make_network(tmp_path: Path) -> Callable[..., Path]:
    """Save a network in a folder of the test's own; switches: layers, name."""
    return lambda **switches: save_network(tmp_path, **switches)
