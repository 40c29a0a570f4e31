import asyncio
import itertools
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from foreframe_engines import EnsembleStatistics, NoisePlan, OnDeadline, Priority, Reducer, converged_size
from foreframe_engines.sampling import sample
from foreframe_engines.testing import ToyRolloutEngine, toy_contract
from foreframe_server import known_contexts
from foreframe_server.cache import RedisTier, connect_redis
from foreframe_server.calls import CachePolicy, CacheResult
from foreframe_server.disconnects import ClientLeft
from foreframe_server.errors import (
    CapabilityMissing,
    DeadlineExceeded,
    DeadlineUnmeetable,
    ModelFault,
    Superseded,
    TooExpensive,
    UnknownModel,
)
from foreframe_server.quarantine import digest_arrays

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
            num_decodes = core.engine.calls["decode"]
            second = await core.service.predict(make_query(size=2, stream_id="arm"), make_call())
            assert second.cache is CacheResult.HIT
            assert same(first.prediction, second.prediction)
            assert core.engine.calls["decode"] == num_decodes
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
            assert core.engine.calls["decode"] <= 3, "a turn a member"
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


@pytest.mark.parametrize("cache", [CachePolicy.USE, CachePolicy.BYPASS])
def test_a_large_context_is_hashed_once_and_encoded_once(running, make_query, make_call, monkeypatch, cache):
    hashed = []
    monkeypatch.setattr(
        known_contexts, "digest_arrays", lambda label, arrays: hashed.append(label) or digest_arrays(label, arrays)
    )

    async def scenario():
        async with running(ToyRolloutEngine(toy_contract(size=256))) as core:
            context = np.random.default_rng(0).integers(0, 256, (4, 256, 256, 3), np.uint8)
            assert known_contexts.is_large(context)
            for seed in range(2):
                await core.service.predict(replace(make_query(seed), context=context), make_call(cache=cache))
            assert core.engine.calls["encode"] == 1

    asyncio.run(scenario())
    assert hashed == ["context"] * 2


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
def test_an_answer_cut_short_says_so_and_the_next_one_goes_on_from_it(
    running, make_query, make_call, fake_clock, on_deadline
):
    query = make_query(size=32, steps=2)

    async def scenario():
        engine = ToyRolloutEngine(step_hook=lambda rows: tick(fake_clock))
        async with running(engine, clock=fake_clock) as core:
            call = make_call(deadline_s=fake_clock.now + 3, on_deadline=on_deadline)
            cut = await core.service.predict(query, call)
            assert (cut.degraded.members, cut.prediction.num_members) == (16, 16)
            assert cut.deadline_met
            assert core.count("foreframe_deadline_total", outcome="degraded") == 1
            whole = await core.service.predict(query, make_call())
            assert (whole.cache, whole.from_cache, whole.prediction.num_members) == (CacheResult.PARTIAL, 16, 32)
            assert same(whole.prediction, sample(ToyRolloutEngine(), query))

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
            await until(leader.done)
            gate.open()
            early, whole = await leader, await patient
            assert early.prediction.num_members == early.degraded.members == 4
            assert (whole.prediction.num_members, whole.degraded) == (12, None)
            assert whole.cache is CacheResult.JOINED
            assert core.engine.calls["condition"] == 1

    asyncio.run(scenario())


def test_a_larger_ensemble_goes_on_from_the_members_that_are_kept(running, make_query, make_call):
    async def scenario():
        async with running() as core:
            await core.service.predict(make_query(size=12), make_call())
            core.engine.step_rows.clear()
            grown = await core.service.predict(make_query(size=20), make_call())
            assert (grown.cache, grown.from_cache) == (CacheResult.PARTIAL, 12)
            assert sum(core.engine.step_rows) == 8 * 4
            assert same(grown.prediction, sample(ToyRolloutEngine(), make_query(size=20)))
            core.engine.step_rows.clear()
            for size, reducer in ((20, Reducer.MEAN), (7, Reducer.MEDIAN), (20, Reducer.MEDOID)):
                query = make_query(size=size, reducer=reducer)
                again = await core.service.predict(query, make_call())
                assert (again.cache, again.from_cache) == (CacheResult.HIT, size)
                assert same(again.prediction, sample(ToyRolloutEngine(), query))
            assert core.engine.step_rows == []

    asyncio.run(scenario())


