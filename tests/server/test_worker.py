import asyncio
import random
import threading
from dataclasses import replace

import numpy as np
import pytest

from foreframe_engines import ModelFault as EngineFault
from foreframe_engines import NoisePlan, OnDeadline, Priority, Query, Reducer, Strategy
from foreframe_engines.ensemble import summarise
from foreframe_engines.sampling import sample
from foreframe_engines.testing import LeakyToyEngine, ToyRolloutEngine, toy_contract
from foreframe_server.cost_model import CostModel
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


def predicted(result, query):
    return summarise(np.stack(result.members), query.frame_indices, query.sampling, query.ensemble)


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
        results = [await core.worker.wait(ticket) for ticket in tickets]
        return [predicted(result, query) for result, query in zip(results, queries, strict=True)]


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
            assert core.engine.calls["decode"] >= 4

    asyncio.run(scenario())


def test_only_the_frames_asked_for_come_back_with_every_stage_timed(running, make_query, make_call):
    async def scenario():
        async with running() as core:
            result = await core.worker.submit(make_query(1, size=2, frame_indices=(3, 5)), make_call())
            assert np.stack(result.members).shape == (2, 2, 8, 8, 3)
            assert (result.steps, result.is_estimate) == (4, False)
            timings = result.timings
            stages = (timings.queue, timings.encode, timings.condition, timings.denoise, timings.latent_decode)
            assert all(stage > 0 for stage in stages)
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
        assert same_bytes(predicted(result, query), sample(reference, query))


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
            assert core.engine.step_rows == [16, 16]  # a third would be late
            return result

    result = asyncio.run(scenario())
    whole = sample(ToyRolloutEngine(), query)
    assert np.stack(result.members).tobytes() == whole.members[:16].tobytes()
    assert (len(result.latents), result.steps, result.is_estimate) == (16, 2, False)


def test_a_job_without_time_for_its_steps_takes_fewer(running, make_query, make_call, fake_clock):
    query = make_query(size=4, steps=9)

    async def scenario():
        engine = ToyRolloutEngine(step_hook=lambda rows: tick(fake_clock, rows))
        async with running(engine, clock=fake_clock) as core:
            return await core.worker.submit(query, make_call(deadline_s=fake_clock.now + 3.5))

    result = asyncio.run(scenario())
    shorter = replace(query, sampling=replace(query.sampling, steps=3))
    assert (result.steps, result.is_estimate) == (3, False)
    assert same_bytes(predicted(result, shorter), sample(ToyRolloutEngine(), shorter))


def test_a_job_cut_before_a_member_is_whole_returns_where_its_first_was_heading(
    running, make_query, make_call, fake_clock
):
    query = make_query(size=4, steps=4)
    pace_s = [1.0]

    def take(rows):
        fake_clock.now += pace_s[0]

    async def scenario():
        async with running(ToyRolloutEngine(step_hook=take), clock=fake_clock) as core:
            pace_s[0] = 5.0
            return await core.worker.submit(query, make_call(deadline_s=fake_clock.now + 4.5))

    result = asyncio.run(scenario())
    assert (result.steps, result.is_estimate, len(result.members)) == (1, True, 1)
    mean = sample(ToyRolloutEngine(), replace(make_query(strategy=Strategy.POSTERIOR_MEAN)))
    assert np.abs(result.members[0].astype(int) - mean.members[0]).max() <= 1


@pytest.mark.parametrize("need", [(OnDeadline.FAIL, 2), (OnDeadline.PARTIAL, 4)], ids=["fail", "partial"])
@pytest.mark.parametrize("pace", [(0.79, 3), (1.0, 1), (5.0, 1)], ids=["a little late", "as predicted", "stalled"])
def test_a_job_that_must_be_whole_fails_as_soon_as_it_cannot_be(running, make_query, make_call, fake_clock, need, pace):
    (on_deadline, steps), (forward_s, num_forwards), taken_s = need, pace, [1.0]

    def take(rows):
        fake_clock.now += taken_s[0]

    async def scenario():
        async with running(ToyRolloutEngine(step_hook=take), clock=fake_clock) as core:
            taken_s[0] = forward_s
            # Predicted are four forwards of a second: three seconds leave some hope, at first.
            call = make_call(deadline_s=fake_clock.now + 3, on_deadline=on_deadline)
            with pytest.raises(DeadlineExceeded):
                await core.worker.submit(make_query(size=32, steps=steps), call)
            assert len(core.engine.step_rows) == num_forwards

    asyncio.run(scenario())


