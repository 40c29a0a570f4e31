"""Sessions on a toy: the same frames as predictions give, in order, and nothing left of what was refused or dropped."""

import asyncio
import contextlib
from dataclasses import replace

import numpy as np
import pytest

from foreframe_engines import EnsembleSpec, OnDeadline, Query, Reducer, Sampling, Strategy
from foreframe_engines import ModelFault as EngineFault
from foreframe_engines.testing import ToyRolloutEngine, toy_contract
from foreframe_server.calls import CachePolicy
from foreframe_server.disconnects import ClientLeft
from foreframe_server.errors import (
    DeadlineExceeded,
    Gone,
    InvalidRequest,
    ModelFault,
    StateDimMismatch,
    StepOutOfOrder,
    TooExpensive,
)
from foreframe_server.session_service import SessionService
from foreframe_server.session_store import SessionLimits, SessionStore
from foreframe_server.sessions import SessionSeed, StepAsk, StepSampling, UnknownSession

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (4, 8, 8, 3), np.uint8)
STATES = RNG.normal(size=(4, 3)).astype(np.float32)
FUTURE = RNG.normal(size=(40, 3)).astype(np.float32)
SEED = SessionSeed(FRAMES, STATES, seed=11)
PATIENCE_S = 20


@pytest.fixture
def bypass(make_call):
    return make_call(cache=CachePolicy.BYPASS)


@pytest.fixture
def serving_sessions(running):
    @contextlib.asynccontextmanager
    async def serve(engine=None, *, shared=None, clock=None, **limits):
        async with running(engine) as core:
            clocks = {} if clock is None else {"clock": clock}
            store = SessionStore(SessionLimits(**limits), core.metrics, clock or (lambda: 0.0))
            sessions = SessionService(core.service, core.worker, store, core.metrics, shared=shared, **clocks)
            yield sessions, core
            await sessions.close()

    return serve


@pytest.fixture
def tell(serving_sessions):
    """Run a story with sessions on a toy."""

    def run(story, engine=None, **limits):
        async def scenario():
            async with serving_sessions(engine, **limits) as (sessions, core), asyncio.timeout(PATIENCE_S):
                return await story(sessions, core)

        return asyncio.run(scenario())

    return run


async def predict(core, call, frames, states, rows, seed, *, strategy=Strategy.SAMPLE, ensemble=None):
    """Predict without a session."""
    query = Query(
        model="toy",
        context=frames[-4:],
        states=np.concatenate([states[-4:], rows]),
        frame_indices=tuple(range(1, len(rows) + 1)),
        sampling=Sampling(strategy, 1 if strategy is Strategy.POSTERIOR_MEAN else 4, seed),
        ensemble=ensemble or EnsembleSpec(),
    )
    return (await core.service.predict(query, call)).prediction


def differences(one, other):
    return [
        name
        for name in ("frames", "members", "variance")
        if not np.array_equal(getattr(one, name), getattr(other, name))
    ]


@pytest.mark.parametrize("strategy", list(Strategy))
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_every_step_has_the_bytes_of_a_prediction_from_the_same_frames(tell, bypass, rows, strategy):
    async def story(sessions, core):
        session = await sessions.create(SEED, bypass)
        frames, states = FRAMES, STATES
        for turn in range(4):
            ask = StepAsk(FUTURE[turn * rows : (turn + 1) * rows], sampling=StepSampling(strategy))
            step = await sessions.step(session.session_id, ask, bypass)
            alone = await predict(core, bypass, frames, states, ask.states, 11 + turn * rows, strategy=strategy)
            assert differences(step.prediction, alone) == []
            assert (step.step_id, step.committed_step_id) == (turn + 1, turn + 1)
            frames, states = np.concatenate([frames, step.frames]), np.concatenate([states, ask.states])

    tell(story)


def test_a_session_that_forgot_a_frame_would_be_caught(tell, bypass):
    async def story(sessions, core):
        session = await sessions.create(SEED, bypass)
        first = await sessions.step(session.session_id, StepAsk(FUTURE[:1]), bypass)
        second = await sessions.step(session.session_id, StepAsk(FUTURE[1:2]), bypass)
        stale = await predict(core, bypass, FRAMES, STATES, FUTURE[1:2], 12)
        assert first.frames.shape == (1, 8, 8, 3)
        return differences(second.prediction, stale)

    assert "frames" in tell(story)


