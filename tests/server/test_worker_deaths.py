"""What becomes of jobs when engines die: the same bytes, or one typed refusal, and nobody pays for another's fault."""

import asyncio
import contextlib
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from mortal_toys import POISON, Fate, MortalEngine

from foreframe_engines import OnDeadline
from foreframe_engines.sampling import initial_member, step_all
from foreframe_engines.schedule import get_schedule, num_steps
from foreframe_engines.testing import ToyRolloutEngine
from foreframe_engines.types import StepRow
from foreframe_server.cost_model import CostModel
from foreframe_server.errors import DeadlineExceeded, NotReady, WorkerCrashed
from foreframe_server.metrics import Metrics
from foreframe_server.pool import WorkerPool
from foreframe_server.quarantine import Quarantine
from foreframe_server.scheduler import Scheduler
from foreframe_server.worker import EngineWorker

STAGES = ("encode", "condition", "draw", "step", "decode")
NUM_SCENARIOS = 500
PATIENCE_S = 20


def poisoned(query):
    return replace(query, context=np.full_like(query.context, POISON))


def build_worker(engine, quarantine):
    buckets = engine.contract.buckets
    scheduler = Scheduler(CostModel(buckets, max_rows=buckets[-1]), max_pending_s=600.0)
    return EngineWorker(engine, scheduler, Metrics(), quarantine=quarantine)


@contextlib.asynccontextmanager
async def running_pool(engines, clock=None):
    """Workers of engines, joined where there are several, and their fate from now on."""
    quarantine = Quarantine() if clock is None else Quarantine(clock)
    workers = [build_worker(engine, quarantine) for engine in engines]
    pool = workers[0] if len(workers) == 1 else WorkerPool(workers, workers[0].clock)
    for worker in workers:
        worker.start()
    await pool.warm_up()
    engines[0].fate.num_calls = 0
    try:
        yield pool
    finally:
        await pool.stop(0.0)


def expected(query):
    """The members that one engine which never dies gives."""
    engine = ToyRolloutEngine()
    conditioning = engine.condition(engine.encode(query.context), query.states)
    latents = [initial_member(engine, conditioning, query, member) for member in range(query.ensemble.size)]
    times = get_schedule(num_steps(query.sampling), engine.contract.sampler.shift)
    for index in range(len(times) - 1):
        rows = [StepRow(each, times[index], times[index + 1], conditioning, times[:index]) for each in latents]
        latents = step_all(engine, rows)
    return engine.decode(latents, query.frame_indices)


def is_whole(result, query):
    return np.array_equal(np.stack(result.members), expected(query)) and len(result.latents) == query.ensemble.size


@pytest.mark.parametrize("stage", STAGES)
def test_a_death_in_any_stage_changes_no_byte(make_query, make_call, stage):
    query, doomed_once = make_query(1, size=3), []

    class DiesOnce(Fate):
        def strike(self, kind, *, is_poisoned=False):
            super().strike(kind, is_poisoned=kind == stage and self.num_calls >= 0 and self.is_armed())

        def is_armed(self):
            is_first = doomed_once == ["armed"]
            if is_first:
                doomed_once.append("struck")
            return is_first

    async def scenario():
        engine = MortalEngine(DiesOnce(), deadly=())
        async with running_pool([engine]) as pool:
            doomed_once.append("armed")
            result = await pool.submit(query, make_call())
            assert engine.fate.deaths == [stage]
            assert is_whole(result, query)

    asyncio.run(scenario())


@pytest.mark.parametrize("stage", STAGES)
def test_a_request_that_kills_is_refused_after_two_deaths_and_then_costs_none(make_query, make_call, stage):
    async def scenario():
        engine = MortalEngine(deadly=(stage,))
        async with running_pool([engine]) as pool:
            for _ in range(20):
                with pytest.raises(WorkerCrashed):
                    await pool.submit(poisoned(make_query(1, size=3)), make_call())
            assert engine.fate.deaths == [stage] * 2
            assert is_whole(await pool.submit(make_query(2), make_call()), make_query(2))
            assert pool.num_jobs == 0

    asyncio.run(scenario())


def test_neighbours_of_a_request_that_kills_are_answered(running, make_query, make_call, gate):
    engine = MortalEngine(step_hook=gate)
    queries = [make_query(1, size=2), poisoned(make_query(2)), make_query(3, size=3)]

    async def scenario():
        async with running(engine) as core:
            gate.close()
            blocker = core.worker.admit(make_query(9, steps=1), make_call())
            tickets = [core.worker.admit(query, make_call()) for query in queries]
            gate.open()
            await core.worker.wait(blocker)
            results = await asyncio.gather(*map(core.worker.wait, tickets), return_exceptions=True)
            assert isinstance(results[1], WorkerCrashed)
            assert all(is_whole(results[place], queries[place]) for place in (0, 2))
            assert len(engine.fate.deaths) == 2

    asyncio.run(scenario())


def test_many_equal_requests_at_once_cost_two_engines_together(make_query, make_call):
    async def scenario():
        engine = MortalEngine()
        async with running_pool([engine]) as pool:
            asked = [pool.submit(poisoned(make_query(1, size=2)), make_call()) for _ in range(12)]
            results = await asyncio.gather(*asked, return_exceptions=True)
            assert {type(result) for result in results} == {WorkerCrashed}
            assert len(engine.fate.deaths) == 2

    asyncio.run(scenario())


