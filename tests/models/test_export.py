"""An exported bundle opens on ONNX Runtime and gives what torch gives; its graphs are small and hold no secrets."""

import json
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from foreframe_engines import Bundle, GraphRolloutEngine, Query, get_schedule, open_rollout_engine, sample
from foreframe_engines.bundle import GRAPHS, LIKELIHOOD_GRAPHS
from foreframe_engines.engine import RolloutEngine
from foreframe_engines.runtime.torch_session import TorchSession
from foreframe_engines.sampling import initial_member, step_all
from foreframe_engines.types import StepRow
from foreframe_models.export import graphs_of
from foreframe_models.weights import MIN_EXTERNAL_BYTES, WEIGHTS

ALL_GRAPHS = (*GRAPHS, *LIKELIHOOD_GRAPHS)
MAX_GRAPH_BYTES = 400_000
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def onnx_engine(exported) -> Iterator[GraphRolloutEngine]:
    engine = open_rollout_engine(Bundle.open(exported.folder), num_threads=1)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def torch_engine(exported, onnx_engine: GraphRolloutEngine) -> Iterator[GraphRolloutEngine]:
    graphs = graphs_of(exported.models, onnx_engine.contract)
    sessions = {
        name: TorchSession(graphs[name].module, tuple(graphs[name].inputs), graphs[name].outputs) for name in GRAPHS
    }
    engine = GraphRolloutEngine(onnx_engine.contract, sessions)
    yield engine
    engine.close()


def final_latents(engine: RolloutEngine, query: Query) -> np.ndarray:
    conditioning = engine.condition(engine.encode(query.context), query.states)
    latents = [initial_member(engine, conditioning, query, member) for member in range(query.ensemble.size)]
    for time, next_time in pairwise(get_schedule(query.sampling.steps, engine.contract.sampler.shift)):
        latents = step_all(engine, [StepRow(member, time, next_time, conditioning) for member in latents])
    return np.stack(latents)


def load_graph(folder: Path, name: str) -> onnx.ModelProto:
    return onnx.load(folder / f"{name}.onnx", load_external_data=False)


def stored_tensors(folder: Path) -> list[bytes]:
    content = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    spans = [item["data_offsets"] for name, item in header.items() if name != "__metadata__"]
    return [content[8 + length + low : 8 + length + high] for low, high in spans]


def test_the_bundle_is_complete_and_verified(exported) -> None:
    bundle = Bundle.open(exported.folder)
    assert bundle.contract.model == "small"
    names = {path.name for path in exported.folder.iterdir()}
    graphs = {f"{name}.onnx" for name in ALL_GRAPHS}
    assert names == graphs | {WEIGHTS, "contract.json", "stats.json", "model.json", "manifest.json", "README.md"}


def test_latents_are_torchs_after_several_steps(
    onnx_engine: GraphRolloutEngine, torch_engine: GraphRolloutEngine, query: Query
) -> None:
    ours, reference = final_latents(onnx_engine, query), final_latents(torch_engine, query)
    assert ours.shape == (3, 6, 8, 2, 2)
    assert np.abs(ours - reference).max() <= 1e-3
    assert reference[:, 2:].std() > 0.1  # a comparison of nothing with nothing would pass too


def test_frames_are_within_one_grey_level_of_torchs(
    onnx_engine: GraphRolloutEngine, torch_engine: GraphRolloutEngine, query: Query
) -> None:
    ours, reference = sample(onnx_engine, query), sample(torch_engine, query)
    assert ours.members.shape == (3, 4, 16, 16, 3)
    assert np.abs(ours.members.astype(int) - reference.members).max() <= 1
    assert reference.members.std() > 5


def test_encoding_and_tables_are_torchs(
    onnx_engine: GraphRolloutEngine, torch_engine: GraphRolloutEngine, query: Query
) -> None:
    latents = onnx_engine.encode(query.context)
    np.testing.assert_allclose(latents, torch_engine.encode(query.context), atol=1e-4)
    ours, reference = (engine.condition(latents, query.states).tables for engine in (onnx_engine, torch_engine))
    assert ours.keys() == reference.keys() == {"modulation", "token_bias"}
    for name, table in reference.items():
        np.testing.assert_allclose(ours[name], table, atol=1e-4)