def test_a_chunk_longer_than_the_horizon_is_predicted_window_by_window(tell, bypass):
    ensemble = EnsembleSpec(size=3, reducer=Reducer.MEDIAN)

    async def story(sessions, core):
        session = await sessions.create(SEED, bypass)
        step = await sessions.step(session.session_id, StepAsk(FUTURE[:20], ensemble=ensemble), bypass)
        frames, states, windows = FRAMES, STATES, []
        for start in (0, 8, 16):
            rows = FUTURE[start : min(20, start + 8)]
            windows.append(await predict(core, bypass, frames, states, rows, 11 + start, ensemble=ensemble))
            frames, states = np.concatenate([frames, windows[-1].frames]), np.concatenate([states, rows])
        return step, windows

    step, windows = tell(story)
    prediction = step.prediction
    assert np.array_equal(step.frames, np.concatenate([window.frames for window in windows]))
    assert np.array_equal(prediction.members, np.concatenate([window.members for window in windows], axis=1))
    assert prediction.frame_indices == tuple(range(1, 21))
    assert (prediction.variance.shape[0], len(prediction.spread_per_frame), step.step_id) == (20, 20, 1)
    assert step.timings.denoise > 0


def test_the_next_context_is_encoded_between_the_steps(tell, bypass):
    async def story(sessions, core):
        session = await sessions.create(SEED, bypass)
        for turn in range(3):
            sessions.prepare(session.session_id)
            await sessions.store.peek(session.session_id).encoding.latents()
            num_encodes = core.engine.calls["encode"]
            step = await sessions.step(session.session_id, StepAsk(FUTURE[turn : turn + 1]), bypass)
            assert core.engine.calls["encode"] == num_encodes == turn + 1
            assert step.timings.encode < 1

    tell(story)


def test_latents_that_came_with_the_start_are_used(tell, bypass):
    async def story(sessions, core):
        latents = ToyRolloutEngine().encode(FRAMES)
        session = await sessions.create(replace(SEED, latents=latents), bypass)
        await sessions.step(session.session_id, StepAsk(FUTURE[:1]), bypass)
        return core.engine.calls["encode"]

    assert tell(story) == 0


def test_the_last_step_asked_again_gives_its_bytes_without_any_work(tell, bypass):
    async def story(sessions, core):
        session = await sessions.create(SEED, bypass)
        ask = StepAsk(FUTURE[:2], step_id=1, ensemble=EnsembleSpec(size=2))
        first = await sessions.step(session.session_id, ask, bypass)
        num_steps = core.engine.calls["step"]
        again = await sessions.step(session.session_id, ask, bypass)
        assert core.engine.calls["step"] == num_steps
        with pytest.raises(StepOutOfOrder):
            await sessions.step(session.session_id, StepAsk(FUTURE[:2], step_id=3), bypass)
        return first, again

    first, again = tell(story)
    assert (first.is_repeat, again.is_repeat) == (False, True)
    assert differences(first.prediction, again.prediction) == []
    assert (again.step_id, again.committed_step_id) == (1, 1)


def test_a_seed_of_the_step_s_own_counts_for_it_alone(tell, bypass):
    async def story(sessions, _core):
        session = await sessions.create(SEED, bypass)
        steps = [
            await sessions.step(session.session_id, StepAsk(FUTURE[:1], sampling=StepSampling(seed=seed)), bypass)
            for seed in (99, None)
        ]
        return [step.prediction.sampling.seed for step in steps]

    assert tell(story) == [99, 12]