def test_a_larger_rider_grows_the_flight_and_the_smaller_one_leaves_first(running, make_query, make_call, gate):
    engine = ToyRolloutEngine(toy_contract(buckets=(1, 2)), step_hook=gate)

    async def scenario():
        async with running(engine) as core:
            gate.close()
            small = asyncio.create_task(core.service.predict(make_query(size=2, steps=2), make_call()))
            await held(gate)
            large = asyncio.create_task(core.service.predict(make_query(size=6, steps=2), make_call()))
            (flight,) = core.service._flights.values()
            await until(lambda: flight.num_riders == 2)
            gate.close(after=1)
            gate.open()
            await small
            gate.open()
            assert same((await small).prediction, sample(ToyRolloutEngine(), make_query(size=2, steps=2)))
            assert same((await large).prediction, sample(ToyRolloutEngine(), make_query(size=6, steps=2)))
            assert (await large).cache is CacheResult.JOINED
            assert core.engine.step_rows == [2] * 6
            assert core.engine.calls["condition"] == 1

    asyncio.run(scenario())


class TestTolerance:
    """An ensemble that may stop early stops at the same member whatever the load, and is not called degraded."""

    @staticmethod
    def tolerant(make_query, tolerance, size=32):
        query = make_query(size=size, noise=NoisePlan.IID)
        return replace(query, ensemble=replace(query.ensemble, tolerance=tolerance))

    def expected(self, make_query, tolerance):
        query = self.tolerant(make_query, tolerance)
        return converged_size(sample(ToyRolloutEngine(), query).members, query.ensemble)

    def a_tolerance(self, make_query, count=6):
        """One that is met first by about so many members."""
        members = sample(ToyRolloutEngine(), self.tolerant(make_query, None)).members
        return EnsembleStatistics.of(members[:count]).standard_error(NoisePlan.IID) * 1.0001

    @pytest.mark.parametrize("max_rows", [1, 2, 16])
    def test_it_stops_at_the_first_prefix_that_is_exact_enough(self, running, make_query, make_call, max_rows):
        tolerance = self.a_tolerance(make_query)
        buckets = tuple(size for size in (1, 2, 4, 8, 16) if size <= max_rows)

        async def scenario():
            async with running(ToyRolloutEngine(toy_contract(buckets=buckets))) as core:
                answer = await core.service.predict(self.tolerant(make_query, tolerance), make_call())
                await until(lambda: core.worker.num_jobs == 0)
                again = await core.service.predict(self.tolerant(make_query, tolerance), make_call())
                assert again.cache is CacheResult.HIT
                assert same(again.prediction, answer.prediction)
                return answer

        answer = asyncio.run(scenario())
        assert answer.degraded is None
        assert answer.prediction.num_members == self.expected(make_query, tolerance) < 32
        assert answer.prediction.standard_error <= tolerance

    def test_one_that_is_never_exact_enough_gets_all_members(self, running, make_query, make_call):
        async def scenario():
            async with running() as core:
                return await core.service.predict(self.tolerant(make_query, 1e-9, size=9), make_call())

        answer = asyncio.run(scenario())
        assert (answer.prediction.num_members, answer.degraded) == (9, None)


class TestTooLittleTime:
    """Every step takes a second of the fake clock."""

    async def predict(self, running, query, call, fake_clock, pace_s=1.0):
        engine = ToyRolloutEngine(step_hook=lambda rows: tick(fake_clock))
        async with running(engine, clock=fake_clock) as core:
            answer = await core.service.predict(query, call())
            whole = await core.service.predict(query, replace(call(), deadline_s=None))
            assert (whole.cache, whole.degraded) == (CacheResult.MISS, None)
            return answer

    def test_fewer_steps_are_taken_and_said_and_never_stored(self, running, make_query, make_call, fake_clock):
        query = make_query(size=2, steps=8)
        answer = asyncio.run(
            self.predict(running, query, lambda: make_call(deadline_s=fake_clock.now + 5.0), fake_clock)
        )
        assert (answer.degraded.members, answer.degraded.steps) == (2, 4)
        shorter = make_query(size=2, steps=4)
        assert same(answer.prediction, sample(ToyRolloutEngine(), shorter))
        assert answer.deadline_met

    def test_a_deadline_that_not_even_an_idle_server_meets_is_refused_before_anything_runs(
        self, running, make_query, make_call, fake_clock
    ):
        async def scenario():
            engine = ToyRolloutEngine(step_hook=lambda rows: tick(fake_clock))
            async with running(engine, clock=fake_clock) as core:
                for on_deadline, budget_s in (
                    (OnDeadline.DEGRADE, 0.5),
                    (OnDeadline.PARTIAL, 2.0),
                    (OnDeadline.FAIL, 2.0),
                ):
                    call = make_call(deadline_s=fake_clock.now + budget_s, on_deadline=on_deadline)
                    with pytest.raises(DeadlineUnmeetable):
                        await core.service.predict(make_query(steps=4), call)
                assert core.engine.calls["encode"] == 0
                assert core.count("foreframe_rejected_total", reason="deadline_unmeetable") == 3

        asyncio.run(scenario())