def test_members_change_nothing_about_each_other(onnx_engine: GraphRolloutEngine, query: Query) -> None:
    conditioning = onnx_engine.condition(onnx_engine.encode(query.context), query.states)
    rows = [StepRow(initial_member(onnx_engine, conditioning, query, k), 1.0, 0.5, conditioning) for k in range(3)]
    together = onnx_engine.step(rows)
    for row, expected in zip(rows, together, strict=True):
        np.testing.assert_array_equal(onnx_engine.step([row])[0], expected)


@pytest.mark.parametrize("name", ALL_GRAPHS)
def test_a_graph_is_small_and_valid(exported, name: str) -> None:
    path = exported.folder / f"{name}.onnx"
    assert path.stat().st_size < MAX_GRAPH_BYTES
    onnx.checker.check_model(str(path))


def large_copies(graph: onnx.ModelProto, stored: list[bytes]) -> list[str]:
    """Name the initializers that lie in the graph although the weights file holds them too."""
    found = []
    for initializer in graph.graph.initializer:
        if initializer.data_location == TensorProto.EXTERNAL or initializer.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(initializer)
        halves = values.astype(np.float16)
        if values.nbytes > MIN_EXTERNAL_BYTES and {halves.tobytes(), halves.T.tobytes()} & set(stored):
            found.append(initializer.name)
    return found


@pytest.mark.parametrize("name", ALL_GRAPHS)
def test_no_graph_repeats_a_stored_weight(exported, name: str) -> None:
    assert large_copies(load_graph(exported.folder, name), stored_tensors(exported.folder)) == []


def test_a_repeated_weight_would_be_found(exported) -> None:
    graph, stored = load_graph(exported.folder, "step"), stored_tensors(exported.folder)
    weight = exported.rollout.transformer.blocks[0].ffn.net[2].weight.detach().numpy()
    graph.graph.initializer.append(numpy_helper.from_array(weight.T.copy(), "copy"))
    assert large_copies(graph, stored) == ["copy"]


def test_the_step_reads_its_weights_from_the_file(exported) -> None:
    outside = [t for t in load_graph(exported.folder, "step").graph.initializer if t.external_data]
    locations = {entry.value for t in outside for entry in t.external_data if entry.key == "location"}
    assert locations == {WEIGHTS}
    assert len(outside) >= 2 * 8  # at least self-attention's, output's and feed-forward's matrices of two blocks


def traces_of_a_machine(proto: onnx.ModelProto) -> list[str]:
    """List what names files of the machine that exported, and every field that usually does."""
    content = proto.SerializeToString()
    found = [text for text in (str(REPOSITORY), str(Path.home()), ".py", "site-packages") if text.encode() in content]
    items = [proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer]
    items += [*proto.graph.input, *proto.graph.output, *proto.functions]
    return found + [item.doc_string for item in items if item.doc_string or item.metadata_props]


@pytest.mark.parametrize("name", ALL_GRAPHS)
def test_a_graph_names_nothing_of_the_machine_that_made_it(exported, name: str) -> None:
    assert traces_of_a_machine(load_graph(exported.folder, name)) == []


def test_such_a_name_would_be_found() -> None:
    node = helper.make_node("Identity", ["a"], ["b"], doc_string=f"{REPOSITORY}/engines")
    graph = helper.make_graph([node], "g", [], [])
    assert len(traces_of_a_machine(helper.make_model(graph))) == 2


def test_weights_are_stored_once_as_float16(exported) -> None:
    models = exported.models.by_name().values()
    num_values = sum(tensor.numel() for model in models for tensor in model.state_dict().values())
    assert sum(len(content) for content in stored_tensors(exported.folder)) == 2 * num_values
