"""A tiny real bundle, four ONNX graphs of simple arithmetic, and queries that fit it and the toys alike."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from foreframe_engines import (
    Contract,
    EnsembleSpec,
    GraphFiles,
    NoisePlan,
    Query,
    Reducer,
    Sampling,
    StateStatistics,
    Strategy,
    write_contract,
    write_manifest,
)
from foreframe_engines.testing import toy_contract

CONTEXT, HORIZON, DIM, WIDTH = 4, 8, 3, 3 * 4 * 4
LENGTH = CONTEXT + HORIZON
GRAPHS = GraphFiles("encode.onnx", "condition.onnx", "step.onnx", "decode.onnx")
WEIGHTS = "model.safetensors"


def constant(name: str, values: object, dtype: type = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.array(values, dtype), name)


def external(folder: Path, name: str) -> TensorProto:
    """Point at a tensor inside the safetensors file by offset."""
    data = (folder / WEIGHTS).read_bytes()
    header_bytes = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + header_bytes])[name]
    start, end = entry["data_offsets"]
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=entry["shape"])
    tensor.data_location = TensorProto.EXTERNAL
    place = {"location": WEIGHTS, "offset": str(8 + header_bytes + start), "length": str(end - start)}
    for key, value in place.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def save_graph(path: Path, nodes: list, inputs: dict, outputs: dict, weights: list) -> None:
    kinds = {"u": TensorProto.UINT8, "f": TensorProto.FLOAT}

    def infos(specs: dict) -> list:
        return [helper.make_tensor_value_info(name, kinds[kind], shape) for name, (kind, *shape) in specs.items()]

    graph = helper.make_graph(nodes, path.stem, infos(inputs), infos(outputs), weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.write_bytes(model.SerializeToString())


def save_encode(folder: Path) -> None:
    node = helper.make_node
    nodes = [
        node("Cast", ["frames"], ["bytes"], to=TensorProto.FLOAT),
        node("Div", ["bytes", "half"], ["scaled"]),
        node("Sub", ["scaled", "one"], ["centred"]),
        node("Transpose", ["centred"], ["channels"], perm=[0, 1, 4, 2, 3]),
        node("Reshape", ["channels", "flat"], ["images"]),
        node("AveragePool", ["images"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Reshape", ["pooled", "full"], ["latents"]),
    ]
    weights = [
        constant("half", 127.5),
        constant("one", 1),
        constant("flat", [-1, 3, 8, 8], np.int64),
        constant("full", [1, -1, 3, 4, 4], np.int64),
    ]
    inputs, outputs = {"frames": ("u", 1, CONTEXT, 8, 8, 3)}, {"latents": ("f", 1, CONTEXT, 3, 4, 4)}
    save_graph(folder / GRAPHS.encode, nodes, inputs, outputs, weights)


def save_condition(folder: Path) -> None:
    node = helper.make_node
    nodes = [
        node("MatMul", ["states", "state_weight"], ["mixed"]),
        node("Tanh", ["mixed"], ["squashed"]),
        node("Reshape", ["squashed", "full"], ["drive"]),
        node("ReduceMean", ["context_latents", "frame_axis"], ["anchor"], keepdims=1),
    ]
    weights = [
        external(folder, "state_weight"),
        constant("full", [1, LENGTH, 3, 4, 4], np.int64),
        constant("frame_axis", [1], np.int64),
    ]
    inputs = {"states": ("f", 1, LENGTH, DIM), "context_latents": ("f", 1, CONTEXT, 3, 4, 4)}
    outputs = {"drive": ("f", 1, LENGTH, 3, 4, 4), "anchor": ("f", 1, 1, 3, 4, 4)}
    save_graph(folder / GRAPHS.condition, nodes, inputs, outputs, weights)


def save_step(folder: Path, *, leaks: bool = False) -> None:
    node = helper.make_node
    nodes = [
        node("Reshape", ["latents", "flat"], ["rows"]),
        node("MatMul", ["rows", "latent_weight"], ["mixed"]),
        node("Tanh", ["mixed"], ["squashed"]),
        node("Reshape", ["squashed", "full"], ["guess"]),
        node("Mul", ["drive", "gain"], ["push"]),
        node("Add", ["anchor", "push"], ["base"]),
        node("Add", ["base", "guess"], ["clean"]),
        node("Sub", ["latents", "clean"], ["velocity"]),
        node("Sub", ["next_time", "time"], ["delta"]),
        node("Unsqueeze", ["delta", "axes"], ["delta5"]),
        node("Mul", ["delta5", "velocity"], ["move"]),
        node("Add", ["latents", "move"], ["stepped"]),
    ]
    if leaks:
        nodes += [
            node("ReduceMean", ["stepped", "batch_axis"], ["neighbours"], keepdims=1),
            node("Sub", ["neighbours", "stepped"], ["difference"]),
            node("Mul", ["difference", "gain"], ["stain"]),
            node("Add", ["stepped", "stain"], ["out"]),
        ]
    else:
        nodes.append(node("Identity", ["stepped"], ["out"]))
    weights = [
        external(folder, "latent_weight"),
        constant("flat", [-1, WIDTH], np.int64),
        constant("full", [-1, LENGTH, 3, 4, 4], np.int64),
        constant("gain", 0.3),
        constant("axes", [2, 3, 4], np.int64),
        constant("batch_axis", [0], np.int64),
    ]
    inputs = {
        "latents": ("f", "b", LENGTH, 3, 4, 4),
        "time": ("f", "b", LENGTH),
        "next_time": ("f", "b", LENGTH),
        "drive": ("f", "b", LENGTH, 3, 4, 4),
        "anchor": ("f", "b", 1, 3, 4, 4),
    }
    save_graph(folder / GRAPHS.step, nodes, inputs, {"out": ("f", "b", LENGTH, 3, 4, 4)}, weights)


def save_decode(folder: Path) -> None:
    node = helper.make_node
    nodes = [
        node("Clip", ["latents", "low", "high"], ["clipped"]),
        node("Add", ["clipped", "high"], ["lifted"]),
        node("Mul", ["lifted", "half"], ["levels"]),
        node("Round", ["levels"], ["rounded"]),
        node("Shape", ["latents"], ["batch"], start=0, end=2),
        node("Reshape", ["rounded", "flat"], ["images"]),
        node("ConvTranspose", ["images", "ones"], ["large"], group=3, strides=[2, 2]),
        node("Transpose", ["large"], ["pictures"], perm=[0, 2, 3, 1]),
        node("Concat", ["batch", "picture"], ["shape"], axis=0),
        node("Reshape", ["pictures", "shape"], ["film"]),
        node("Cast", ["film"], ["frames"], to=TensorProto.UINT8),
    ]
    weights = [
        constant("low", -1),
        constant("high", 1),
        constant("half", 127.5),
        constant("flat", [-1, 3, 4, 4], np.int64),
        constant("ones", np.ones((3, 1, 2, 2))),
        constant("picture", [8, 8, 3], np.int64),
    ]
    inputs, outputs = {"latents": ("f", "b", "f", 3, 4, 4)}, {"frames": ("u", "b", "f", 8, 8, 3)}
    save_graph(folder / GRAPHS.decode, nodes, inputs, outputs, weights)


def save_weights(folder: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "state_weight": rng.standard_normal((DIM, WIDTH), dtype=np.float32),
        "latent_weight": rng.standard_normal((WIDTH, WIDTH), dtype=np.float32) / 7,
    }
    save_file(tensors, folder / WEIGHTS)


def statistics_of(contract: Contract) -> StateStatistics:
    state = contract.state
    return StateStatistics(state.mean, state.std, state.low, state.high, state.low / 2, state.high / 2)


@pytest.fixture(scope="session")
def golden_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The intact bundle, made once; tests that change it take `bundle_folder`."""
    folder = tmp_path_factory.mktemp("bundle")
    save_weights(folder)
    for save in (save_encode, save_condition, save_step, save_decode):
        save(folder)
    contract = toy_contract()
    write_contract(folder, contract, statistics_of(contract), GRAPHS)
    write_manifest(folder)
    for path in folder.glob("*.onnx"):
        onnx.checker.check_model(str(path))
    return folder


