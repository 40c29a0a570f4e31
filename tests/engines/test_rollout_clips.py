"""Engines whose latents hold several frames, whose solver looks back, or whose steps are guided, on arithmetic."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from foreframe_engines import Contract, Query, StepRow
from foreframe_engines.errors import BundleError
from foreframe_engines.rollout import GraphRolloutEngine
from foreframe_engines.sampling import sample
from foreframe_engines.schedule import get_schedule
from foreframe_engines.solvers import Solver
from foreframe_engines.testing import toy_contract

FRAMES_PER_LATENT = 4
CONTEXT, FUTURE = 2, 3

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


class ArithmeticSession:
    """A graph that is a function of arrays; `batches` holds how many rows each run had."""

    device = "cpu"

    def __init__(self, run: Run, input_names: tuple[str, ...], output_name: str) -> None:
        self.input_names, self.output_names = input_names, (output_name,)
        self.batches: list[int] = []
        self._run = run

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert set(inputs) == set(self.input_names)
        self.batches.append(len(next(iter(inputs.values()))))
        return {self.output_names[0]: self._run(inputs)}

    def close(self) -> None:
        pass


def encode(inputs):
    """Take one latent of the first frame and one of each four after it: the mean of their blocks."""
    frames = inputs["frames"][0].astype(np.float32) / 127.5 - 1
    small = frames.reshape(len(frames), 4, 2, 4, 2, 3).mean((2, 4)).transpose(0, 3, 1, 2)
    later = small[1:].reshape(-1, FRAMES_PER_LATENT, *small.shape[1:]).mean(1)
    return np.concatenate([small[:1], later])[None].astype(np.float32)


def condition(inputs):
    """Say where the future is: a number for each latent, from the states of its last frame."""
    return np.tanh(inputs["states"][:, ::-FRAMES_PER_LATENT].sum(-1)[:, ::-1]).astype(np.float32)


def goal_of(inputs):
    return inputs["goal"][..., None, None, None]


def velocity(latents, time, goal):
    """The velocity of a straight flow to a goal that is known."""
    moved = time > 0
    safe = np.where(moved, time, 1)[..., None, None, None]
    return np.where(moved[..., None, None, None], (latents - goal) / safe, 0).astype(np.float32)


def euler_step(inputs, goal=None):
    latents, time = inputs["latents"], inputs["time"]
    span = (inputs["next_time"] - time)[..., None, None, None]
    return latents + span * velocity(latents, time, goal_of(inputs) if goal is None else goal)


def guided_step(inputs):
    """Go beyond the goal by the guidance: the other branch goes to 0."""
    return euler_step(inputs, inputs["guidance"][:, None, None, None, None] * goal_of(inputs))


def unipc_step(inputs):
    x, last, m1, m2 = inputs["latents"].swapaxes(0, 1)
    time = inputs["time"]
    m = x - time[..., None, None, None] * velocity(x, time, goal_of(inputs))
    rows = inputs["coefficients"][:, :, :, None, None, None, None]
    corrected = sum(rows[:, 0, place] * part for place, part in enumerate((x, last, m1, m2, m)))
    after = sum(rows[:, 1, place] * part for place, part in enumerate((corrected, m, m1)))
    moved = np.stack([after, corrected, m, m1], 1)
    return np.where((time > 0)[:, None, :, None, None, None], moved, inputs["latents"]).astype(np.float32)


def decode(inputs):
    """Turn every latent into its frames, each a little darker than the one before."""
    levels = np.clip((inputs["latents"] + 1) * 100, 0, 255).astype(np.uint8)
    repeats = [1] + [FRAMES_PER_LATENT] * (levels.shape[1] - 1)
    frames = levels.repeat(repeats, 1).repeat(2, -1).repeat(2, -2).transpose(0, 1, 3, 4, 2)
    return frames - np.arange(frames.shape[1], dtype=np.uint8)[:, None, None, None]


def decode_tail(inputs):
    return decode(inputs)[:, -FRAMES_PER_LATENT:]


def clip_contract(solver: Solver = Solver.EULER, *, guidance: float | None = None, **changes: object) -> Contract:
    base = toy_contract(context_frames=5, horizon=FUTURE * FRAMES_PER_LATENT, buckets=(1, 2, 4))
    sampler = replace(base.sampler, solver=solver, guidance=guidance)
    return replace(base, frames_per_latent=FRAMES_PER_LATENT, sampler=sampler, **changes)


def clip_sessions(solver: Solver = Solver.EULER) -> dict[str, ArithmeticSession]:
    steps = {
        Solver.EULER: (euler_step, ("latents", "time", "next_time", "goal")),
        Solver.UNIPC: (unipc_step, ("latents", "time", "coefficients", "goal")),
    }
    run, names = steps[solver]
    return {
        "encode": ArithmeticSession(encode, ("frames",), "latents"),
        "condition": ArithmeticSession(condition, ("states",), "goal"),
        "step": ArithmeticSession(run, names, "latents_next"),
        "decode": ArithmeticSession(decode, ("latents",), "frames"),
    }


@pytest.fixture
def make_clip_query(make_query) -> Callable[..., Query]:
    def make(contract: Contract, *, guidance: float = 1.0, **facts: object) -> Query:
        query = make_query(**facts)
        rng = np.random.default_rng(3)
        context = rng.integers(60, 200, (contract.context_frames, 8, 8, 3), dtype=np.uint8)
        states = rng.standard_normal((contract.num_frames, contract.state.dim), dtype=np.float32)
        return replace(query, context=context, states=states, sampling=replace(query.sampling, guidance=guidance))

    return make


def goals(engine: GraphRolloutEngine, query: Query) -> np.ndarray:
    return engine.condition(engine.encode(query.context), query.states).tables["goal"][0]


def test_a_contract_counts_its_latents():
    contract = clip_contract()
    assert (contract.num_frames, contract.context_latents, contract.num_latents) == (17, CONTEXT, CONTEXT + FUTURE)
    plain = toy_contract()
    assert (plain.num_frames, plain.context_latents, plain.num_latents) == (12, 4, 12)


@pytest.mark.parametrize("solver", Solver)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_every_solver_ends_where_a_straight_flow_leads(make_clip_query, solver, steps):
    contract = clip_contract(solver)
    engine = GraphRolloutEngine(contract, clip_sessions(solver))
    query = make_clip_query(contract, size=3, steps=steps, frame_indices=(1, 12))
    members = sample(engine, query).members
    expected = decode({"latents": np.broadcast_to(goals(engine, query)[None, :, None, None, None], (1, 5, 3, 4, 4))})
    assert np.abs(members.astype(int) - expected[0, [5, 16]].astype(int)).max() <= 1


@pytest.mark.parametrize("solver", Solver)
def test_the_context_never_moves_and_every_step_points_at_the_end(make_clip_query, solver):
    contract = clip_contract(solver)
    engine = GraphRolloutEngine(contract, clip_sessions(solver))
    query = make_clip_query(contract)
    conditioning = engine.condition(engine.encode(query.context), query.states)
    state = engine.initial_latents(conditioning, np.ones(engine.noise_shape(), np.float32))
    times = get_schedule(4, contract.sampler.shift)
    for index in range(4):
        before = state
        (state,) = engine.step([StepRow(before, times[index], times[index + 1], conditioning, times[:index])])
        latents = state if state.ndim == 4 else state[0]
        np.testing.assert_array_equal(latents[:CONTEXT], conditioning.context_latents)
        estimate = engine.denoise(before, state, times[index], times[index + 1])
        wanted = goals(engine, query)[CONTEXT:, None, None, None]
        np.testing.assert_allclose(estimate[CONTEXT:], np.broadcast_to(wanted, estimate[CONTEXT:].shape), atol=1e-5)
    assert state.shape == (CONTEXT + FUTURE, 3, 4, 4), "finished members are latents alone"


def test_a_solver_that_forgot_its_earlier_times_would_be_seen(make_clip_query):
    contract = clip_contract(Solver.UNIPC)
    engine = GraphRolloutEngine(contract, clip_sessions(Solver.UNIPC))
    query = make_clip_query(contract)
    conditioning = engine.condition(engine.encode(query.context), query.states)
    noise = np.random.default_rng(0).standard_normal(engine.noise_shape(), dtype=np.float32)
    state = engine.initial_latents(conditioning, noise)
    (state,) = engine.step([StepRow(state, 1.0, 0.8, conditioning)])
    state[2] += 1  # an earlier answer that was another: this flow is no straight one
    rows = [StepRow(state, 0.8, 0.5, conditioning, earlier) for earlier in ((1.0,), ())]
    told, forgot = engine.step(rows)
    assert not np.allclose(told[1], forgot[1])


def test_guided_rows_run_both_branches_and_others_skip_them(make_clip_query):
    contract, sessions = clip_contract(guidance=1.0), clip_sessions()
    sessions["step_guided"] = ArithmeticSession(
        guided_step, ("latents", "time", "next_time", "guidance", "goal"), "latents_next"
    )
    engine = GraphRolloutEngine(contract, sessions)
    query = make_clip_query(contract)
    conditioning = engine.condition(engine.encode(query.context), query.states)
    noise = np.ones(engine.noise_shape(), np.float32)
    start = engine.initial_latents(conditioning, noise)
    rows = [StepRow(start, 1.0, 0.0, conditioning, guidance=guidance) for guidance in (1.0, 2.0, 1.0, 0.0)]
    ends = [state[CONTEXT:].mean((1, 2, 3)) for state in engine.step(rows)]
    goal = goals(engine, query)[CONTEXT:]
    np.testing.assert_allclose(ends, [goal, 2 * goal, goal, 0 * goal], atol=1e-6)
    assert (sessions["step"].batches, sessions["step_guided"].batches) == ([2], [2])


def test_the_last_frames_are_decoded_alone_where_nothing_else_is_wanted(make_clip_query):
    contract, sessions = clip_contract(), clip_sessions()
    whole = GraphRolloutEngine(contract, clip_sessions())
    sessions["decode_tail"] = ArithmeticSession(decode_tail, ("latents",), "frames")
    engine = GraphRolloutEngine(contract, sessions)
    for indices, is_alone in (((9, 12), True), ((12,), True), ((8, 12), False), (tuple(range(1, 13)), False)):
        sessions["decode"].batches.clear()
        sessions["decode_tail"].batches.clear()
        query = make_clip_query(contract, size=5, frame_indices=indices)
        members = sample(engine, query).members
        assert members.tobytes() == sample(whole, query).members.tobytes()
        assert members.shape[:2] == (5, len(indices))
        used, unused = ("decode_tail", "decode") if is_alone else ("decode", "decode_tail")
        assert sessions[used].batches == [4, 1]
        assert not sessions[unused].batches


def test_a_second_output_is_refused_in_every_graph_but_condition():
    sessions = clip_sessions()
    sessions["decode"].output_names = ("frames", "more")
    with pytest.raises(BundleError, match="the decode graph has more than one output"):
        GraphRolloutEngine(clip_contract(), sessions)
