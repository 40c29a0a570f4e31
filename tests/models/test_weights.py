"""Graphs point at stored weights of any half precision; a file is mapped, not read whole."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from foreframe_engines.runtime.onnx_files import read_graph
from foreframe_engines.runtime.ort import OrtSession
from foreframe_models.graph import Graph, export_graph
from foreframe_models.precision import Storage, round_to_half
from foreframe_models.weights import WEIGHTS, StoredWeights, save_weights

DTYPES = {torch.float16: TensorProto.FLOAT16, torch.bfloat16: TensorProto.BFLOAT16, torch.float32: TensorProto.FLOAT}


class Layers(nn.Module):
    """A matrix that the exporter turns round, one that it does not, and a small one that stays inside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(64, 96), nn.Linear(96, 8)
        self.mix = nn.Parameter(torch.randn(64, 64) / 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x @ self.mix)))


def stored_layers(folder: Path, dtype: torch.dtype) -> Layers:
    model = Layers().eval()
    round_to_half(model, Storage(dtype))
    save_weights(folder / WEIGHTS, {"layers": model}, Storage(dtype))
    return model


def graph_of(model: nn.Module) -> Graph:
    return Graph(model, {"x": torch.randn(2, 64)}, ("y",), {"x": {0: "b"}})


def outside(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [tensor for tensor in proto.graph.initializer if tensor.external_data]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_graph_reads_its_weights_from_the_file_in_their_type(tmp_path: Path, dtype: torch.dtype) -> None:
    model = stored_layers(tmp_path, dtype)
    proto = export_graph(graph_of(model), StoredWeights.read(tmp_path / WEIGHTS))
    path = tmp_path / "layers.onnx"
    path.write_bytes(proto.SerializeToString())
    assert len(outside(proto)) == 2  # the last matrix and the biases are too small
    assert {tensor.data_type for tensor in outside(proto)} == {DTYPES[dtype]}
    assert read_graph(path).weight_files == (WEIGHTS,)
    values = np.random.default_rng(0).standard_normal((5, 64), dtype=np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(values)).numpy()
    session = OrtSession(path, num_threads=1)
    np.testing.assert_allclose(session.run({"x": values})["y"], expected, atol=1e-5)
    session.close()


def test_a_serialised_graph_can_be_pointed_at_the_file_too(tmp_path: Path) -> None:
    model = stored_layers(tmp_path, torch.float16)
    proto = export_graph(graph_of(model))
    assert outside(proto) == []
    StoredWeights.read(tmp_path / WEIGHTS).share(proto)
    assert len(outside(proto)) == 2
    path = tmp_path / "layers.onnx"
    path.write_bytes(proto.SerializeToString())
    onnx.checker.check_model(str(path))


@pytest.mark.parametrize("value", [0.5, 1 / 3], ids=["another", "no half"])
def test_weights_that_are_stored_otherwise_stay_inside(tmp_path: Path, value: float) -> None:
    model = stored_layers(tmp_path, torch.float16)
    with torch.no_grad():
        model.mix[3, 3] += value
    proto = export_graph(graph_of(model), StoredWeights.read(tmp_path / WEIGHTS))
    inside = {tuple(tensor.dims) for tensor in proto.graph.initializer if not tensor.external_data}
    assert len(outside(proto)) == 1
    assert (64, 64) in inside


def test_a_tensor_of_another_type_is_left_alone(tmp_path: Path) -> None:
    values = np.arange(4096, dtype=np.int64)
    save_weights(tmp_path / WEIGHTS, {"layers": Layers()})
    node = helper.make_node("Gather", ["table", "at"], ["y"])
    table = numpy_helper.from_array(values, "table")
    infos = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n"]) for name in ("at", "y")]
    proto = helper.make_model(helper.make_graph([node], "g", infos[:1], infos[1:], [table]))
    before = proto.SerializeToString()
    StoredWeights.read(tmp_path / WEIGHTS).share(proto)
    assert outside(proto) == []
    assert ir.from_proto(onnx.ModelProto.FromString(before)).graph.num_nodes() == len(proto.graph.node)


READER = """
import resource, sys
from pathlib import Path
from foreframe_models.weights import StoredWeights
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stored = StoredWeights.read(Path(sys.argv[1]))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(stored.by_content), (after - before) * 1024)
"""


def test_a_large_file_is_never_held_twice(tmp_path: Path) -> None:
    model = nn.ModuleList([nn.Linear(4096, 4096, bias=False) for _ in range(8)])
    for number, layer in enumerate(model):
        nn.init.constant_(layer.weight, number)
    save_weights(tmp_path / WEIGHTS, {"model": model})
    size = (tmp_path / WEIGHTS).stat().st_size
    assert size > 2**28
    command = [sys.executable, "-c", READER, str(tmp_path / WEIGHTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    num_tensors, grown = map(int, done.stdout.split())
    assert num_tensors == 8
    assert grown < 1.15 * size  # mapped pages count; a copy beside them would make it twice as much
