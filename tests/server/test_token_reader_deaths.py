"""What becomes of reads when engines die, and how several devices share them."""

import asyncio
import contextlib

import numpy as np
import pytest
from mortal_toys import POISON, Fate, MortalReader

from foreframe_engines.testing import ToyLikelihoodEngine
from foreframe_server.device import DeviceThread
from foreframe_server.errors import NotReady, WorkerCrashed
from foreframe_server.metrics import Metrics
from foreframe_server.quarantine import Quarantine
from foreframe_server.reader_pool import ReaderPool
from foreframe_server.token_reader import TokenReader


@contextlib.asynccontextmanager
async def running_readers(*engines):
    quarantine, metrics = Quarantine(), Metrics()
    threads = [DeviceThread(metrics) for _ in engines]
    readers = [
        TokenReader(engine, thread, metrics, quarantine=quarantine)
        for engine, thread in zip(engines, threads, strict=True)
    ]
    for thread in threads:
        thread.start()
    pool = ReaderPool(readers)
    await pool.warm_up()
    try:
        yield pool
    finally:
        await pool.stop(0.0)
        for thread in threads:
            await thread.join()


async def read_context(readers, clip, call):
    return await readers.context(clip.frames, clip.states, call)


def same_context(one, other):
    pairs = zip((*one.history.keys, *one.history.values), (*other.history.keys, *other.history.values), strict=True)
    return np.array_equal(one.last_ids, other.last_ids) and all(np.array_equal(*pair) for pair in pairs)


@pytest.mark.parametrize("doomed", range(4))
def test_a_death_in_any_read_changes_no_byte(make_clip, make_call, doomed):
    async def scenario():
        fate = Fate()
        async with running_readers(MortalReader(fate)) as readers:
            expected = await read_context(readers, make_clip(), make_call())
            fate.num_calls, fate.doomed = 0, {doomed}
            assert same_context(await read_context(readers, make_clip(), make_call()), expected)
            assert len(fate.deaths) == 1

    asyncio.run(scenario())


def test_frames_that_kill_are_refused_after_two_deaths_on_every_device(make_clip, make_call):
    async def scenario():
        fate, clip = Fate(), make_clip()
        async with running_readers(MortalReader(fate), MortalReader(fate)) as readers:
            deadly = make_clip(1)
            deadly.frames[:] = POISON
            for _ in range(10):
                with pytest.raises(WorkerCrashed):
                    await read_context(readers, deadly, make_call())
            assert fate.deaths == ["tokenize"] * 2
            await read_context(readers, clip, make_call())

    asyncio.run(scenario())


def test_jobs_go_where_the_fewest_reads_wait(make_call):
    async def scenario():
        engines = [ToyLikelihoodEngine() for _ in range(2)]
        async with running_readers(*engines) as readers:
            with readers.admitting(100, make_call()) as one, readers.admitting(1, make_call()) as other:
                assert one._reader is not other._reader
                with readers.admitting(1, make_call()) as third:
                    assert third._reader is other._reader
            assert readers.num_grids(4) == 4
            assert readers.is_ready

    asyncio.run(scenario())


def test_a_pool_that_has_stopped_reads_nothing(make_clip, make_call):
    async def scenario():
        async with running_readers(ToyLikelihoodEngine()) as readers:
            pass
        assert not readers.is_ready
        with pytest.raises(NotReady):
            await read_context(readers, make_clip(), make_call())

    asyncio.run(scenario())
