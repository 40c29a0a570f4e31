"""Workers on replicas: what one worker here gives, whatever is lost on the way."""

import asyncio
import contextlib
import time
from dataclasses import replace

import numpy as np
import pytest
from local_replicas import LocalLink, open_replica

from foreframe_engines import EnsembleSpec, OnDeadline, Query, Sampling, Strategy
from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine, toy_contract, toy_tokens
from foreframe_server.calls import Call
from foreframe_server.devices import start_devices
from foreframe_server.errors import DeadlineExceeded, NotReady, Superseded, WorkerCrashed
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