def test_a_request_split_over_devices_costs_two_engines_and_not_two_each(make_query, make_call):
    async def scenario():
        fate = Fate()
        async with running_pool([MortalEngine(fate) for _ in range(3)]) as pool:
            for _ in range(5):
                with pytest.raises(WorkerCrashed):
                    await pool.submit(poisoned(make_query(1, size=12)), make_call())
            assert len(fate.deaths) == 2
            assert is_whole(await pool.submit(make_query(2, size=12), make_call()), make_query(2, size=12))

    asyncio.run(scenario())


def test_a_deadline_that_passes_in_a_death_is_not_tried_again(running, make_query, make_call, fake_clock):
    class Slow(Fate):
        def strike(self, kind, *, is_poisoned=False):
            if is_poisoned:
                fake_clock.now += 5.0
            super().strike(kind, is_poisoned=is_poisoned)

    async def scenario():
        engine = MortalEngine(Slow())
        async with running(engine, clock=fake_clock) as core:
            for on_deadline in OnDeadline:
                call = make_call(deadline_s=fake_clock.now + 3.0, on_deadline=on_deadline)
                with pytest.raises((DeadlineExceeded, WorkerCrashed)):
                    await core.worker.submit(poisoned(make_query(1)), call)
            assert len(engine.fate.deaths) <= 2

    asyncio.run(scenario())


def test_while_no_engine_is_there_requests_are_refused_for_now_and_blamed_for_nothing(make_query, make_call):
    async def scenario():
        engine = MortalEngine()
        async with running_pool([engine]) as pool:
            engine.fate.unbegun = set(range(3))
            with pytest.raises(NotReady):
                await pool.submit(make_query(1), make_call())
            assert is_whole(await pool.submit(make_query(1), make_call()), make_query(1))

    asyncio.run(scenario())


def test_a_worker_whose_engine_is_down_takes_no_jobs(make_query, make_call):
    async def scenario():
        is_up = [True]
        engine = ToyRolloutEngine()
        scheduler = Scheduler(CostModel(engine.contract.buckets), max_pending_s=600.0)
        worker = EngineWorker(engine, scheduler, Metrics(), is_engine_up=lambda: is_up[0])
        worker.start()
        await worker.warm_up()
        assert worker.is_ready
        is_up[0] = False
        with pytest.raises(NotReady):
            await worker.submit(make_query(), make_call())
        await worker.stop(0.0)

    asyncio.run(scenario())


def test_encoding_is_repeated_and_refused_like_a_job(make_query, make_call):
    async def scenario():
        engine = MortalEngine(deadly=("encode",))
        async with running_pool([engine]) as pool:
            engine.fate.doomed = {0}
            context = make_query(1).context
            assert np.array_equal(await pool.encode(context, make_call()), ToyRolloutEngine().encode(context))
            for _ in range(3):
                with pytest.raises(WorkerCrashed):
                    await pool.encode(np.full_like(context, POISON), make_call())
            assert len(engine.fate.deaths) == 3

    asyncio.run(scenario())


def test_deaths_while_it_warms_up_do_not_stop_the_start(make_query, make_call):
    async def scenario():
        engine = MortalEngine()
        engine.fate.doomed = {3, 400}
        async with running_pool([engine]) as pool:
            assert is_whole(await pool.submit(make_query(1), make_call()), make_query(1))

    asyncio.run(scenario())


def random_queries(rng, make_query):
    queries = [
        make_query(rng.randrange(2**31), size=rng.randint(1, 6), steps=rng.randint(1, 4), frame_indices=(1, 8))
        for _ in range(rng.randint(1, 5))
    ]
    return [poisoned(queries[0]), *queries[1:]] if rng.random() < 0.3 else queries


async def play(pool, fate, queries, doomed, make_call):
    """Ask everything at once while processes die in the calls of these numbers."""
    fate.num_calls, fate.doomed, fate.deaths = 0, doomed, []
    asked = [asyncio.create_task(pool.submit(query, make_call())) for query in queries]
    results = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), PATIENCE_S)
    assert pool.num_jobs == 0
    return results


@pytest.mark.parametrize("num_devices", [1, 2, 3])
def test_whatever_dies_each_request_ends_once_with_its_bytes_or_a_refusal(
    make_query, make_call, fake_clock, num_devices
):
    rng, fate, ends = random.Random(num_devices), Fate(), Counter()

    async def scenarios():
        async with running_pool([MortalEngine(fate) for _ in range(num_devices)], fake_clock) as pool:
            for _ in range(NUM_SCENARIOS // 3 + 1):
                fake_clock.now += 100.0  # nothing is blocked any more
                queries = random_queries(rng, make_query)
                doomed = {rng.randrange(60) for _ in range(rng.choice((0, 0, 1, 1, 2, 3, 5)))}
                results = await play(pool, fate, queries, doomed, make_call)
                for result, query in zip(results, queries, strict=True):
                    if isinstance(result, WorkerCrashed):
                        ends["refused"] += 1
                        assert len(fate.deaths) > 1
                    else:
                        ends["answered"] += 1
                        assert is_whole(result, query)
                ends["deaths"] += len(fate.deaths)

    asyncio.run(scenarios())
    assert all(ends[end] > 20 for end in ("refused", "answered", "deaths"))


def test_the_scenarios_catch_an_engine_that_answers_wrongly_after_a_death(make_query, make_call):
    class Forgetful(MortalEngine):
        def step(self, rows):
            stepped = super().step(rows)
            return [each + np.float32(0.1) for each in stepped] if self.fate.deaths else stepped

    async def scenario():
        query, engine = make_query(1, size=4), Forgetful()
        async with running_pool([engine]) as pool:
            (result,) = await play(pool, engine.fate, [query], {6}, make_call)
            assert engine.fate.deaths
            assert not is_whole(result, query)

    asyncio.run(scenario())
