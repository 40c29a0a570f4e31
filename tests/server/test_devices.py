"""A model in processes of its own: opened there, answered with the same bytes, and none is left behind."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from foreframe_engines import EngineError, EnsembleSpec, Query, Sampling, Strategy
from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine
from foreframe_server.devices import open_devices, start_devices
from foreframe_server.metrics import Metrics
from foreframe_server.opening import OpenedEngines, given, open_bundle
from foreframe_server.pool import WorkerPool
from foreframe_server.quotas import charge_nobody
from foreframe_server.reader_pool import ReaderPool
from foreframe_server.settings import EngineSettings, SchedulerSettings
from foreframe_server.worker import EngineWorker

LIMITS = SchedulerSettings(max_rows=4)


@contextlib.asynccontextmanager
async def running_devices(open_engines, processes):
    metrics = Metrics()
    opened = await open_devices(open_engines, EngineSettings(processes=processes, num_threads=1), metrics)
    devices = start_devices(opened, LIMITS, metrics, charge_nobody)
    try:
        if devices.workers is not None:
            await devices.workers.warm_up()
        await devices.start_reading(LIMITS, metrics, charge_nobody)
        yield devices, metrics
    finally:
        await devices.stop(0.0)


def bundle_query(contract):
    shape = (contract.context_frames, contract.camera.height, contract.camera.width, 3)
    context = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    states = np.tile(contract.state.mean.astype(np.float32), (contract.context_frames + contract.horizon, 1))
    sampling = Sampling(Strategy.SAMPLE, 4, 1)
    return Query(contract.model, context, states, (1, contract.horizon), sampling, EnsembleSpec(4))


def children():
    """Every child of any thread."""
    return {int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}


async def answer(devices, make_call):
    return await devices.workers.submit(bundle_query(devices.opened.engines[0].contract), make_call())


def test_two_processes_give_this_processs_bytes_also_when_one_is_killed(make_call):
    async def scenario():
        async with running_devices(open_bundle, 0) as (devices, _):
            assert isinstance(devices.workers, EngineWorker)
            expected = await answer(devices, make_call)
        before = children()
        async with running_devices(open_bundle, 2) as (devices, metrics):
            assert isinstance(devices.workers, WorkerPool)
            assert isinstance(devices.readers, ReaderPool)
            running = sorted(children() - before)
            assert len(running) == 2
            asked = [asyncio.create_task(answer(devices, make_call)) for _ in range(3)]
            os.kill(running[0], signal.SIGKILL)
            for result in await asyncio.gather(*asked):
                assert all(map(np.array_equal, result.members, expected.members))
                assert len(result.members) == 4
        assert children() <= before
        assert metrics.registry.get_sample_value("foreframe_worker_restarts_total", {"reason": "crash"}) >= 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "open_engines",
    [given(ToyRolloutEngine()), given(None, ToyLikelihoodEngine()), lambda _: OpenedEngines("toy", ToyRolloutEngine())],
    ids=["rollout", "likelihood", "nameless"],
)
def test_engines_that_no_other_process_could_open_stay_here(open_engines):
    async def scenario():
        before = children()
        async with running_devices(open_engines, 3) as (devices, _):
            assert len(devices.opened.engines) == len(devices.threads) == 1
            assert children() == before
            assert devices.opened.is_up()

    asyncio.run(scenario())


def test_a_model_that_cannot_be_opened_leaves_no_process(tmp_path):
    async def scenario():
        before = children()
        settings = EngineSettings(processes=1, bundle=tmp_path)
        with pytest.raises(EngineError):
            await open_devices(open_bundle, settings, Metrics())
        assert children() == before

    asyncio.run(scenario())
