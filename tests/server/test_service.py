import asyncio
import time
from dataclasses import replace

import numpy as np
import pytest

from foreframe_engines import OnDeadline, Priority
from foreframe_engines.sampling import sample
from foreframe_engines.testing import ToyRolloutEngine, toy_contract
from foreframe_server.cache import RedisTier, connect_redis
from foreframe_server.calls import CachePolicy, CacheResult
from foreframe_server.disconnects import ClientLeft
from foreframe_server.errors import (
    CapabilityMissing,
    DeadlineExceeded,
    ModelFault,
    Superseded,
    UnknownModel,
)

PATIENCE_S = 20


class NanEngine(ToyRolloutEngine):
    """A toy whose every step is NaN once it is told to."""

    is_broken = False

    def step(self, rows):
        stepped = super().step(rows)
        return [np.full_like(each, np.nan) for each in stepped] if self.is_broken else stepped


def same(one, other):
    return one.frames.tobytes() == other.frames.tobytes() and one.members.tobytes() == other.members.tobytes()


def tick(clock):
    clock.now += 1.0


async def held(gate):
    assert await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)


async def until(condition):
    """Let the event loop turn until a condition holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.to_thread(time.monotonic)


def test_an_answer_is_the_plain_sample_with_its_story(running, make_query, make_call):
    query = make_query(size=5)

    async def scenario():
        async with running() as core:
            answer = await core.service.predict(query, make_call())
            assert core.service.is_ready
            assert core.count("foreframe_ensemble_members_sum", kind="returned") == 5
            return answer

    answer = asyncio.run(scenario())
    assert same(answer.prediction, sample(ToyRolloutEngine(), query))
    assert (answer.cache, answer.degraded, answer.deadline_met) == (CacheResult.MISS, None, True)
    assert answer.determinism == "bitwise"
    assert answer.timings.denoise > 0


def test_an_equal_query_is_a_hit_with_the_same_bytes(running, make_query, make_call):
    async def scenario():
        async with running() as core:
            first = await core.service.predict(make_query(size=2), make_call())
            second = await core.service.predict(make_query(size=2, stream_id="arm"), make_call())
            assert second.cache is CacheResult.HIT
            assert same(first.prediction, second.prediction)
            assert core.engine.calls["decode"] == 1
            assert core.count("foreframe_ensemble_members_sum", kind="cached") == 2
            other = await core.service.predict(make_query(1, content=0, size=2), make_call())
            assert other.cache is CacheResult.MISS

    asyncio.run(scenario())


def test_bypass_neither_looks_nor_stores_and_refresh_stores_without_looking(running, make_query, make_call):
    async def scenario():
        async with running() as core:

            async def result(policy):
                return (await core.service.predict(make_query(), make_call(cache=policy))).cache

            assert await result(CachePolicy.BYPASS) is CacheResult.BYPASS
            assert await result(CachePolicy.REFRESH) is CacheResult.MISS
            assert await result(CachePolicy.USE) is CacheResult.HIT
            assert await result(CachePolicy.REFRESH) is CacheResult.MISS
            assert await result(CachePolicy.BYPASS) is CacheResult.BYPASS
            assert core.engine.calls["decode"] == 4

    asyncio.run(scenario())


def test_200_equal_calls_are_one_computation(running, make_query, make_call):
    query = make_query(size=3)

    async def scenario():
        async with running() as core:
            calls = [make_call(deadline_s=time.monotonic() + PATIENCE_S + index) for index in range(200)]
            answers = await asyncio.gather(*(core.service.predict(query, call) for call in calls))
            assert core.engine.calls["condition"] == 1
            assert core.engine.calls["decode"] == 1
            return answers

    answers = asyncio.run(scenario())
    whole = sample(ToyRolloutEngine(), query)
    assert all(same(answer.prediction, whole) for answer in answers)
    results = [answer.cache for answer in answers]
    assert results.count(CacheResult.MISS) == 1
    assert set(results) <= {CacheResult.MISS, CacheResult.JOINED, CacheResult.HIT}


def test_200_bypassing_calls_are_200_computations(running, make_query, make_call):
    """The planted fault of the test above: without joining, the count must show it."""

    async def scenario():
        async with running() as core:
            call = make_call(cache=CachePolicy.BYPASS)
            await asyncio.gather(*(core.service.predict(make_query(), call) for _ in range(200)))
            assert core.engine.calls["decode"] == 200

    asyncio.run(scenario())


def test_a_flight_outlives_the_call_that_began_it(running, make_query, make_call, gate):
    async def scenario():
        async with running(ToyRolloutEngine(step_hook=gate)) as core:
            gate.close()
            leader = asyncio.create_task(core.service.predict(make_query(), make_call()))
            await held(gate)
            joiner = asyncio.create_task(core.service.predict(make_query(), make_call()))
            (flight,) = core.service._flights.values()
            await until(lambda: flight.num_riders == 2)
            leader.cancel()
            gate.open()
            assert (await joiner).cache is CacheResult.JOINED
            assert leader.cancelled()
            assert core.engine.calls["condition"] == 1

    asyncio.run(scenario())


def test_the_computation_ends_when_the_last_rider_leaves(running, make_query, make_call, gate):
    async def scenario():
        async with running(ToyRolloutEngine(step_hook=gate)) as core:
            gate.close()
            riders = [asyncio.create_task(core.service.predict(make_query(steps=50), make_call())) for _ in range(3)]
            await held(gate)
            for rider in riders:
                rider.cancel()
            await asyncio.wait(riders)
            await until(lambda: core.worker.num_jobs == 0)
            gate.open()
            again = await core.service.predict(make_query(steps=50), make_call())
            assert again.cache is CacheResult.MISS
            assert len(core.engine.step_rows) == 51

    asyncio.run(scenario())


def test_a_client_that_hangs_up_frees_the_queue(running, make_query, make_call, gate):
    async def scenario():
        async with running(ToyRolloutEngine(step_hook=gate)) as core:
            gate.close()
            has_left = False

            async def is_disconnected():
                return has_left

            call = make_call(is_disconnected=is_disconnected)
            task = asyncio.create_task(core.service.predict(make_query(steps=50), call))
            await held(gate)
            has_left = True
            with pytest.raises(ClientLeft):
                await task
            await until(lambda: core.worker.num_jobs == 0)
            assert core.scheduler.num_pending_rows == 0
            gate.open()
            await core.service.predict(make_query(1, steps=2), make_call())
            assert len(core.engine.step_rows) == 3
            assert core.count("foreframe_cancelled_total", stage="denoise") == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("on_deadline", [OnDeadline.DEGRADE, OnDeadline.PARTIAL])
def test_an_answer_cut_short_says_so_and_is_not_stored(running, make_query, make_call, fake_clock, on_deadline):
    query = make_query(size=32, steps=2)

    async def scenario():
        engine = ToyRolloutEngine(step_hook=lambda rows: tick(fake_clock))
        async with running(engine, clock=fake_clock) as core:
            call = make_call(deadline_s=fake_clock.now + 3, on_deadline=on_deadline)
            cut = await core.service.predict(query, call)
            assert (cut.degraded.members, cut.prediction.num_members) == (16, 16)
            assert not cut.deadline_met
            assert core.count("foreframe_deadline_total", outcome="degraded") == 1
            whole = await core.service.predict(query, make_call())
            assert (whole.cache, whole.prediction.num_members) == (CacheResult.MISS, 32)

    asyncio.run(scenario())


@pytest.mark.parametrize("budget_s", [3, 4])
def test_fail_never_answers_late(running, make_query, make_call, fake_clock, budget_s):
    async def scenario():
        engine = ToyRolloutEngine(step_hook=lambda rows: tick(fake_clock))
        async with running(engine, clock=fake_clock) as core:
            call = make_call(deadline_s=fake_clock.now + budget_s, on_deadline=OnDeadline.FAIL)
            with pytest.raises(DeadlineExceeded):
                await core.service.predict(make_query(size=32, steps=2), call)
            assert core.count("foreframe_deadline_total", outcome="exceeded") == 1

    asyncio.run(scenario())


def test_fail_answers_at_the_deadline_even_while_the_device_is_busy(running, make_query, make_call, gate):
    async def scenario():
        async with running(ToyRolloutEngine(step_hook=gate)) as core:
            gate.close()
            call = make_call(deadline_s=time.monotonic() + 0.1, on_deadline=OnDeadline.FAIL)
            with pytest.raises(DeadlineExceeded):
                await core.service.predict(make_query(), call)
            gate.open()

    asyncio.run(scenario())


def test_a_deadline_that_has_passed_computes_nothing(running, make_query, make_call, fake_clock):
    async def scenario():
        async with running(clock=fake_clock) as core:
            with pytest.raises(DeadlineExceeded):
                await core.service.predict(make_query(), make_call(deadline_s=fake_clock.now))
            assert core.engine.calls["encode"] == 0

    asyncio.run(scenario())


def test_riders_of_one_flight_leave_at_their_own_deadlines(running, make_query, make_call, gate):
    async def scenario():
        async with running(ToyRolloutEngine(toy_contract(buckets=(1, 2, 4)), step_hook=gate)) as core:
            query = make_query(size=12, steps=1)
            gate.close(after=1)
            hurried = make_call(deadline_s=time.monotonic() + 1.0)
            leader = asyncio.create_task(core.service.predict(query, hurried))
            await held(gate)
            strict = make_call(deadline_s=time.monotonic() + 0.01, on_deadline=OnDeadline.FAIL)
            patient, refused = (
                asyncio.create_task(core.service.predict(query, call)) for call in (make_call(), strict)
            )
            with pytest.raises(DeadlineExceeded):
                await refused
            await until(lambda: len(core.worker._commands) == 1)
            gate.open()
            early, whole = await leader, await patient
            assert 4 <= early.prediction.num_members == early.degraded.members < 12
            assert not early.deadline_met
            assert (whole.prediction.num_members, whole.degraded) == (12, None)
            assert whole.cache is CacheResult.JOINED
            assert core.engine.calls["condition"] == 1

    asyncio.run(scenario())


def test_a_newer_query_of_a_stream_supersedes_only_its_own_stream(running, make_query, make_call, gate):
    async def scenario():
        async with running(ToyRolloutEngine(step_hook=gate)) as core:
            gate.close()
            arm, leg = (
                asyncio.create_task(core.service.predict(make_query(stream_id=name), make_call()))
                for name in ("arm", "leg")
            )
            await until(lambda: core.worker.num_jobs == 2)
            newer = asyncio.create_task(core.service.predict(make_query(1, stream_id="arm"), make_call(received_s=1.0)))
            with pytest.raises(Superseded):
                await arm
            gate.open()
            assert (await leg).prediction.sampling.seed == 0
            assert (await newer).prediction.sampling.seed == 1
            assert core.count("foreframe_superseded_total") == 1

    asyncio.run(scenario())


def test_a_controller_does_not_wait_for_bulk_work_on_the_same_query(running, make_query, make_call, gate):
    async def scenario():
        async with running(ToyRolloutEngine(step_hook=gate)) as core:
            gate.close()
            tasks = [
                asyncio.create_task(core.service.predict(make_query(priority=priority), make_call()))
                for priority in (Priority.BULK, Priority.CONTROLLER)
            ]
            await until(lambda: core.worker.num_jobs == 2)
            gate.open()
            await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_numbers_that_are_not_finite_are_neither_returned_nor_stored(running, make_query, make_call):
    async def scenario():
        async with running(NanEngine()) as core:
            core.engine.is_broken = True
            for _ in range(3):
                with pytest.raises(ModelFault):
                    await core.service.predict(make_query(), make_call())
            core.engine.is_broken = False
            assert (await core.service.predict(make_query(), make_call())).cache is CacheResult.MISS
            assert core.count("foreframe_rejected_total", reason="model_fault") == 3

    asyncio.run(scenario())


def test_other_models_and_missing_capabilities_are_refused(running, make_query, make_call):
    async def scenario():
        async with running() as core:
            with pytest.raises(UnknownModel):
                await core.service.predict(make_query(model="other"), make_call())
            assert core.count("foreframe_rejected_total", reason="unknown_model") == 1
        async with running(ToyRolloutEngine(replace(toy_contract(), capabilities=("score",)))) as core:
            with pytest.raises(CapabilityMissing):
                await core.service.predict(make_query(), make_call())

    asyncio.run(scenario())


def test_replicas_share_answers_through_redis(running, redis_server, make_query, make_call):
    def tier(metrics):
        return RedisTier(connect_redis(redis_server.url, 5.0), metrics, secret=b"s" * 32, timeout_s=5.0)

    async def scenario():
        async with running(redis=tier) as one:
            first = await one.service.predict(make_query(size=4), make_call())
            await one.service.close()
            async with running(redis=tier) as other:
                second = await other.service.predict(make_query(size=4), make_call())
                assert second.cache is CacheResult.HIT
                assert same(first.prediction, second.prediction)
                assert other.engine.calls["encode"] == 0

    asyncio.run(scenario())


def test_a_broken_redis_costs_no_answer(running, redis_server, make_query, make_call):
    def tier(metrics):
        return RedisTier.connect(redis_server.url, metrics)

    async def scenario():
        redis_server.kill()
        async with running(redis=tier) as core:
            for seed in range(8):
                answer = await core.service.predict(make_query(seed), make_call())
                assert answer.cache is CacheResult.UNAVAILABLE
            assert (await core.service.predict(make_query(0), make_call())).cache is CacheResult.HIT

    asyncio.run(scenario())
