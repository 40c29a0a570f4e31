"""An engine whose states stay on the device gives the same bytes as one that takes them through the host."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foreframe_engines import (
    GRAPHS,
    Bundle,
    GraphRolloutEngine,
    ModelFault,
    Query,
    RuntimeUnavailable,
    StepRow,
    builtin_bundle,
    get_schedule,
    sample,
)
from foreframe_engines.runtime.ort import OrtSession
from foreframe_engines.runtime.resident import DeviceRow
from foreframe_engines.runtime.torch_session import TorchSession
from foreframe_engines.solvers import Solver
from foreframe_engines.testing import toy_contract

MakeQuery = Callable[..., Query]
OpenEngine = Callable[..., GraphRolloutEngine]

STEPS = 4


class Condition(nn.Module):
    def forward(self, states: Tensor, context_latents: Tensor) -> tuple[Tensor, Tensor]:
        drive = torch.tanh(states @ torch.linspace(-1, 1, 3 * 48).reshape(3, 48)).reshape(1, -1, 3, 4, 4)
        return drive, context_latents.mean(1, keepdim=True)


class Step(nn.Module):
    def forward(self, latents: Tensor, time: Tensor, next_time: Tensor, drive: Tensor, anchor: Tensor) -> Tensor:
        velocity = latents - (anchor + 0.3 * drive + torch.tanh(latents.roll(1, -1)))
        return latents + (next_time - time)[..., None, None, None] * velocity


class LookingBackStep(nn.Module):
    """Slots `b 4 n c y x`, of which each step fills the others with what it has."""

    def forward(self, latents: Tensor, time: Tensor, coefficients: Tensor, drive: Tensor, anchor: Tensor) -> Tensor:
        x, last, m1, m2 = latents.unbind(1)
        moved = x - 0.3 * (time > 0)[..., None, None, None] * (x - anchor - 0.1 * drive)
        weight = coefficients[:, 0, 1, None, None, None, None]
        return torch.stack([moved, last + weight * x, moved * 0.5, m1 + m2], 1)


class Encode(nn.Module):
    def forward(self, frames: Tensor) -> Tensor:
        return nn.functional.avg_pool2d((frames.float() / 127.5 - 1).permute(0, 1, 4, 2, 3)[0], 2)[None]


class Decode(nn.Module):
    def forward(self, latents: Tensor) -> Tensor:
        levels = ((latents.clip(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return levels.repeat_interleave(2, -2).repeat_interleave(2, -1).permute(0, 1, 3, 4, 2)


def torch_sessions(solver: Solver) -> dict[str, TorchSession]:
    second = "next_time" if solver is Solver.EULER else "coefficients"
    step = Step() if solver is Solver.EULER else LookingBackStep()
    return {
        "encode": TorchSession(Encode(), ["frames"], ["latents"]),
        "condition": TorchSession(Condition(), ["states", "context_latents"], ["drive", "anchor"]),
        "step": TorchSession(step, ["latents", "time", second, "drive", "anchor"], ["latents_next"]),
        "decode": TorchSession(Decode(), ["latents"], ["frames"]),
    }


def open_torch(golden_bundle: Path, solver: Solver = Solver.EULER, **options: object) -> GraphRolloutEngine:
    contract = toy_contract(buckets=(1, 2, 4))
    contract = replace(contract, sampler=replace(contract.sampler, solver=solver))
    return GraphRolloutEngine(contract, torch_sessions(solver), **options)


def open_unipc(golden_bundle: Path, **options: object) -> GraphRolloutEngine:
    return open_torch(golden_bundle, Solver.UNIPC, **options)


def open_onnxruntime(golden_bundle: Path, **options: object) -> GraphRolloutEngine:
    bundle = Bundle.open(golden_bundle)
    sessions = {graph: OrtSession(bundle.graph_path(graph), num_threads=1) for graph in GRAPHS}
    return GraphRolloutEngine(replace(bundle.contract, buckets=(1, 2, 4)), sessions, **options)


@pytest.fixture(params=[open_onnxruntime, open_torch, open_unipc])
def open_engine(request: pytest.FixtureRequest, golden_bundle: Path) -> Iterator[OpenEngine]:
    opened: list[GraphRolloutEngine] = []

    def open_one(**options: object) -> GraphRolloutEngine:
        opened.append(request.param(golden_bundle, **options))
        return opened[-1]

    yield open_one
    for engine in opened:
        engine.close()


def run_chain(
    engine: GraphRolloutEngine, query: Query, size: int, order: Callable[[list], Sequence] = list
) -> list[list]:
    """Step some members to the end; `order` says in which order they share a forward."""
    conditioning = engine.condition(engine.encode(query.context), query.states)
    rng = np.random.default_rng(0)
    noises = [rng.standard_normal(engine.noise_shape(), dtype=np.float32) for _ in range(size)]
    states = [engine.initial_latents(conditioning, noise) for noise in noises]
    times, history = get_schedule(STEPS, 1.0), []
    for index, (time, next_time) in enumerate(pairwise(times)):
        places = order(list(range(size)))
        rows = [StepRow(states[place], time, next_time, conditioning, times[:index]) for place in places]
        for place, state in zip(places, engine.step(rows), strict=True):
            states[place] = state
        history.append(list(states))
    return history


def test_bytes_are_those_of_the_way_through_the_host(open_engine: OpenEngine, make_query: MakeQuery) -> None:
    plain, resident = open_engine(is_resident=False), open_engine(is_resident=True)
    assert (plain.is_resident, resident.is_resident) == (False, True)
    for size in (1, 3, 7):
        query = make_query(size=size, steps=STEPS, frame_indices=(1, 5, 8))
        assert sample(resident, query).members.tobytes() == sample(plain, query).members.tobytes()


def test_a_wrong_row_would_be_noticed(
    open_engine: OpenEngine, make_query: MakeQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = make_query(size=3, steps=STEPS)
    expected = sample(open_engine(is_resident=False), query).members
    view = DeviceRow.__init__

    def shifted(self: DeviceRow, batch: object, offset: int, shape: tuple[int, ...]) -> None:
        view(self, batch, 0 if len(shape) > 3 else offset, shape)  # every state is the first row's

    monkeypatch.setattr(DeviceRow, "__init__", shifted)
    assert sample(open_engine(is_resident=True), query).members.tobytes() != expected.tobytes()


@pytest.mark.parametrize("size", [1, 3, 4])
def test_a_chain_of_steps_copies_no_state(open_engine: OpenEngine, make_query: MakeQuery, size: int) -> None:
    engine = open_engine(is_resident=True)
    traffic = engine.sessions["step"].memory.traffic
    history = run_chain(engine, make_query(), size)
    assert all(isinstance(state, DeviceRow) for states in history for state in states)
    assert (traffic.downloaded_bytes, traffic.gathered_bytes) == (0, 0)
    filled = engine.contract.buckets[-1] if size == 3 else size
    state_bytes = np.prod(engine.initial_latents(*noise_of(engine, make_query())).shape) * 4
    table_bytes = 4 * (12 * 48 + 48)
    second = 12 if engine.contract.sampler.solver is Solver.EULER else 10
    assert traffic.uploaded_bytes == filled * (state_bytes + table_bytes + STEPS * 4 * (12 + second))


def noise_of(engine: GraphRolloutEngine, query: Query) -> tuple[object, np.ndarray]:
    conditioning = engine.condition(engine.encode(query.context), query.states)
    return conditioning, np.zeros(engine.noise_shape(), np.float32)


def test_members_in_changing_company_keep_their_bytes(open_engine: OpenEngine, make_query: MakeQuery) -> None:
    ends = []
    for is_resident in (False, True):
        rng = np.random.default_rng(1)
        engine = open_engine(is_resident=is_resident)
        history = run_chain(engine, make_query(), 4, lambda places, rng=rng: list(rng.permutation(places)))
        ends.append([np.asarray(state).tobytes() for states in history for state in states])
    assert ends[0] == ends[1]


def test_rows_of_one_engine_are_taken_by_another(open_engine: OpenEngine, make_query: MakeQuery) -> None:
    one, plain = open_engine(is_resident=True), open_engine(is_resident=False)
    conditioning, noise = noise_of(one, make_query())
    start = StepRow(one.initial_latents(conditioning, noise + 1), 1.0, 0.5, conditioning)
    (resident_state,), (state,) = one.step([start]), plain.step([start])
    for engine in (one, open_engine(is_resident=True), plain):
        (end,) = engine.step([StepRow(resident_state, 0.5, 0.0, conditioning, (1.0,))])
        (expected,) = plain.step([StepRow(state, 0.5, 0.0, conditioning, (1.0,))])
        np.testing.assert_array_equal(end, expected)


def test_an_estimate_is_that_of_the_way_through_the_host(open_engine: OpenEngine, make_query: MakeQuery) -> None:
    engines = open_engine(is_resident=False), open_engine(is_resident=True)
    conditioning, noise = noise_of(engines[0], make_query())
    estimates = []
    for engine in engines:
        start = engine.initial_latents(conditioning, noise + 1)
        (state,) = engine.step([StepRow(start, 1.0, 0.5, conditioning)])
        estimates.append(engine.decode([engine.denoise(start, state, 1.0, 0.5)], [1, 2]))
    np.testing.assert_array_equal(*estimates)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_states_that_are_not_finite_are_a_model_fault(
    open_engine: OpenEngine, make_query: MakeQuery, poison: float
) -> None:
    engine = open_engine(is_resident=True)
    conditioning, noise = noise_of(engine, make_query())
    noises = [noise + 1, noise + poison]
    rows = [StepRow(engine.initial_latents(conditioning, each), 1.0, 0.0, conditioning) for each in noises]
    good, bad = engine.step(rows)
    engine.decode([good], [1])
    with pytest.raises(ModelFault, match="not finite"):
        engine.decode([good, bad], [1])


def test_states_stay_by_themselves_only_off_the_cpu(open_engine: OpenEngine) -> None:
    assert not open_engine().is_resident


def test_a_session_that_cannot_is_named(golden_bundle: Path) -> None:
    class Plain:
        input_names, output_names, device = ("latents",), ("frames",), "cpu"

        def run(self, inputs: object) -> dict[str, np.ndarray]:
            return {}

        def close(self) -> None: ...

    sessions = {**torch_sessions(Solver.EULER), "decode": Plain()}
    with pytest.raises(RuntimeUnavailable, match="the decode graph's session cannot leave"):
        GraphRolloutEngine(toy_contract(), sessions, is_resident=True)
    assert not GraphRolloutEngine(toy_contract(), sessions).is_resident


def test_the_built_in_model_gives_equal_bytes(make_query: MakeQuery) -> None:
    bundle = Bundle.open(builtin_bundle())
    contract = replace(bundle.contract, buckets=(1, 2))
    members = []
    for is_resident in (False, True):
        sessions = {graph: OrtSession(bundle.graph_path(graph), num_threads=1) for graph in GRAPHS}
        engine = GraphRolloutEngine(contract, sessions, is_resident=is_resident)
        rng = np.random.default_rng(0)
        size = (contract.context_frames, contract.camera.height, contract.camera.width, 3)
        query = replace(
            make_query(size=2, steps=2, frame_indices=(1, 8)),
            context=rng.integers(0, 256, size, dtype=np.uint8),
            states=np.tile(contract.state.mean, (contract.num_frames, 1)),
        )
        members.append(sample(engine, query).members.tobytes())
        traffic = sessions["step"].memory.traffic
        engine.close()
    assert members[0] == members[1]
    assert traffic.downloaded_bytes == 2 * contract.num_latents * 32 * 8 * 8 * 4, "once, to see that they are finite"
