from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import GraphProto, load, save
from torch import Tensor, nn

from foreframe_engines import (
    LIKELIHOOD_GRAPHS,
    Bundle,
    BundleError,
    Contract,
    GraphFiles,
    GraphLikelihoodEngine,
    LikelihoodEngine,
    MemoryShape,
    ModelFault,
    ShapeMismatch,
    TokenHistory,
    TokenRow,
    greedy_rollout,
    open_likelihood_engine,
    read_history,
    teacher_forced,
    write_contract,
    write_manifest,
)
from foreframe_engines.runtime.ort import OrtSession
from foreframe_engines.runtime.torch_session import TorchSession
from foreframe_engines.testing import toy_contract

MakeRow = Callable[..., TokenRow]
MEMORY = MemoryShape(layers=2, width=5)
VOCABULARY = 6


class RecordingSession:
    """Wraps a session and keeps what it was run with."""

    def __init__(self, session: OrtSession) -> None:
        self.session = session
        self.input_names, self.output_names, self.device = session.input_names, session.output_names, session.device
        self.runs: list[dict[str, np.ndarray]] = []
        self.is_closed = False

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.runs.append(dict(inputs))
        return self.session.run(inputs)

    def close(self) -> None:
        self.is_closed = True


class FrameStep(nn.Module):
    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.weights = {name: torch.from_numpy(values) for name, values in weights.items()}

    def forward(
        self, ids: Tensor, states: Tensor, target: Tensor, position: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, ...]:
        weights = self.weights
        driven = states.reshape(-1, 1, 6) @ weights["state_weight"]
        placed = position.float().reshape(-1, 1, 1) @ weights["position_weight"]
        x = torch.tanh(weights["table"][ids] + driven + placed)
        key, value, query = (x[None, :, None] @ weights[f"{name}_weight"] for name in ("key", "value", "query"))
        attention = (query * torch.cat([keys, key], 2)).sum(-1, keepdim=True).softmax(2)
        recalled = (attention * torch.cat([values, value], 2)).sum((0, 2))
        hidden = x + recalled + x.mean(1, keepdim=True)
        every = (hidden @ weights["head"]).log_softmax(-1)
        best = every.max(-1)
        return every.gather(-1, target[..., None])[..., 0], best.indices, best.values, hidden, key, value


@pytest.fixture
def sessions(golden_likelihood_bundle: Path) -> dict[str, RecordingSession]:
    bundle = Bundle.open(golden_likelihood_bundle)
    return {name: RecordingSession(OrtSession(bundle.graph_path(name), num_threads=1)) for name in LIKELIHOOD_GRAPHS}


@pytest.fixture
def engine(golden_likelihood_bundle: Path) -> Iterator[GraphLikelihoodEngine]:
    engine = open_likelihood_engine(Bundle.open(golden_likelihood_bundle), num_threads=2)
    yield engine
    engine.close()


def recorded_engine(
    golden_likelihood_bundle: Path, sessions: dict[str, RecordingSession], buckets: tuple[int, ...]
) -> GraphLikelihoodEngine:
    contract = replace(Bundle.open(golden_likelihood_bundle).contract, buckets=buckets)
    return GraphLikelihoodEngine(contract, sessions, MEMORY)


def every_probability(engine: GraphLikelihoodEngine, row: TokenRow) -> np.ndarray:
    """Ask for each id of the vocabulary at every place: probabilities `s v`."""
    rows = [replace(row, target=np.full(2, token)) for token in range(VOCABULARY)]
    return np.exp(np.stack([score.log_probability for score in engine.read(rows)], axis=1).astype(np.float64))


def test_the_engine_keeps_the_protocol(engine: GraphLikelihoodEngine) -> None:
    assert isinstance(engine, LikelihoodEngine)
    assert engine.tokens.vocabulary == VOCABULARY
    assert engine.determinism == "bitwise"