class TestForks:
    def test_go_their_own_ways_from_the_same_frames(self, tell, bypass):
        async def story(sessions, _core):
            one = (await sessions.create(SEED, bypass)).session_id
            await sessions.step(one, StepAsk(FUTURE[:1]), bypass)
            other = (await sessions.fork(one)).session_id
            same = [await sessions.step(each, StepAsk(FUTURE[1:2], step_id=2), bypass) for each in (one, other)]
            apart = [
                await sessions.step(each, StepAsk(FUTURE[at : at + 1], step_id=3), bypass)
                for each, at in ((one, 2), (other, 3))
            ]
            return same, apart

        same, apart = tell(story)
        assert differences(same[0].prediction, same[1].prediction) == []
        assert "frames" in differences(apart[0].prediction, apart[1].prediction)

    def test_hold_no_memory_until_they_differ(self, tell, bypass):
        async def story(sessions, _core):
            session = await sessions.create(SEED, bypass)
            for turn in range(5):
                await sessions.step(session.session_id, StepAsk(FUTURE[turn : turn + 1]), bypass)
            before = sessions.store.num_bytes
            fork = await sessions.fork(session.session_id)
            shared = sessions.store.num_bytes
            await sessions.step(fork.session_id, StepAsk(FUTURE[:1]), bypass)
            return before, shared, sessions.store.num_bytes

        before, shared, apart = tell(story)
        assert before == shared < apart

    def test_outlive_the_session_they_came_from(self, tell, bypass):
        async def story(sessions, _core):
            session = await sessions.create(SEED, bypass)
            fork = await sessions.fork(session.session_id)
            await sessions.delete(session.session_id)
            return await sessions.step(fork.session_id, StepAsk(FUTURE[:1]), bypass)

        assert tell(story).step_id == 1


def test_after_a_rollback_the_same_step_gives_the_same_bytes(tell, bypass):
    async def story(sessions, _core):
        session_id = (await sessions.create(SEED, bypass)).session_id
        steps = [await sessions.step(session_id, StepAsk(FUTURE[at : at + 1]), bypass) for at in range(3)]
        assert (await sessions.rollback(session_id, 1)).step_id == 1
        again = [await sessions.step(session_id, StepAsk(FUTURE[at : at + 1], step_id=at + 1), bypass) for at in (1, 2)]
        return steps, again

    steps, again = tell(story)
    assert [differences(one.prediction, other.prediction) for one, other in zip(steps[1:], again, strict=True)] == [
        [],
        [],
    ]


def test_after_a_reset_everything_comes_again_and_another_start_is_taken(tell, bypass):
    other = SessionSeed(FRAMES[::-1], STATES)

    async def story(sessions, core):
        session_id = (await sessions.create(SEED, bypass)).session_id
        first = await sessions.step(session_id, StepAsk(FUTURE[:1]), bypass)
        assert (await sessions.reset(session_id)).step_id == 0
        again = await sessions.step(session_id, StepAsk(FUTURE[:1], step_id=1), bypass)
        await sessions.reset(session_id, start=other, noise_seed=5)
        elsewhere = await sessions.step(session_id, StepAsk(FUTURE[:1]), bypass)
        alone = await predict(core, bypass, FRAMES[::-1], STATES, FUTURE[:1], 5)
        return first, again, elsewhere, alone

    first, again, elsewhere, alone = tell(story)
    assert differences(first.prediction, again.prediction) == []
    assert differences(elsewhere.prediction, alone) == []


def test_what_arrives_is_compared_counted_and_gone_on_from(tell, bypass):
    async def story(sessions, core):
        session_id = (await sessions.create(SEED, bypass)).session_id
        step = await sessions.step(session_id, StepAsk(FUTURE[:3]), bypass)
        pushed = await sessions.push(session_id, step.frames[:1], FUTURE[:1])
        real = 255 - step.frames[1:2]
        further = await sessions.push(session_id, real, FUTURE[1:2])
        next_step = await sessions.step(session_id, StepAsk(FUTURE[2:3]), bypass)
        frames = np.concatenate([FRAMES, step.frames[:1], real])
        alone = await predict(core, bypass, frames, np.concatenate([STATES, FUTURE[:2]]), FUTURE[2:3], 13)
        count = core.metrics.registry.get_sample_value("foreframe_prediction_psnr_db_count")
        return pushed, further, next_step, alone, count

    pushed, further, next_step, alone, count = tell(story)
    assert pushed.compared[0].psnr_db == 100
    assert further.compared[0].psnr_db < 30
    assert further.session.shadow.count == count == 2
    assert differences(next_step.prediction, alone) == []
    assert next_step.step_id == 2


