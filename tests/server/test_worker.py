import asyncio
import random
import threading
from dataclasses import replace

import numpy as np
import pytest

from foreframe_engines import ModelFault as EngineFault
from foreframe_engines import NoisePlan, OnDeadline, Query, Reducer, Strategy
from foreframe_engines.sampling import sample
from foreframe_engines.testing import LeakyToyEngine, ToyRolloutEngine, toy_contract
from foreframe_server.errors import DeadlineExceeded, ModelFault, NotReady, Overloaded, Superseded, TooExpensive
from foreframe_server.metrics import Metrics
from foreframe_server.scheduler import Scheduler
from foreframe_server.worker import EngineWorker

PATIENCE_S = 20


def same_bytes(one, other):
    return (
        one.frames.tobytes() == other.frames.tobytes()
        and one.members.tobytes() == other.members.tobytes()
        and one.variance.tobytes() == other.variance.tobytes()
        and one.spread_per_frame == other.spread_per_frame
    )


def poisoned(query: Query) -> Query:
    return replace(query, context=np.full_like(query.context, 255))


def is_poisoned(row):
    return bool((row.conditioning.context_latents == 1).all())


def raise_on_poison(rows):
    if any(is_poisoned(row) for row in rows):
        raise FloatingPointError("poison")


class NanEngine(ToyRolloutEngine):
    """A toy whose poisoned rows become NaN."""

    def step(self, rows):
        stepped = super().step(rows)
        return [
            np.full_like(each, np.nan) if is_poisoned(row) else each for row, each in zip(rows, stepped, strict=True)
        ]


class FailingEngine(ToyRolloutEngine):
    """A toy that fails in one method once it is told to."""

    broken: str | None = None

    def condition(self, context_latents, states):
        if self.broken == "condition":
            raise EngineFault("broken")
        return super().condition(context_latents, states)

    def decode(self, latents, frame_indices):
        if self.broken == "decode":
            raise EngineFault("broken")
        return super().decode(latents, frame_indices)


class ThreadNotingEngine(ToyRolloutEngine):
    """A toy that notes which threads touch it."""

    def __init__(self):
        self.threads = set()
        super().__init__(step_hook=lambda rows: self.note())

    def note(self):
        self.threads.add(threading.current_thread().name)

    def encode(self, context):
        self.note()
        return super().encode(context)

    def decode(self, latents, frame_indices):
        self.note()
        return super().decode(latents, frame_indices)

    def close(self):
        self.note()
        super().close()


def random_mix(make_query, seed):
    rng = random.Random(seed)
    return [
        make_query(
            rng.randrange(2**53),
            size=rng.randint(1, 9),
            steps=rng.randint(1, 6),
            reducer=rng.choice(list(Reducer)),
            noise=rng.choice(list(NoisePlan)),
            frame_indices=tuple(sorted(rng.sample(range(1, 9), rng.randint(1, 8)))),
        )
        for _ in range(rng.randint(2, 8))
    ] + [make_query(rng.randrange(2**53), strategy=Strategy.POSTERIOR_MEAN)]


async def predict_in_a_mix(running, engine, gate, queries, call):
    async with running(engine) as core:
        gate.close()
        tickets = [core.worker.admit(query, call) for query in queries]
        gate.open()
        return [(await core.worker.wait(ticket)).prediction for ticket in tickets]


@pytest.mark.parametrize("seed", range(12))
def test_a_request_gives_the_same_bytes_alone_and_in_any_mix(running, make_query, make_call, gate, seed):
    queries = random_mix(make_query, seed)
    mixed = asyncio.run(predict_in_a_mix(running, ToyRolloutEngine(step_hook=gate), gate, queries, make_call()))
    reference = ToyRolloutEngine()
    assert all(same_bytes(each, sample(reference, query)) for each, query in zip(mixed, queries, strict=True))


def test_the_mix_catches_an_engine_whose_rows_touch(running, make_query, make_call, gate):
    queries = random_mix(make_query, 0)
    mixed = asyncio.run(predict_in_a_mix(running, LeakyToyEngine(step_hook=gate), gate, queries, make_call()))
    reference = LeakyToyEngine()
    assert not all(same_bytes(each, sample(reference, query)) for each, query in zip(mixed, queries, strict=True))


def test_jobs_share_forwards_at_different_timesteps(running, make_query, make_call, gate):
    async def scenario():
        async with running(ToyRolloutEngine(step_hook=gate)) as core:
            gate.close(after=1)
            first = core.worker.admit(make_query(1, steps=4), make_call())
            assert await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)
            second = core.worker.admit(make_query(2, size=3, steps=2), make_call())
            gate.open()
            results = [await core.worker.wait(first), await core.worker.wait(second)]
            assert core.engine.step_rows == [1, 1, 4, 4]
            assert [result.timings.step_batch_mean for result in results] == [2.5, 4.0]

    asyncio.run(scenario())


