"""Tiny real bundles, ONNX graphs of simple arithmetic, and queries that fit them and the toys alike."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
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
    TokenHistory,
    TokenRow,
    TokenSpec,
    write_contract,
    write_manifest,
)
from foreframe_engines.testing import toy_contract, toy_tokens

CONTEXT, HORIZON, DIM, WIDTH = 4, 8, 3, 3 * 4 * 4
LENGTH = CONTEXT + HORIZON
GRAPHS = GraphFiles("encode.onnx", "condition.onnx", "step.onnx", "decode.onnx")
WEIGHTS = "model.safetensors"

TOKENS = toy_tokens(grid=(1, 2), window_frames=3, window_grids=2)
TOKENS_A_GRID, VOCABULARY, LAYERS, HIDDEN = TOKENS.tokens, TOKENS.vocabulary, 2, 5
LIKELIHOOD_FILES = replace(
    GRAPHS, tokenize="tokenize.onnx", detokenize="detokenize.onnx", frame_step="frame_step.onnx", top_k="top_k.onnx"
)


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
    kinds = {"u": TensorProto.UINT8, "f": TensorProto.FLOAT, "i": TensorProto.INT64, "b": TensorProto.BOOL}

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


def save_tokenize(folder: Path) -> None:
    """Each grid is the brightness of the left and right half of its window's first or last frame."""
    node = helper.make_node
    nodes = [
        node("Gather", ["frames", "ends"], ["seen"], axis=1),
        node("Cast", ["seen"], ["levels"], to=TensorProto.FLOAT),
        node("Reshape", ["levels", "halves"], ["patches"]),
        node("ReduceMean", ["patches", "pixels"], ["means"], keepdims=0),
        node("Mul", ["means", "scale"], ["scaled"]),
        node("Floor", ["scaled"], ["steps"]),
        node("Cast", ["steps"], ["ids"], to=TensorProto.INT64),
    ]
    weights = [
        constant("ends", [0, 2], np.int64),
        constant("halves", [-1, 2, 8, 2, 4, 3], np.int64),
        constant("pixels", [2, 4, 5], np.int64),
        constant("scale", VOCABULARY / 256),
    ]
    inputs, outputs = {"frames": ("u", "b", 3, 8, 8, 3)}, {"ids": ("i", "b", 2, TOKENS_A_GRID)}
    save_graph(folder / "tokenize.onnx", nodes, inputs, outputs, weights)


def save_detokenize(folder: Path) -> None:
    node = helper.make_node
    nodes = [
        node("Gather", ["ids", "shown"], ["long"], axis=1),
        node("Cast", ["long"], ["steps"], to=TensorProto.FLOAT),
        node("Add", ["steps", "half"], ["middle"]),
        node("Mul", ["middle", "scale"], ["levels"]),
        node("Cast", ["levels"], ["greys"], to=TensorProto.UINT8),
        node("Reshape", ["greys", "points"], ["patches"]),
        node("Expand", ["patches", "halves"], ["spread"]),
        node("Reshape", ["spread", "picture"], ["frames"]),
    ]
    weights = [
        constant("shown", [0, 1, 1], np.int64),
        constant("half", 0.5),
        constant("scale", 256 / VOCABULARY),
        constant("points", [-1, 3, 1, 2, 1, 1], np.int64),
        constant("halves", [1, 3, 8, 2, 4, 3], np.int64),
        constant("picture", [-1, 3, 8, 8, 3], np.int64),
    ]
    inputs, outputs = {"ids": ("i", "b", 2, TOKENS_A_GRID)}, {"frames": ("u", "b", 3, 8, 8, 3)}
    save_graph(folder / "detokenize.onnx", nodes, inputs, outputs, weights)


