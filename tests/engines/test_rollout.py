from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from foreframe_engines import (
    GRAPHS,
    Bundle,
    BundleError,
    Contract,
    GraphFiles,
    GraphRolloutEngine,
    ModelFault,
    Query,
    StepRow,
    open_rollout_engine,
    sample,
    write_contract,
    write_manifest,
)
from foreframe_engines.runtime.ort import OrtSession
from foreframe_engines.runtime.torch_session import TorchSession
from foreframe_engines.testing import toy_contract

MakeQuery = Callable[..., Query]


class RecordingSession:
    """Wraps a session and keeps the shapes and values that it was run with."""

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


class Encode(nn.Module):
    def forward(self, frames: Tensor) -> Tensor:
        pixels = (frames.float() / 127.5 - 1).permute(0, 1, 4, 2, 3)
        return nn.functional.avg_pool2d(pixels[0], 2)[None]


class Condition(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, states: Tensor, context_latents: Tensor) -> tuple[Tensor, Tensor]:
        drive = torch.tanh(states @ self.weight).reshape(1, -1, 3, 4, 4)
        return drive, context_latents.mean(1, keepdim=True)


class Step(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, latents: Tensor, time: Tensor, next_time: Tensor, drive: Tensor, anchor: Tensor) -> Tensor:
        guess = torch.tanh(latents.reshape(-1, 48) @ self.weight).reshape(latents.shape)
        velocity = latents - (anchor + 0.3 * drive + guess)
        return latents + (next_time - time)[..., None, None, None] * velocity