def test_windows_of_frames_become_grids_of_ids_and_come_back(engine: GraphLikelihoodEngine) -> None:
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (6, 2))
    frames = engine.detokenize(ids)
    assert (frames.shape, frames.dtype) == ((9, 8, 8, 3), np.uint8)
    assert frames[0, 0, 0, 0] == int((ids[0, 0] + 0.5) * 256 / VOCABULARY)
    np.testing.assert_array_equal(frames[1], frames[2])
    again = engine.tokenize(frames)
    assert again.dtype == np.int64
    np.testing.assert_array_equal(again, ids)


def test_a_part_of_a_window_is_refused(engine: GraphLikelihoodEngine) -> None:
    with pytest.raises(ShapeMismatch, match="4 frames are not whole windows of 3"):
        engine.tokenize(np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(ShapeMismatch, match="3 grids are not whole windows of 2"):
        engine.detokenize(np.zeros((3, 2), np.int64))


def test_all_sequences_of_two_grids_have_probability_one_together(
    engine: GraphLikelihoodEngine, make_row: MakeRow
) -> None:
    row, future = make_row(1), make_row(2).states
    context = read_history(engine, np.stack([row.ids, row.ids]), row.states)
    sequences = np.array(list(product(range(VOCABULARY), repeat=4))).reshape(-1, 2, 2)
    nats = [teacher_forced(engine, context, ids, future).log_probability.sum(dtype=np.float64) for ids in sequences]
    assert abs(np.exp(nats).sum() - 1) < 1e-5
    assert np.std(nats) > 0.1


def test_onnx_runtime_agrees_with_the_torch_reference(
    engine: GraphLikelihoodEngine,
    sessions: dict[str, RecordingSession],
    step_weights: dict[str, np.ndarray],
) -> None:
    frame_step = sessions["frame_step"]
    torch_step = TorchSession(FrameStep(step_weights), frame_step.input_names, frame_step.output_names)
    reference = GraphLikelihoodEngine(engine.contract, {**sessions, "frame_step": torch_step}, MEMORY)
    rng = np.random.default_rng(4)
    ids, states = rng.integers(0, VOCABULARY, (5, 2)), rng.standard_normal((9, 3), dtype=np.float32)
    rolled = [
        greedy_rollout(one, read_history(one, ids, states[:5]), states[5:], top_k=3) for one in (engine, reference)
    ]
    np.testing.assert_array_equal(rolled[0].greedy, rolled[1].greedy)
    np.testing.assert_allclose(rolled[0].log_probability, rolled[1].log_probability, atol=1e-5)
    np.testing.assert_allclose(rolled[0].top_log_mass, rolled[1].top_log_mass, atol=1e-5)
    assert reference.determinism == "tolerance"
    reference.close()


def test_every_part_of_a_row_reaches_its_score(engine: GraphLikelihoodEngine, make_row: MakeRow) -> None:
    (first,) = engine.read([make_row(1)])
    (second,) = engine.read([make_row(2)])
    row = make_row(3, history=first.history)
    variants = [
        row,
        replace(row, ids=(row.ids + 1) % VOCABULARY),
        replace(row, states=row.states * np.array([[1], [-1]], np.float32)),
        replace(row, states=row.states * np.array([[-1], [1]], np.float32)),
        replace(row, target=(row.target + 1) % VOCABULARY),
        replace(row, history=second.history),
        replace(row, history=TokenHistory()),
    ]
    assert len({score.log_probability.tobytes() for score in engine.read(variants)}) == len(variants)


def test_without_a_target_the_greedy_ids_are_scored(engine: GraphLikelihoodEngine, make_row: MakeRow) -> None:
    row = make_row(5, has_target=False, top_k=1)
    (score,) = engine.read([row])
    every = every_probability(engine, row)
    np.testing.assert_array_equal(score.greedy, every.argmax(axis=1))
    np.testing.assert_allclose(np.exp(score.log_probability), every.max(axis=1), rtol=1e-5)
    assert score.is_in_top is not None
    assert score.is_in_top.all()


@pytest.mark.parametrize("k", range(1, VOCABULARY + 1))
def test_the_top_k_are_the_likeliest_ids(engine: GraphLikelihoodEngine, make_row: MakeRow, k: int) -> None:
    rows = [make_row(seed, top_k=k) for seed in range(8)]
    for row, score in zip(rows, engine.read(rows), strict=True):
        every = every_probability(engine, row)
        best = np.argsort(-every, axis=1)[:, :k]
        np.testing.assert_allclose(
            np.exp(score.top_log_mass), np.take_along_axis(every, best, axis=1).sum(axis=1), rtol=1e-5
        )
        assert score.is_in_top is not None
        assert score.is_in_top.tolist() == [t in top for t, top in zip(row.target, best, strict=True)]


def test_nothing_is_said_of_the_top_unless_asked(engine: GraphLikelihoodEngine, make_row: MakeRow) -> None:
    (score,) = engine.read([make_row()])
    assert score.top_log_mass is None
    assert score.is_in_top is None


def test_history_stands_behind_an_empty_slot(
    golden_likelihood_bundle: Path, sessions: dict[str, RecordingSession], make_row: MakeRow
) -> None:
    engine = recorded_engine(golden_likelihood_bundle, sessions, (1,))
    (first,) = engine.read([make_row(1)])
    (second,) = engine.read([make_row(2, history=first.history)])
    engine.read([make_row(3, history=second.history)])
    runs = sessions["frame_step"].runs
    assert [run["keys"].shape for run in runs] == [(2, 1, length, 2, 5) for length in (1, 2, 3)]
    assert [run["position"].tolist() for run in runs] == [[0], [1], [2]]
    assert not any(run[name][:, :, 0].any() for run in runs for name in ("keys", "values"))
    for name in ("keys", "values"):
        segments = getattr(second.history, name)
        np.testing.assert_array_equal(runs[2][name][:, :, 1:], np.concatenate(segments, axis=2))
        assert all(segment.any() for segment in segments)
    engine.close()


def test_rows_share_a_forward_when_they_have_read_equally_many_grids(
    golden_likelihood_bundle: Path, sessions: dict[str, RecordingSession], make_row: MakeRow
) -> None:
    engine = recorded_engine(golden_likelihood_bundle, sessions, (2, 4))
    (first,) = engine.read([make_row(1)])
    sessions["frame_step"].runs.clear()
    rows = [make_row(seed, history=first.history if seed % 2 else None) for seed in range(7)]
    together = engine.read(rows)
    runs = sorted(sessions["frame_step"].runs, key=lambda run: run["keys"].shape)
    assert [run["keys"].shape[1:3] for run in runs] == [(4, 1), (4, 2)]
    assert [run["position"].tolist() for run in runs] == [[0, 0, 0, 0], [1, 1, 1, 0]]
    assert not any(values[3:].any() for name, values in runs[1].items() if name not in {"keys", "values"})
    assert not runs[1]["keys"][:, 3].any()
    for row, score in zip(rows, together, strict=True):
        (alone,) = engine.read([row])
        np.testing.assert_allclose(score.log_probability, alone.log_probability, atol=1e-5)
        np.testing.assert_allclose(score.history.keys[-1], alone.history.keys[-1], atol=1e-5)
        assert score.history.num_grids == row.history.num_grids + 1
        assert score.history.keys[-1].base is None
    engine.close()


def test_rows_of_different_k_get_their_own_k(
    golden_likelihood_bundle: Path, sessions: dict[str, RecordingSession], make_row: MakeRow
) -> None:
    engine = recorded_engine(golden_likelihood_bundle, sessions, (1, 2, 4))
    rows = [make_row(seed, top_k=k, has_target=bool(seed % 2)) for seed, k in enumerate((1, None, 6, 1))]
    scores = engine.read(rows)
    assert scores[1].top_log_mass is None
    np.testing.assert_allclose(scores[2].top_log_mass, 0, atol=1e-6)
    np.testing.assert_allclose(scores[0].top_log_mass, scores[0].log_probability, atol=1e-6)
    assert sorted(run["k"].item() for run in sessions["top_k"].runs) == [1, 6]
    engine.close()


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_log_probability_that_is_not_finite_is_a_model_fault(
    engine: GraphLikelihoodEngine, make_row: MakeRow, poison: float
) -> None:
    row = make_row(1)
    (score,) = engine.read([row])
    memory = np.full_like(score.history.keys[0], poison)
    poisoned = replace(row, history=TokenHistory((memory,), score.history.values))
    with pytest.raises(ModelFault, match="not finite"):
        engine.read([row, poisoned])


def test_closing_closes_every_session(golden_likelihood_bundle: Path, sessions: dict[str, RecordingSession]) -> None:
    recorded_engine(golden_likelihood_bundle, sessions, (1,)).close()
    assert all(session.is_closed for session in sessions.values())


def rewrite_contract(folder: Path, contract: Contract, graphs: GraphFiles | None = None) -> None:
    bundle = Bundle.open(folder)
    write_contract(folder, contract, bundle.statistics, graphs or bundle.graphs)
    write_manifest(folder)


def test_a_bundle_without_a_likelihood_model_is_refused(golden_bundle: Path) -> None:
    with pytest.raises(BundleError, match="tokens: the bundle has no likelihood model"):
        open_likelihood_engine(Bundle.open(golden_bundle), num_threads=1)
    with pytest.raises(BundleError, match="tokens: the bundle has no likelihood model"):
        GraphLikelihoodEngine(toy_contract(), {}, MEMORY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window_frames": 5}, "tokenize graph's input 'frames' is not uint8"),
        ({"window_frames": 3, "window_grids": 3}, "tokenize graph's output 'ids' is not int64"),
        ({"grid": (2, 2)}, "tokenize graph's output 'ids' is not int64"),
    ],
)
def test_graphs_that_do_not_fit_the_tokens_are_refused_at_open(
    likelihood_folder: Path, change: dict[str, object], message: str
) -> None:
    contract = Bundle.open(likelihood_folder).contract
    assert contract.tokens is not None
    rewrite_contract(likelihood_folder, replace(contract, tokens=replace(contract.tokens, **change)))
    with pytest.raises(BundleError, match=message):
        open_likelihood_engine(Bundle.open(likelihood_folder), num_threads=1)