@pytest.fixture
def bundle_folder(golden_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may change."""
    return Path(shutil.copytree(golden_bundle, tmp_path / "bundle"))


@pytest.fixture
def leaky_bundle(bundle_folder: Path) -> Path:
    """A bundle with a planted fault: the rows of one step leak into each other."""
    save_step(bundle_folder, leaks=True)
    write_manifest(bundle_folder)
    return bundle_folder


MakeQuery = Callable[..., Query]


@pytest.fixture
def make_query() -> MakeQuery:
    def make(
        seed: int = 0,
        *,
        size: int = 1,
        steps: int = 3,
        strategy: Strategy = Strategy.SAMPLE,
        reducer: Reducer = Reducer.MEAN,
        noise: NoisePlan = NoisePlan.ANTITHETIC,
        frame_indices: tuple[int, ...] = tuple(range(1, HORIZON + 1)),
        future_rows: int = HORIZON,
    ) -> Query:
        rng = np.random.default_rng(seed)
        return Query(
            model="toy",
            context=rng.integers(0, 256, (CONTEXT, 8, 8, 3), dtype=np.uint8),
            states=rng.standard_normal((CONTEXT + future_rows, DIM), dtype=np.float32),
            frame_indices=frame_indices,
            sampling=Sampling(strategy, steps, seed),
            ensemble=EnsembleSpec(size, reducer, noise),
        )

    return make
