"""Workers on replicas: what one worker here gives, whatever is lost on the way."""

import asyncio
import contextlib
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from local_replicas import LocalLink, open_replica

from foreframe_engines import EnsembleSpec, OnDeadline, Query, Sampling, Strategy
from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine, toy_contract, toy_tokens
from foreframe_server.calls import Call
from foreframe_server.devices import start_devices
from foreframe_server.errors import DeadlineExceeded, ModelFault, NotReady, ServiceError, Superseded, WorkerCrashed
from foreframe_server.metrics import Metrics
from foreframe_server.opening import given
from foreframe_server.ray.devices import RemoteDevices
from foreframe_server.settings import EngineSettings, SchedulerSettings

CONTRACT = toy_contract(tokens=toy_tokens())
PATIENCE_S = 20


class Notes:
    """A listener that writes down what it hears."""

    wants_estimate = True

    def __init__(self):
        self.estimates, self.members = [], []

    def on_estimate(self, frames):
        self.estimates.append(frames)

    def on_members(self, frames):
        self.members += frames


def make_query(seed=1, size=8, steps=2, stream_id=None):
    rng = np.random.default_rng(seed)
    height, width, rows = CONTRACT.camera.height, CONTRACT.camera.width, CONTRACT.context_frames + CONTRACT.horizon
    return Query(
        model=CONTRACT.model,
        context=rng.integers(0, 256, (CONTRACT.context_frames, height, width, 3), np.uint8),
        states=rng.standard_normal((rows, CONTRACT.state.dim)).astype(np.float32),
        frame_indices=(1, 3),
        sampling=Sampling(Strategy.SAMPLE, steps, seed),
        ensemble=EnsembleSpec(size),
        stream_id=stream_id,
    )


def make_call(deadline_s=None, on_deadline=OnDeadline.DEGRADE, received_s=None):
    now = time.monotonic()
    return Call(
        "", now if received_s is None else received_s, None if deadline_s is None else now + deadline_s, on_deadline
    )


@contextlib.asynccontextmanager
async def running(num_replicas, max_replicas=2, hooks=None):
    """Run a model on replicas of this process; gives the link, its devices and their workers."""
    replicas = []
    for number in range(num_replicas):
        hook = None if hooks is None else hooks[number]
        engines = given(ToyRolloutEngine(CONTRACT, step_hook=hook), ToyLikelihoodEngine(CONTRACT))
        replicas.append(await open_replica(f"r{number}", engines))
    link = LocalLink(replicas, asyncio.get_running_loop())
    opened = await RemoteDevices(link, max_replicas)(given(None), EngineSettings(), Metrics())
    devices = start_devices(opened, SchedulerSettings(), Metrics(), lambda key, seconds: None)
    await devices.workers.warm_up()
    try:
        yield link, devices, devices.workers
    finally:
        await devices.stop(1.0)
        for replica in replicas:
            await replica.model.stop(1.0)


def tell(test):
    async def run():
        async with asyncio.timeout(PATIENCE_S):
            return await test()

    return asyncio.run(run())


def alone(query):
    """Compute a query's members on one worker here."""

    async def run():
        replica = await open_replica("alone", given(ToyRolloutEngine(CONTRACT)))
        try:
            return await replica.model.devices.workers.submit(query, make_call())
        finally:
            await replica.model.stop(1.0)

    return tell(run)


def same(one, other):
    return (
        one.steps == other.steps
        and np.array_equal(one.members, other.members)
        and np.array_equal(one.latents, other.latents)
    )