class TestTurns:
    def test_steps_at_once_are_made_one_after_another(self, tell, bypass):
        async def story(sessions, _core):
            session_id = (await sessions.create(SEED, bypass)).session_id
            steps = await asyncio.gather(
                *(sessions.step(session_id, StepAsk(FUTURE[at : at + 1]), bypass) for at in range(6))
            )
            alone = (await sessions.create(SEED, bypass)).session_id
            in_order = [await sessions.step(alone, StepAsk(FUTURE[at : at + 1]), bypass) for at in range(6)]
            return steps, in_order

        steps, in_order = tell(story)
        assert [step.step_id for step in steps] == [1, 2, 3, 4, 5, 6]
        for one, other in zip(steps, in_order, strict=True):
            assert differences(one.prediction, other.prediction) == []

    def test_of_equal_steps_at_once_one_is_made(self, tell, bypass):
        async def story(sessions, _core):
            session_id = (await sessions.create(SEED, bypass)).session_id
            ask = StepAsk(FUTURE[:1], step_id=1)
            return await asyncio.gather(*(sessions.step(session_id, ask, bypass) for _ in range(4)))

        steps = tell(story)
        assert [step.is_repeat for step in steps] == [False, True, True, True]
        assert {step.frames.tobytes() for step in steps} == {steps[0].frames.tobytes()}

    def test_a_deadline_ends_the_wait_for_a_turn(self, serving_sessions, make_call, bypass, gate, fake_clock):
        async def scenario():
            async with serving_sessions(ToyRolloutEngine(step_hook=gate), clock=fake_clock) as (sessions, _core):
                session_id = (await sessions.create(SEED, bypass)).session_id
                gate.close()
                first = asyncio.create_task(sessions.step(session_id, StepAsk(FUTURE[:1]), bypass))
                await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)
                late = make_call(deadline_s=fake_clock() + 0.01, cache=CachePolicy.BYPASS)
                with pytest.raises(DeadlineExceeded):
                    await sessions.step(session_id, StepAsk(FUTURE[:1]), late)
                gate.open()
                return (await first).step_id

        assert asyncio.run(scenario()) == 1

    @pytest.mark.parametrize("leaves", ["cancelled", "disconnected"])
    def test_who_leaves_during_a_step_leaves_no_lock_and_no_step(self, tell, make_call, bypass, gate, leaves):
        gone = asyncio.Event()

        async def is_disconnected():
            return gone.is_set()

        async def story(sessions, _core):
            session_id = (await sessions.create(SEED, bypass)).session_id
            gate.close()
            call = make_call(cache=CachePolicy.BYPASS, is_disconnected=is_disconnected)
            leaving = asyncio.create_task(sessions.step(session_id, StepAsk(FUTURE[:1]), call))
            await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)
            gone.set()
            if leaves == "cancelled":
                leaving.cancel()
            with pytest.raises((ClientLeft, asyncio.CancelledError)):
                await leaving
            gate.open()
            assert not sessions.store.turn(session_id, "").locked()
            return await sessions.step(session_id, StepAsk(FUTURE[:1], step_id=1), bypass)

        assert not tell(story, ToyRolloutEngine(step_hook=gate)).is_repeat


class BrokenEngine(ToyRolloutEngine):
    """A toy that fails at what it is told to."""

    broken = ""

    def encode(self, context):
        if self.broken == "encode":
            raise EngineFault("planted")
        return super().encode(context)

    def condition(self, context_latents, states):
        if self.broken == "condition":
            raise EngineFault("planted")
        return super().condition(context_latents, states)


def test_a_step_that_fails_changes_nothing(tell, bypass, logs):
    engine = BrokenEngine()

    async def story(sessions, _core):
        session_id = (await sessions.create(SEED, bypass)).session_id
        engine.broken = "condition"
        with pytest.raises(ModelFault):
            await sessions.step(session_id, StepAsk(FUTURE[:1], step_id=1), bypass)
        engine.broken = ""
        return await sessions.step(session_id, StepAsk(FUTURE[:1], step_id=1), bypass)

    assert not tell(story, engine).is_repeat


def test_an_encoding_that_fails_between_steps_is_made_by_the_step(tell, bypass, logs):
    engine = BrokenEngine()

    async def story(sessions, _core):
        engine.broken = "encode"
        session_id = (await sessions.create(SEED, bypass)).session_id
        sessions.prepare(session_id)
        await sessions.store.peek(session_id).encoding.latents()
        engine.broken = ""
        return await sessions.step(session_id, StepAsk(FUTURE[:1]), bypass)

    assert tell(story, engine).step_id == 1
    assert [entry["event"] for entry in logs if entry["event"].startswith("session")] == ["session.encode_failed"]