def test_context_is_encoded_once_and_conditioned_once_a_job(running, make_query, make_call):
    async def scenario():
        async with running() as core:
            for seed in (1, 2):
                await core.worker.submit(make_query(seed, content=7, size=20), make_call())
            assert core.engine.calls["encode"] == 1
            assert core.engine.calls["condition"] == 2
            assert core.engine.calls["decode"] == 2

    asyncio.run(scenario())


def test_only_the_frames_asked_for_come_back_with_every_stage_timed(running, make_query, make_call):
    async def scenario():
        async with running() as core:
            result = await core.worker.submit(make_query(1, size=2, frame_indices=(3, 5)), make_call())
            assert result.prediction.members.shape == (2, 2, 8, 8, 3)
            assert result.degraded is None
            timings = result.timings
            stages = (timings.queue, timings.encode, timings.condition, timings.denoise, timings.latent_decode)
            assert all(stage > 0 for stage in (*stages, timings.reduce))
            assert timings.step_batch_mean == 2

    asyncio.run(scenario())


def test_only_the_device_thread_touches_the_engine(running, make_query, make_call):
    engine = ThreadNotingEngine()

    async def scenario():
        async with running(engine) as core:
            await core.worker.submit(make_query(), make_call())

    asyncio.run(scenario())
    assert engine.threads == {"foreframe-device"}
    assert engine.is_closed


def test_a_cancelled_job_frees_the_queue_at_the_next_step_border(running, make_query, make_call, gate):
    async def scenario():
        async with running(ToyRolloutEngine(step_hook=gate)) as core:
            gate.close()
            task = asyncio.create_task(core.worker.submit(make_query(steps=50), make_call()))
            assert await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert core.worker.num_jobs == 0
            assert core.scheduler.num_pending_rows == 0
            gate.open()
            await core.worker.submit(make_query(1, steps=2), make_call())
            assert core.engine.step_rows == [1, 1, 1]
            assert core.count("foreframe_cancelled_total", stage="denoise") == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("engine", [ToyRolloutEngine(step_hook=raise_on_poison), NanEngine()], ids=["raises", "nan"])
def test_a_failing_request_takes_no_neighbour_with_it(running, make_query, make_call, engine):
    queries = [make_query(1, size=3), poisoned(make_query(2, size=2)), make_query(3)]

    async def scenario():
        async with running(engine) as core:
            tickets = [core.worker.admit(query, make_call()) for query in queries]
            results = await asyncio.gather(*map(core.worker.wait, tickets), return_exceptions=True)
            after = await core.worker.submit(queries[0], make_call())
            assert core.worker.is_ready
            return [*results, after]

    first, bad, third, after = asyncio.run(scenario())
    assert isinstance(bad, ModelFault)
    reference = ToyRolloutEngine()
    for result, query in ((first, queries[0]), (third, queries[2]), (after, queries[0])):
        assert same_bytes(result.prediction, sample(reference, query))


@pytest.mark.parametrize("stage", ["condition", "decode"])
def test_an_engine_that_fails_outside_a_step_fails_its_job_and_lives_on(running, make_query, make_call, stage):
    async def scenario():
        async with running(FailingEngine()) as core:
            core.engine.broken = stage
            with pytest.raises(ModelFault):
                await core.worker.submit(make_query(), make_call())
            core.engine.broken = None
            await core.worker.submit(make_query(), make_call())

    asyncio.run(scenario())


def tick(clock, rows):
    clock.now += 1.0


@pytest.mark.parametrize("on_deadline", [OnDeadline.DEGRADE, OnDeadline.PARTIAL])
def test_a_job_out_of_time_returns_its_whole_members(running, make_query, make_call, fake_clock, on_deadline):
    query = make_query(size=32, steps=2)

    async def scenario():
        engine = ToyRolloutEngine(step_hook=lambda rows: tick(fake_clock, rows))
        async with running(engine, clock=fake_clock) as core:
            call = make_call(deadline_s=fake_clock.now + 3, on_deadline=on_deadline)
            result = await core.worker.submit(query, call)
            assert core.engine.step_rows == [16, 16, 16]
            return result

    result = asyncio.run(scenario())
    whole = sample(ToyRolloutEngine(), query)
    assert result.prediction.members.tobytes() == whole.members[:16].tobytes()
    assert (result.degraded.members, result.degraded.steps, result.degraded.reason) == (16, 2, "deadline")
    assert result.prediction.ensemble.size == 32