class Decode(nn.Module):
    def forward(self, latents: Tensor) -> Tensor:
        levels = ((latents.clip(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return levels.repeat_interleave(2, -2).repeat_interleave(2, -1).permute(0, 1, 3, 4, 2)


@pytest.fixture
def sessions(golden_bundle: Path) -> dict[str, RecordingSession]:
    bundle = Bundle.open(golden_bundle)
    return {name: RecordingSession(OrtSession(bundle.graph_path(name), num_threads=1)) for name in GRAPHS}


@pytest.fixture
def engine(golden_bundle: Path) -> Iterator[GraphRolloutEngine]:
    engine = open_rollout_engine(Bundle.open(golden_bundle), num_threads=2)
    yield engine
    engine.close()


@pytest.fixture
def torch_engine(golden_bundle: Path) -> Iterator[GraphRolloutEngine]:
    weights = load_file(golden_bundle / "model.safetensors")
    steps = ("latents", "time", "next_time", "drive", "anchor")
    engine = GraphRolloutEngine(
        Bundle.open(golden_bundle).contract,
        {
            "encode": TorchSession(Encode(), ["frames"], ["latents"]),
            "condition": TorchSession(
                Condition(weights["state_weight"]), ["states", "context_latents"], ["drive", "anchor"]
            ),
            "step": TorchSession(Step(weights["latent_weight"]), steps, ["latents"]),
            "decode": TorchSession(Decode(), ["latents"], ["frames"]),
        },
    )
    yield engine
    engine.close()


def test_onnx_runtime_agrees_with_the_torch_reference(
    engine: GraphRolloutEngine, torch_engine: GraphRolloutEngine, make_query: MakeQuery
) -> None:
    query = make_query(1, size=3, steps=4)
    onnx, reference = (sample(one, query).members.astype(int) for one in (engine, torch_engine))
    assert abs(onnx - reference).max() <= 1
    assert reference.std() > 10


def test_the_torch_reference_promises_no_bytes(torch_engine: GraphRolloutEngine) -> None:
    assert torch_engine.determinism == "tolerance"


def test_rows_are_filled_up_to_a_bucket_with_zeros(
    sessions: dict[str, RecordingSession], make_query: MakeQuery
) -> None:
    engine = GraphRolloutEngine(toy_contract(buckets=(2, 4)), sessions)
    sample(engine, make_query(size=7, steps=1, frame_indices=(1,)))
    runs = sorted(sessions["step"].runs, key=lambda run: float(abs(run["latents"][-1]).max()))
    assert [len(run["latents"]) for run in runs] == [4, 4]
    assert not any(values[3:].any() for values in runs[0].values())
    assert all(len(values) == 4 for run in runs for values in run.values())
    engine.close()


def test_context_frames_are_clean_and_do_not_move(
    engine: GraphRolloutEngine, sessions: dict[str, RecordingSession], make_query: MakeQuery
) -> None:
    query = make_query()
    recorded = GraphRolloutEngine(toy_contract(), sessions)
    conditioning = recorded.condition(recorded.encode(query.context), query.states)
    latents = recorded.initial_latents(conditioning, np.ones(recorded.noise_shape(), np.float32))
    (moved,) = recorded.step([StepRow(latents, 1.0, 0.5, conditioning)])
    np.testing.assert_array_equal(sessions["step"].runs[0]["time"], [[0] * 4 + [1] * 8])
    np.testing.assert_array_equal(sessions["step"].runs[0]["next_time"], [[0] * 4 + [0.5] * 8])
    np.testing.assert_array_equal(moved[:4], conditioning.context_latents)
    assert not np.array_equal(moved[4:], latents[4:])
    recorded.close()


def test_missing_future_rows_repeat_the_last(engine: GraphRolloutEngine, make_query: MakeQuery) -> None:
    query = make_query(future_rows=3)
    repeated = replace(query, states=np.concatenate([query.states, np.repeat(query.states[-1:], 5, axis=0)]))
    assert sample(engine, query).frames.tobytes() == sample(engine, repeated).frames.tobytes()
    assert sample(engine, query).frames.tobytes() != sample(engine, make_query()).frames.tobytes()


def test_every_part_of_a_query_reaches_the_frames(engine: GraphRolloutEngine, make_query: MakeQuery) -> None:
    query = make_query(size=2)
    variants = [
        query,
        replace(query, context=255 - query.context),
        replace(query, states=-query.states),
        replace(query, sampling=replace(query.sampling, seed=99)),
        replace(query, sampling=replace(query.sampling, steps=7)),
    ]
    assert len({sample(engine, variant).frames.tobytes() for variant in variants}) == len(variants)


def test_only_the_frames_asked_for_are_decoded(sessions: dict[str, RecordingSession], make_query: MakeQuery) -> None:
    engine = GraphRolloutEngine(toy_contract(buckets=(1,)), sessions)
    prediction = sample(engine, make_query(size=2, frame_indices=(3, 8)))
    assert prediction.members.shape == (2, 2, 8, 8, 3)
    assert [run["latents"].shape for run in sessions["decode"].runs] == [(1, 1, 3, 4, 4)] * 4
    engine.close()


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_latents_that_are_not_finite_are_a_model_fault(engine: GraphRolloutEngine, poison: float) -> None:
    latents = np.zeros((12, 3, 4, 4), np.float32)
    engine.decode([latents], [1])
    latents[-1, 0, 0, 0] = poison
    with pytest.raises(ModelFault, match="not finite"):
        engine.decode([np.zeros_like(latents), latents], [1])


def test_closing_closes_every_session(sessions: dict[str, RecordingSession]) -> None:
    GraphRolloutEngine(toy_contract(), sessions).close()
    assert all(session.is_closed for session in sessions.values())


def rewrite_contract(folder: Path, contract: Contract) -> None:
    bundle = Bundle.open(folder)
    write_contract(folder, contract, bundle.statistics, bundle.graphs)
    write_manifest(folder)


def test_frames_that_do_not_fill_latents_are_refused(bundle_folder: Path) -> None:
    rewrite_contract(bundle_folder, replace(toy_contract(), frames_per_latent=4))
    with pytest.raises(BundleError, match="context_frames: the frames do not fill latents of 4"):
        Bundle.open(bundle_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_frames": 5}, "encode graph's input 'frames'"),
        ({"horizon": 9}, "condition graph's input 'states'"),
        ({"latent_shape": (2, 4, 4)}, "encode graph's output"),
    ],
)
def test_graphs_that_do_not_fit_the_contract_are_refused_at_open(
    bundle_folder: Path, change: dict[str, object], message: str
) -> None:
    rewrite_contract(bundle_folder, replace(toy_contract(), **change))
    with pytest.raises(BundleError, match=message):
        open_rollout_engine(Bundle.open(bundle_folder), num_threads=1)


def test_graphs_in_the_wrong_places_are_refused_at_open(bundle_folder: Path) -> None:
    bundle = Bundle.open(bundle_folder)
    swapped = GraphFiles("encode.onnx", "condition.onnx", "decode.onnx", "step.onnx")
    write_contract(bundle_folder, bundle.contract, bundle.statistics, swapped)
    write_manifest(bundle_folder)
    with pytest.raises(BundleError, match="step graph's input 'time'"):
        open_rollout_engine(Bundle.open(bundle_folder), num_threads=1)


def test_a_table_that_nothing_makes_is_refused(sessions: dict[str, RecordingSession]) -> None:
    sessions["step"].input_names = (*sessions["step"].input_names, "mystery")
    with pytest.raises(BundleError, match="'mystery' is not an output of the condition graph"):
        GraphRolloutEngine(toy_contract(), sessions)