async def plan_beside(running, make_query, make_call, gate, fake_clock, other_deadline_s):
    """Return how many steps a job plans whose 8.6 s are shared with one of 4 steps, at a second a forward."""

    def take(rows):
        gate(rows)
        fake_clock.now += 1.0

    engine = ToyRolloutEngine(toy_contract(buckets=(1, 2)), step_hook=take)
    async with running(engine, clock=fake_clock) as core:
        gate.close()
        blocker = core.worker.admit(make_query(steps=1), make_call())
        assert await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)
        begins_s = fake_clock.now + 1
        terms = make_call(deadline_s=begins_s + other_deadline_s, on_deadline=OnDeadline.PARTIAL)
        other = core.worker.admit(make_query(1, steps=4), terms)
        mine = core.worker.admit(make_query(2, steps=9), make_call(deadline_s=begins_s + 8.6))
        gate.open()
        await core.worker.wait(blocker)
        assert (await core.worker.wait(other)).steps == 4
        result = await core.worker.wait(mine)
        assert not result.is_estimate
        return result.steps


def test_a_job_plans_fewer_steps_beside_one_that_is_due_before_it(running, make_query, make_call, gate, fake_clock):
    # The other needs two seconds of the device: each of its 4 steps has half a forward.
    for other_deadline_s, steps in ((6.0, 6), (9.0, 8)):
        plan = plan_beside(running, make_query, make_call, gate, fake_clock, other_deadline_s)
        assert asyncio.run(plan) == steps


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(running, make_query, make_call, gate):
    async def scenario():
        async with running(ToyRolloutEngine(step_hook=gate), max_pending_s=10.5, row_s=1.0) as core:
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
            assert same_bytes(predicted(newest, make_query(3)), sample(ToyRolloutEngine(), make_query(3)))
            assert core.count("foreframe_superseded_total") == 2

    asyncio.run(scenario())


class Notes:
    """A listener that writes everything down."""

    wants_estimate = True

    def __init__(self):
        self.members, self.estimates = [], []

    def on_members(self, frames):
        assert frames
        self.members += frames

    def on_estimate(self, frames):
        self.estimates.append((frames, len(self.members)))


def test_a_listener_hears_of_the_first_estimate_and_of_every_member_in_order(running, make_query, make_call):
    query, notes = make_query(size=12, steps=3), Notes()

    async def scenario():
        async with running(ToyRolloutEngine(toy_contract(buckets=(1, 2, 4)))) as core:
            ticket = core.worker.admit(query, make_call(), listener=notes)
            result = await core.worker.wait(ticket)
            assert core.engine.step_rows == [4] * 9
            return result

    result = asyncio.run(scenario())
    whole = sample(ToyRolloutEngine(), query)
    assert np.stack(notes.members).tobytes() == np.stack(result.members).tobytes() == whole.members.tobytes()
    ((estimate, num_members_before),) = notes.estimates
    assert num_members_before == 0
    mean = sample(ToyRolloutEngine(), make_query(strategy=Strategy.POSTERIOR_MEAN))
    assert np.abs(estimate.astype(int) - mean.members[0]).max() <= 1


class OrderNotingEngine(ToyRolloutEngine):
    """A toy that notes in which order forwards and decodings come; `hook` runs at the start of each decoding."""

    def __init__(self, hook=lambda: None):
        self.order, self._hook = [], hook
        super().__init__(toy_contract(buckets=(1, 2)), step_hook=lambda rows: self.order.append("step"))

    def decode(self, latents, frame_indices):
        self.order.append("decode")
        self._hook()
        return super().decode(latents, frame_indices)


class Door:
    """Holds whoever comes in once it is closed."""

    def __init__(self):
        self.is_entered, self.is_open, self.is_closed = threading.Event(), threading.Event(), False

    def __call__(self):
        if self.is_closed:
            self.is_entered.set()
            assert self.is_open.wait(PATIENCE_S)