def test_graphs_in_the_wrong_places_are_refused_at_open(likelihood_folder: Path) -> None:
    bundle = Bundle.open(likelihood_folder)
    swapped = replace(bundle.graphs, tokenize="detokenize.onnx", detokenize="tokenize.onnx")
    rewrite_contract(likelihood_folder, bundle.contract, swapped)
    with pytest.raises(BundleError, match="tokenize graph's input 'frames'"):
        open_likelihood_engine(Bundle.open(likelihood_folder), num_threads=1)


def edit_frame_step(folder: Path, edit: Callable[[GraphProto], object]) -> None:
    proto = load(folder / "frame_step.onnx")
    edit(proto.graph)
    save(proto, folder / "frame_step.onnx")
    write_manifest(folder)


def test_a_memory_of_unknown_width_is_refused_at_open(likelihood_folder: Path) -> None:
    def open_width(graph: GraphProto) -> None:
        keys = next(item for item in graph.input if item.name == "keys")
        keys.type.tensor_type.shape.dim[4].dim_param = "d"

    edit_frame_step(likelihood_folder, open_width)
    with pytest.raises(BundleError, match="'keys' is not l b p 2 d with fixed l and d"):
        open_likelihood_engine(Bundle.open(likelihood_folder), num_threads=1)


def test_an_output_that_is_missing_is_refused_at_open(likelihood_folder: Path) -> None:
    edit_frame_step(likelihood_folder, lambda graph: graph.output.pop(3))
    with pytest.raises(BundleError, match="frame_step graph's output 'hidden' is not float32"):
        open_likelihood_engine(Bundle.open(likelihood_folder), num_threads=1)