class TestRefusals:
    def test_sessions_of_others_and_none_at_all(self, tell, make_call, bypass):
        mine = replace(bypass, tenant="mine")

        async def story(sessions, _core):
            session_id = (await sessions.create(SEED, mine)).session_id
            for name, tenant in ((session_id, "other"), ("none", "mine")):
                caller = replace(bypass, tenant=tenant)
                for attempt in (
                    sessions.step(name, StepAsk(FUTURE[:1]), caller),
                    sessions.fork(name, tenant=tenant),
                    sessions.push(name, FRAMES[:1], STATES[:1], tenant=tenant),
                    sessions.rollback(name, 0, tenant=tenant),
                    sessions.reset(name, tenant=tenant),
                    sessions.get(name, tenant=tenant),
                    sessions.delete(name, tenant=tenant),
                ):
                    with pytest.raises(UnknownSession):
                        await attempt
            return await sessions.step(session_id, StepAsk(FUTURE[:1]), mine)

        assert tell(story).step_id == 1

    @pytest.mark.parametrize("states", [FUTURE[:0], FUTURE[:1, :2], FUTURE[:30], FUTURE[0]])
    def test_states_that_do_not_fit(self, tell, bypass, states):
        async def story(sessions, _core):
            session = await sessions.create(SEED, bypass)
            with pytest.raises(StateDimMismatch):
                await sessions.step(session.session_id, StepAsk(states), bypass)

        tell(story, max_step_rows=20)

    def test_too_short_and_too_large_starts(self, tell, bypass):
        async def story(sessions, _core):
            with pytest.raises(InvalidRequest):
                await sessions.create(SessionSeed(FRAMES[:2], STATES[:2]), bypass)
            with pytest.raises(TooExpensive):
                await sessions.create(SEED, bypass)
            return len(sessions.store)

        assert tell(story, max_session_bytes=100) == 0

    def test_a_step_whose_answer_is_too_large_to_be_held_is_not_made(self, tell, bypass):
        async def story(sessions, _core):
            session_id = (await sessions.create(SEED, bypass)).session_id
            ask = StepAsk(FUTURE[:8], ensemble=EnsembleSpec(size=8))
            with pytest.raises(TooExpensive):
                await sessions.step(session_id, ask, bypass)
            return await sessions.step(session_id, StepAsk(FUTURE[:1], step_id=1), bypass)

        assert tell(story, max_session_bytes=6000).step_id == 1

    def test_a_session_that_was_deleted_during_its_step_stays_deleted(self, tell, bypass, gate):
        async def story(sessions, _core):
            session_id = (await sessions.create(SEED, bypass)).session_id
            gate.close()
            step = asyncio.create_task(sessions.step(session_id, StepAsk(FUTURE[:1]), bypass))
            await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)
            await sessions.delete(session_id)
            gate.open()
            with pytest.raises(Gone):
                await step
            return len(sessions.store)

        assert tell(story, ToyRolloutEngine(step_hook=gate)) == 0


def test_a_long_session_stays_as_large_as_its_history_may_be(tell, bypass):
    async def story(sessions, _core):
        session_id = (await sessions.create(SEED, bypass)).session_id
        held = []
        for turn in range(60):
            await sessions.step(session_id, StepAsk(FUTURE[turn % 40][None]), bypass)
            held.append(sessions.store.num_bytes)
        return held

    held = tell(story, history_bytes=10 * 204)
    assert held[-1] == held[20]


def test_models_whose_contract_is_another_are_stepped_alike(tell, bypass):
    contract = toy_contract(context_frames=2, horizon=3, state_dim=5)
    seed = SessionSeed(FRAMES, RNG.normal(size=(4, 5)).astype(np.float32), seed=3)

    async def story(sessions, _core):
        session_id = (await sessions.create(seed, bypass)).session_id
        rows = RNG.normal(size=(7, 5)).astype(np.float32)
        return await sessions.step(session_id, StepAsk(rows), bypass)

    assert tell(story, ToyRolloutEngine(contract)).frames.shape == (7, 8, 8, 3)


def test_a_deadline_that_fails_leaves_the_session_where_it_was(tell, make_call, bypass):
    async def story(sessions, _core):
        session_id = (await sessions.create(SEED, bypass)).session_id
        past = make_call(deadline_s=-1.0, on_deadline=OnDeadline.FAIL, cache=CachePolicy.BYPASS)
        with pytest.raises(DeadlineExceeded):
            await sessions.step(session_id, StepAsk(FUTURE[:1]), past)
        return (await sessions.get(session_id)).step_id

    assert tell(story) == 0