def test_a_controller_steps_between_the_decodings_of_a_bulk_job(running, make_query, make_call, fake_clock):
    door = Door()

    async def scenario():
        async with running(OrderNotingEngine(door), clock=fake_clock) as core:
            core.engine.order.clear()
            door.is_closed = True
            bulk = core.worker.admit(make_query(1, size=2, steps=1, priority=Priority.BULK), make_call())
            assert await asyncio.to_thread(door.is_entered.wait, PATIENCE_S)  # the first of two members
            controller = core.worker.admit(make_query(2, steps=2), make_call())
            door.is_closed = False
            door.is_open.set()
            results = [await core.worker.wait(controller), await core.worker.wait(bulk)]
            assert core.engine.order == ["step", "decode", "step", "step", "decode", "decode"]
            return results

    controller, bulk = asyncio.run(scenario())
    assert (len(controller.members), len(bulk.members)) == (1, 2)


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_what_is_whole_is_decoded_before_the_worker_stops_unless_nobody_waits(
    running, make_query, make_call, fake_clock, is_cancelled
):
    door = Door()

    async def scenario():
        async with running(OrderNotingEngine(door), clock=fake_clock) as core:
            core.engine.order.clear()
            door.is_closed = True
            waiting = asyncio.create_task(core.worker.submit(make_query(size=2, steps=1), make_call()))
            assert await asyncio.to_thread(door.is_entered.wait, PATIENCE_S)
            if is_cancelled:
                waiting.cancel()
                await asyncio.sleep(0)
            stop = asyncio.create_task(core.worker.stop(0.01))
            await asyncio.sleep(0)
            door.is_open.set()
            await stop
            assert core.engine.order.count("decode") == (1 if is_cancelled else 2)
            return await asyncio.gather(waiting, return_exceptions=True)

    (result,) = asyncio.run(scenario())
    assert isinstance(result, asyncio.CancelledError) if is_cancelled else len(result.members) == 2


def test_a_job_whose_second_decoding_fails_fails_alone(running, make_query, make_call, fake_clock):
    async def scenario():
        async with running(FailingEngine(toy_contract(buckets=(1, 2))), clock=fake_clock) as core:
            door, decode = Door(), core.engine.decode

            def decode_once(latents, frame_indices):
                door()
                frames = decode(latents, frame_indices)
                core.engine.broken = "decode"
                return frames

            core.engine.decode, door.is_closed = decode_once, True
            ticket = core.worker.admit(make_query(size=2, steps=1), make_call())
            assert await asyncio.to_thread(door.is_entered.wait, PATIENCE_S)
            door.is_open.set()
            with pytest.raises(ModelFault):
                await core.worker.wait(ticket)
            core.engine.decode, core.engine.broken = decode, None
            assert len((await core.worker.submit(make_query(size=2), make_call())).members) == 2

    asyncio.run(scenario())


def test_a_job_grows_while_it_runs_and_starts_where_known_members_end(running, make_query, make_call, gate):
    async def scenario():
        async with running(ToyRolloutEngine(step_hook=gate)) as core:
            gate.close()
            ticket = core.worker.admit(make_query(size=3, steps=2), make_call(), first_member=2)
            assert await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)
            assert core.worker.grow(ticket, 6)
            gate.open()
            result = await core.worker.wait(ticket)
            assert not core.worker.grow(ticket, 9)
            return result

    result = asyncio.run(scenario())
    whole = sample(ToyRolloutEngine(), make_query(size=6, steps=2))
    assert np.stack(result.members).tobytes() == whole.members[2:].tobytes()


def test_warm_up_steps_every_bucket_and_only_then_is_the_worker_ready(running, make_query, make_call):
    async def scenario():
        engine = ToyRolloutEngine()
        scheduler = Scheduler(CostModel(engine.contract.buckets), max_pending_s=64.0)
        worker = EngineWorker(engine, scheduler, Metrics())
        worker.start()
        assert not worker.is_ready
        with pytest.raises(NotReady):
            worker.admit(make_query(), make_call())
        await worker.warm_up()
        assert worker.is_ready
        assert set(engine.step_rows) >= {1, 2, 4, 8, 16}
        assert all(scheduler.cost.step_s(rows) > 0 for rows in range(1, scheduler.cost.max_rows + 1))
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
            assert len((await core.worker.wait(ticket)).members) == 4
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