@pytest.mark.parametrize(("on_deadline", "steps"), [(OnDeadline.FAIL, 2), (OnDeadline.DEGRADE, 9)])
def test_a_job_out_of_time_with_nothing_to_return_fails(running, make_query, make_call, fake_clock, on_deadline, steps):
    async def scenario():
        engine = ToyRolloutEngine(step_hook=lambda rows: tick(fake_clock, rows))
        async with running(engine, clock=fake_clock) as core:
            call = make_call(deadline_s=fake_clock.now + 3, on_deadline=on_deadline)
            with pytest.raises(DeadlineExceeded):
                await core.worker.submit(make_query(size=32, steps=steps), call)
            assert len(core.engine.step_rows) == 3

    asyncio.run(scenario())


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(running, make_query, make_call, gate):
    async def scenario():
        async with running(ToyRolloutEngine(step_hook=gate), max_pending_rows=10) as core:
            gate.close()
            admitted = core.worker.admit(make_query(1, size=2, steps=5), make_call())
            with pytest.raises(Overloaded) as refusal:
                core.worker.admit(make_query(2, steps=1), make_call())
            assert refusal.value.retry_after_ms >= 1
            with pytest.raises(TooExpensive):
                core.worker.admit(make_query(3, size=11, steps=1), make_call())
            gate.open()
            await core.worker.wait(admitted)
            await core.worker.submit(make_query(2, steps=1), make_call())

    asyncio.run(scenario())


def test_the_newest_of_a_stream_wins_whatever_the_order_of_arrival(running, make_query, make_call, gate):
    async def scenario():
        async with running(ToyRolloutEngine(step_hook=gate)) as core:
            gate.close()
            tickets = [
                core.worker.admit(make_query(seed, stream_id="arm"), make_call(received_s=received_s))
                for seed, received_s in ((1, 1.0), (3, 3.0), (2, 2.0))
            ]
            gate.open()
            oldest, newest, middle = await asyncio.gather(*map(core.worker.wait, tickets), return_exceptions=True)
            assert isinstance(oldest, Superseded)
            assert isinstance(middle, Superseded)
            assert newest.prediction.sampling.seed == 3
            assert core.count("foreframe_superseded_total") == 2

    asyncio.run(scenario())


def test_a_snapshot_shows_the_whole_members_and_the_job_goes_on(running, make_query, make_call, gate):
    async def scenario():
        async with running(ToyRolloutEngine(toy_contract(buckets=(1, 2, 4)), step_hook=gate)) as core:
            gate.close(after=1)
            query = make_query(size=12, steps=1)
            ticket = core.worker.admit(query, make_call())
            assert await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)
            snapshot = asyncio.create_task(core.worker.snapshot(ticket))
            asyncio.get_running_loop().call_soon(gate.open)
            early, whole = await snapshot, await core.worker.wait(ticket)
            assert early.prediction.num_members == early.degraded.members
            assert 4 <= early.prediction.num_members < 12
            assert whole.prediction.num_members == 12
            assert (
                early.prediction.members.tobytes() == whole.prediction.members[: early.prediction.num_members].tobytes()
            )

    asyncio.run(scenario())


def test_warm_up_steps_every_bucket_and_only_then_is_the_worker_ready(running, make_query, make_call):
    async def scenario():
        engine = ToyRolloutEngine()
        worker = EngineWorker(engine, Scheduler(max_rows=16, max_pending_rows=64), Metrics())
        worker.start()
        assert not worker.is_ready
        with pytest.raises(NotReady):
            worker.admit(make_query(), make_call())
        await worker.warm_up()
        assert worker.is_ready
        assert engine.step_rows == [1, 2, 4, 8, 16, 16]
        await worker.stop(0.0)
        assert not worker.is_ready
        with pytest.raises(NotReady):
            await worker.warm_up()

    asyncio.run(scenario())


def test_stop_lets_admitted_jobs_end_and_takes_no_more(running, make_query, make_call, gate):
    async def scenario():
        async with running(ToyRolloutEngine(step_hook=gate)) as core:
            gate.close()
            ticket = core.worker.admit(make_query(size=4), make_call())
            stop = asyncio.create_task(core.worker.stop(PATIENCE_S))
            assert await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)
            with pytest.raises(NotReady):
                core.worker.admit(make_query(1), make_call())
            gate.open()
            assert (await core.worker.wait(ticket)).prediction.num_members == 4
            await stop
            assert core.engine.is_closed

    asyncio.run(scenario())


def test_stop_fails_what_does_not_end_in_time(running, make_query, make_call, gate):
    async def scenario():
        async with running(ToyRolloutEngine(step_hook=gate)) as core:
            gate.close()
            ticket = core.worker.admit(make_query(steps=50), make_call())
            assert await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)
            stop = asyncio.create_task(core.worker.stop(0.01))
            with pytest.raises(NotReady):
                await core.worker.wait(ticket)
            gate.open()
            await stop
            assert core.engine.is_closed
            assert len(core.engine.step_rows) == 1

    asyncio.run(scenario())