def frame_step_weights() -> dict[str, np.ndarray]:
    """A one-pass transformer: embeddings, keys, values and queries of two layers, and a head."""
    rng = np.random.default_rng(1)
    shapes = {
        "table": (VOCABULARY, HIDDEN),
        "state_weight": (2 * DIM, HIDDEN),
        "position_weight": (1, HIDDEN),
        "key_weight": (LAYERS, 1, 1, HIDDEN, HIDDEN),
        "value_weight": (LAYERS, 1, 1, HIDDEN, HIDDEN),
        "query_weight": (LAYERS, 1, 1, HIDDEN, HIDDEN),
        "head": (HIDDEN, VOCABULARY),
    }
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def save_frame_step(folder: Path, *, leaks: bool = False) -> None:
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "ids"], ["embedded"]),
        node("Reshape", ["states", "flat"], ["both"]),
        node("MatMul", ["both", "state_weight"], ["driven"]),
        node("Cast", ["position"], ["place"], to=TensorProto.FLOAT),
        node("Reshape", ["place", "column"], ["places"]),
        node("MatMul", ["places", "position_weight"], ["placed"]),
        node("Sum", ["embedded", "driven", "placed"], ["mixed"]),
        node("Tanh", ["mixed"], ["x"]),
        node("Unsqueeze", ["x", "slots"], ["x5"]),
        node("MatMul", ["x5", "key_weight"], ["keys_next"]),
        node("MatMul", ["x5", "value_weight"], ["values_next"]),
        node("MatMul", ["x5", "query_weight"], ["query"]),
        node("Concat", ["keys", "keys_next"], ["all_keys"], axis=2),
        node("Concat", ["values", "values_next"], ["all_values"], axis=2),
        node("Mul", ["query", "all_keys"], ["products"]),
        node("ReduceSum", ["products", "width"], ["match"], keepdims=1),
        node("Softmax", ["match"], ["attention"], axis=2),
        node("Mul", ["attention", "all_values"], ["weighted"]),
        node("ReduceSum", ["weighted", "layers_and_time"], ["recalled"], keepdims=0),
        node("ReduceMean", ["x", "batch" if leaks else "space"], ["around"], keepdims=1),
        node("Sum", ["x", "recalled", "around"], ["hidden"]),
        node("MatMul", ["hidden", "head"], ["logits"]),
        node("LogSoftmax", ["logits"], ["every"], axis=-1),
        node("Unsqueeze", ["target", "width"], ["wanted"]),
        node("GatherElements", ["every", "wanted"], ["found"], axis=-1),
        node("Squeeze", ["found", "width"], ["log_probability"]),
        node("ArgMax", ["every"], ["greedy"], axis=-1, keepdims=0),
        node("ReduceMax", ["every", "width"], ["greedy_log_probability"], keepdims=0),
    ]
    axes = {"flat": [-1, 1, 2 * DIM], "column": [-1, 1, 1], "slots": [0, 2], "width": [-1]}
    axes |= {"layers_and_time": [0, 2], "space": [1], "batch": [0]}
    weights = [constant(name, values) for name, values in frame_step_weights().items()]
    weights += [constant(name, values, np.int64) for name, values in axes.items()]
    place = ("b", TOKENS_A_GRID)
    memory = ("f", LAYERS, "b", "p", TOKENS_A_GRID, HIDDEN)
    inputs = {"ids": ("i", *place), "states": ("f", "b", 2, DIM), "target": ("i", *place), "position": ("i", "b")}
    outputs = {"log_probability": ("f", *place), "greedy": ("i", *place), "greedy_log_probability": ("f", *place)}
    outputs |= {"hidden": ("f", *place, HIDDEN)}
    outputs |= dict.fromkeys(("keys_next", "values_next"), ("f", LAYERS, "b", 1, TOKENS_A_GRID, HIDDEN))
    save_graph(folder / "frame_step.onnx", nodes, {**inputs, "keys": memory, "values": memory}, outputs, weights)


def save_top_k(folder: Path) -> None:
    node = helper.make_node
    nodes = [
        node("MatMul", ["hidden", "head"], ["logits"]),
        node("LogSoftmax", ["logits"], ["every"], axis=-1),
        node("TopK", ["every", "k"], ["top", "top_ids"], axis=-1),
        node("ReduceLogSumExp", ["top", "last"], ["log_mass"], keepdims=0),
        node("ReduceMin", ["top", "last"], ["least"], keepdims=0),
        node("Unsqueeze", ["target", "last"], ["wanted"]),
        node("GatherElements", ["every", "wanted"], ["found"], axis=-1),
        node("Squeeze", ["found", "last"], ["scored"]),
        node("GreaterOrEqual", ["scored", "least"], ["is_in_top"]),
    ]
    weights = [constant("head", frame_step_weights()["head"]), constant("last", [-1], np.int64)]
    place = ("b", TOKENS_A_GRID)
    inputs = {"hidden": ("f", *place, HIDDEN), "target": ("i", *place), "k": ("i", 1)}
    outputs = {"log_mass": ("f", *place), "is_in_top": ("b", *place)}
    save_graph(folder / "top_k.onnx", nodes, inputs, outputs, weights)


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


@pytest.fixture(scope="session")
def golden_likelihood_bundle(golden_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The intact bundle of both models, made once; tests that change it take `likelihood_folder`."""
    folder = Path(shutil.copytree(golden_bundle, tmp_path_factory.mktemp("likelihood") / "bundle"))
    for save in (save_tokenize, save_detokenize, save_frame_step, save_top_k):
        save(folder)
    contract = toy_contract(tokens=TOKENS)
    write_contract(folder, contract, statistics_of(contract), LIKELIHOOD_FILES)
    write_manifest(folder)
    for path in folder.glob("*.onnx"):
        onnx.checker.check_model(str(path))
    return folder


@pytest.fixture
def likelihood_folder(golden_likelihood_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle of both models that a test may change."""
    return Path(shutil.copytree(golden_likelihood_bundle, tmp_path / "bundle"))


@pytest.fixture
def leaky_likelihood_bundle(likelihood_folder: Path) -> Path:
    """A bundle with a planted fault: the rows of one read leak into each other."""
    save_frame_step(likelihood_folder, leaks=True)
    write_manifest(likelihood_folder)
    return likelihood_folder


@pytest.fixture(scope="session")
def step_weights() -> dict[str, np.ndarray]:
    """The weights inside the `frame_step` graph."""
    return frame_step_weights()


MakeQuery = Callable[..., Query]
MakeRow = Callable[..., TokenRow]


@pytest.fixture
def make_row() -> MakeRow:
    def make(
        seed: int = 0,
        *,
        tokens: TokenSpec = TOKENS,
        history: TokenHistory | None = None,
        has_target: bool = True,
        top_k: int | None = None,
    ) -> TokenRow:
        rng = np.random.default_rng(seed)
        ids, target = rng.integers(0, tokens.vocabulary, (2, tokens.tokens))
        states = rng.standard_normal((2, DIM), dtype=np.float32)
        return TokenRow(ids, states, history or TokenHistory(), target if has_target else None, top_k)

    return make


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