def test_a_watcher_hears_of_an_estimate_and_then_of_more_and_more_members(running, make_query, make_call):
    accepted, heard = [], []
    is_heard, is_warm, num_steps = threading.Semaphore(0), threading.Event(), itertools.count(1)

    class Watcher:
        def on_accepted(self):
            accepted.append(len(heard))

        def on_progress(self, progress):
            heard.append(progress)
            is_heard.release()

    def wait_for_the_watcher(rows):
        # Two members a forward, four steps each: news comes after the first step and after each pair.
        if is_warm.is_set() and next(num_steps) in (2, 5, 9):
            assert is_heard.acquire(timeout=PATIENCE_S)

    async def scenario():
        engine = ToyRolloutEngine(toy_contract(buckets=(1, 2)), step_hook=wait_for_the_watcher)
        async with running(engine) as core:
            is_warm.set()
            return await core.service.predict(make_query(size=6), make_call(), Watcher())

    answer = asyncio.run(scenario())
    assert accepted[0] == 0
    assert [(progress.is_estimate, progress.prediction.num_members) for progress in heard] == [
        (True, 1),
        (False, 2),
        (False, 4),
    ]
    whole = sample(ToyRolloutEngine(), make_query(size=6))
    for progress in heard[1:]:
        part = make_query(size=progress.prediction.num_members)
        assert progress.prediction.frames.tobytes() == sample(ToyRolloutEngine(), part).frames.tobytes()
    assert same(answer.prediction, whole)


class Ear:
    """Hears whether a call was accepted."""

    def __init__(self):
        self.is_accepted = asyncio.Event()

    def on_accepted(self):
        self.is_accepted.set()

    def on_progress(self, progress):
        assert self.is_accepted.is_set()


def test_a_call_is_accepted_when_it_is_admitted_or_joins_one_that_is(running, make_query, make_call, gate):
    async def scenario():
        async with running(ToyRolloutEngine(step_hook=gate)) as core:
            gate.close()
            first, second = Ear(), Ear()
            calls = [asyncio.create_task(core.service.predict(make_query(size=2), make_call(), first))]
            async with asyncio.timeout(PATIENCE_S):
                await first.is_accepted.wait()
                assert core.worker.num_jobs == 1
                calls.append(asyncio.create_task(core.service.predict(make_query(size=1), make_call(), second)))
                await second.is_accepted.wait()
            assert not any(call.done() for call in calls)
            gate.open()
            await asyncio.gather(*calls)

    asyncio.run(scenario())


def test_what_is_refused_or_known_was_never_accepted(running, make_query, make_call):
    async def scenario():
        async with running(row_s=1.0, max_pending_s=30.0) as core:
            refused, known = Ear(), Ear()
            with pytest.raises(TooExpensive):
                await core.service.predict(make_query(size=32, steps=50), make_call(), refused)
            await core.service.predict(make_query(), make_call())
            await core.service.predict(make_query(), make_call(), known)
            assert not refused.is_accepted.is_set()
            assert not known.is_accepted.is_set()

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


def test_replicas_that_are_asked_at_the_same_time_compute_once(running, redis_server, make_query, make_call, gate):
    def tier(metrics):
        return RedisTier(connect_redis(redis_server.url, 5.0), metrics, secret=b"s" * 32, timeout_s=5.0)

    async def scenario():
        async with running(ToyRolloutEngine(step_hook=gate), redis=tier) as one, running(redis=tier) as other:
            gate.close()
            first = asyncio.create_task(one.service.predict(make_query(size=4), make_call()))
            await held(gate)
            ear = Ear()
            others = [
                asyncio.create_task(other.service.predict(make_query(size=4), make_call(), ear)) for _ in range(20)
            ]
            await until(lambda: other.count("foreframe_cache_events_total", tier="redis", result="awaited") >= 1)
            async with asyncio.timeout(PATIENCE_S):
                await ear.is_accepted.wait()
            gate.open()
            answers = await asyncio.gather(first, *others)
            assert other.engine.calls["condition"] == 0
            assert {answer.cache for answer in answers[1:]} <= {CacheResult.HIT, CacheResult.JOINED}
            assert all(same(answer.prediction, answers[0].prediction) for answer in answers)

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