@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize("num_replicas", [1, 2])
def test_members_are_those_of_one_worker(size, num_replicas):
    query, notes = make_query(size=size), Notes()

    async def ask():
        async with running(num_replicas) as (link, _, workers):
            ticket = workers.admit(query, make_call(), listener=notes)
            result = await workers.wait(ticket)
            return result, [replica.calls["run"] for replica in link.replicas.values()]

    result, calls = tell(ask)
    expected = alone(query)
    assert same(result, expected)
    assert np.array_equal(notes.members, expected.members[: len(notes.members)])
    assert not same(result, alone(make_query(seed=2, size=size)))
    assert sum(call > 0 for call in calls) == min(num_replicas, (size + 1) // 2)


class Gate:
    """A step hook that holds a device until it is opened."""

    def __init__(self):
        self.is_open, self.is_entered = threading.Event(), threading.Event()
        self.is_open.set()

    def close(self):
        self.is_open.clear()
        self.is_entered.clear()

    def __call__(self, rows):
        self.is_entered.set()
        assert self.is_open.wait(PATIENCE_S)


@pytest.mark.parametrize("when", range(6))
def test_a_replica_that_dies_at_any_moment_changes_no_byte(when):
    query, notes = make_query(size=8), Notes()

    async def ask():
        async with running(2) as (link, _, workers):
            heard = []

            def kill(replica):
                heard.append(replica)
                if len(heard) == when:
                    replica.kill()

            link.on_news = kill
            if when == 0:
                link.replicas["r1"].kill()
            return await workers.submit(query, make_call()), await workers.wait(
                workers.admit(query, make_call(), listener=notes)
            )

    expected = alone(query)
    for result in tell(ask):
        assert same(result, expected)
    assert np.array_equal(notes.members, expected.members[: len(notes.members)])


def test_a_job_costs_no_more_than_two_replicas():
    async def ask():
        async with running(3, max_replicas=3) as (link, _, workers):
            link.on_news = lambda replica: replica.kill()
            with pytest.raises(WorkerCrashed):
                await workers.wait(workers.admit(make_query(size=2), make_call(), listener=Notes()))
            return sum(replica.is_dead for replica in link.replicas.values())

    assert tell(ask) == 2


def test_without_any_replica_calls_are_refused_and_a_deadline_is_kept():
    async def ask():
        async with running(1) as (link, devices, workers):
            ticket = workers.admit(make_query(), make_call(deadline_s=0.3))
            link.replicas["r0"].kill()
            with pytest.raises((DeadlineExceeded, WorkerCrashed)):
                await workers.wait(ticket)
            with pytest.raises(NotReady):
                workers.admit(make_query(), make_call())
            assert not devices.readers

    tell(ask)


def test_a_cancelled_wait_ends_the_job_on_its_replica():
    gate = Gate()

    async def ask():
        async with running(1, hooks=[gate]) as (link, _, workers):
            gate.close()
            worker = link.replicas["r0"].model.devices.workers
            waiting = asyncio.create_task(workers.submit(make_query(), make_call()))
            await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            gate.is_open.set()
            while worker.num_jobs or workers.num_jobs:  # noqa: ASYNC110 - they end in threads and tasks of their own
                await asyncio.sleep(0)

    tell(ask)


def test_a_deadline_ends_a_job_with_what_there_is():
    gate = Gate()

    async def ask():
        async with running(1, hooks=[gate]) as (_, __, workers):
            gate.close()
            ticket = workers.admit(make_query(size=2), make_call(0.3, OnDeadline.FAIL))
            await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)
            threading.Timer(0.4, gate.is_open.set).start()
            with pytest.raises(DeadlineExceeded):
                await workers.wait(ticket)

    tell(ask)


def test_an_extended_deadline_and_a_grown_ensemble_reach_the_replica():
    gate, query = Gate(), make_query(size=4)

    async def ask():
        async with running(2, hooks=[gate, None]) as (_, __, workers):
            gate.close()
            ticket = workers.admit(query, make_call(1.5, OnDeadline.FAIL))
            await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)
            workers.extend(ticket, None, OnDeadline.PARTIAL)
            assert workers.grow(ticket, 8)
            threading.Timer(2.0, gate.is_open.set).start()
            result = await workers.wait(ticket)
            assert not workers.grow(ticket, 9)
            return result

    assert same(tell(ask), alone(make_query(size=8)))


def test_a_glance_shows_where_the_first_member_is_heading():
    gate = Gate()

    async def ask():
        async with running(1, hooks=[gate]) as (_, __, workers):
            gate.close()
            ticket = workers.admit(make_query(size=1, steps=3), make_call())
            await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)
            glance = asyncio.create_task(workers.estimate(ticket))
            gate.is_open.set()
            await workers.wait(ticket)
            return await glance

    shown = tell(ask)
    assert shown is None or (shown.is_estimate and len(shown.members) == 1)


def test_a_newer_request_of_a_stream_replaces_the_older_one():
    gate = Gate()

    async def ask():
        async with running(2, hooks=[gate, gate]) as (_, __, workers):
            gate.close()
            older = workers.admit(make_query(stream_id="arm"), make_call())
            await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)
            newer = workers.admit(make_query(seed=2, stream_id="arm"), make_call())
            gate.is_open.set()
            with pytest.raises(Superseded):
                await workers.wait(older)
            return await workers.wait(newer)

    assert same(tell(ask), alone(make_query(seed=2)))


def test_what_a_replica_refuses_is_the_same_error_here():
    query = replace(make_query(), context=np.zeros((1, 1, 1, 3), np.uint8))

    async def ask():
        async with running(1) as (_, __, workers):
            with pytest.raises(ServiceError) as here:
                await workers.submit(query, make_call())
            return here.value

    assert isinstance(tell(ask), ModelFault)


def test_contexts_are_encoded_and_tokens_read_on_replicas():
    frames, states = make_query().context, np.zeros((CONTRACT.context_frames, CONTRACT.state.dim), np.float32)
    window = CONTRACT.tokens.window_frames
    whole = len(frames) // window * window

    async def ask(num_replicas):
        async with running(num_replicas) as (link, devices, workers):
            readers = await devices.start_reading(SchedulerSettings(), Metrics(), lambda key, seconds: None)
            first = await readers.context(frames[:whole], states[:whole], make_call())
            if num_replicas == 2:
                link.replicas["r0"].kill()
            again = await readers.context(frames[:whole], states[:whole], make_call())
            return await workers.encode(frames), first, again

    engine, ids = ToyRolloutEngine(CONTRACT), ToyLikelihoodEngine(CONTRACT).tokenize(frames[:whole])
    for num_replicas in (1, 2):
        latents, first, again = tell(lambda num=num_replicas: ask(num))
        assert np.array_equal(latents, engine.encode(frames))
        for context in (first, again):
            assert np.array_equal(context.last_ids, ids[-1])
            assert context.num_grids == len(ids)
