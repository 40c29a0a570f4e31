import asyncio
from dataclasses import replace

import numpy as np
import pytest

from foreframe_engines import Priority
from foreframe_engines import reading as reference
from foreframe_engines.testing import LeakyToyLikelihoodEngine, ToyLikelihoodEngine, ToyRolloutEngine
from foreframe_engines.types import TokenRow
from foreframe_server.disconnects import ClientLeft
from foreframe_server.errors import DeadlineExceeded, ModelFault, NotReady, Overloaded
from foreframe_server.token_reader import TokenReader

PATIENCE_S = 20


def same_scores(one, other):
    return (
        one.log_probability.tobytes() == other.log_probability.tobytes()
        and one.greedy.tobytes() == other.greedy.tobytes()
        and np.array_equal(one.top_log_mass, other.top_log_mass)
        and np.array_equal(one.is_in_top, other.is_in_top)
    )


def read_context(engine, clip):
    return reference.read_history(engine, engine.tokenize(clip.frames), clip.states)


async def read(reader, rows, call):
    with reader.admitting(len(rows), call) as job:
        return await job.read(rows)


def scattered_rows(make_clip, count=20):
    """Rows of different histories, targets and lengths."""
    engine, rows = ToyLikelihoodEngine(), []
    for seed in range(count):
        clip = make_clip(seed, num_frames=1 + seed % 5)
        target = clip.ids[0] if seed % 3 else None
        rows.append(reference.first_row(read_context(engine, clip), clip.future[0], target, 1 + seed % 4))
    return rows


class TestNumbers:
    async def check(self, reading, make_clip, make_call, top_k):
        clip, engine = make_clip(), ToyLikelihoodEngine()
        context = read_context(engine, clip)
        async with reading() as running:
            reader, call = running.reader, make_call()
            found = await reader.context(clip.frames, clip.states, call)
            with reader.admitting(12, call) as job:
                forced = await job.run(reference.teacher_forced_reads(found, clip.ids, clip.future, top_k))
                guided = await job.run(reference.greedy_reads(found, clip.future, clip.ids, top_k))
                free = await job.run(reference.greedy_reads(found, clip.future, None, top_k))
        assert found.num_grids == context.num_grids == 4
        assert np.array_equal(found.last_ids, context.last_ids)
        assert same_scores(forced, reference.teacher_forced(engine, context, clip.ids, clip.future, top_k))
        assert same_scores(guided, reference.greedy_rollout(engine, context, clip.future, clip.ids, top_k))
        assert same_scores(free, reference.greedy_rollout(engine, context, clip.future, None, top_k))

    @pytest.mark.parametrize("top_k", [None, 2])
    def test_every_way_of_reading_equals_the_plain_loop(self, reading, make_clip, make_call, top_k):
        asyncio.run(self.check(reading, make_clip, make_call, top_k))

    def test_frames_become_the_engine_s_ids(self, reading, make_clip, make_call):
        async def scenario():
            async with reading() as running:
                with running.reader.admitting(0, make_call()) as job:
                    return await job.tokenize(make_clip().frames)

        ids = asyncio.run(scenario())
        assert np.array_equal(ids, ToyLikelihoodEngine().tokenize(make_clip().frames))


class TestCompany:
    """A row's answer is the same alone, in a batch, and in any order."""

    async def differences(self, engine, reading, rows, call):
        alone = [type(engine)().read([row])[0] for row in rows]
        order = np.random.default_rng(0).permutation(len(rows))
        async with reading(engine) as running:
            together = await read(running.reader, rows, call)
            shuffled = await read(running.reader, [rows[place] for place in order], call)
        pairs = [*zip(alone, together, strict=True), *zip([alone[place] for place in order], shuffled, strict=True)]
        return sum(not same_scores(one, other) for one, other in pairs)

    def test_neighbours_and_order_change_nothing(self, reading, make_clip, make_call):
        rows = scattered_rows(make_clip)
        assert asyncio.run(self.differences(ToyLikelihoodEngine(), reading, rows, make_call())) == 0

    def test_control_an_engine_whose_rows_touch_is_caught(self, reading, make_clip, make_call):
        rows = scattered_rows(make_clip)
        assert asyncio.run(self.differences(LeakyToyLikelihoodEngine(), reading, rows, make_call())) > 0

    def test_jobs_at_the_same_time_change_nothing(self, reading, make_clip, make_call):
        clips = [make_clip(seed, num_frames=1 + seed % 4) for seed in range(6)]
        engine = ToyLikelihoodEngine()

        async def score(reader, clip):
            context = await reader.context(clip.frames, clip.states, make_call())
            with reader.admitting(len(clip.ids), make_call()) as job:
                return await job.run(reference.teacher_forced_reads(context, clip.ids, clip.future, 2))

        async def scenario():
            async with reading() as running:
                return await asyncio.gather(*(score(running.reader, clip) for clip in clips))

        for clip, scores in zip(clips, asyncio.run(scenario()), strict=True):
            context = read_context(engine, clip)
            assert same_scores(scores, reference.teacher_forced(engine, context, clip.ids, clip.future, 2))


def test_many_rows_are_read_a_few_at_a_time(reading, make_clip, make_call):
    async def scenario():
        async with reading(max_rows=8) as running:
            await read(running.reader, scattered_rows(make_clip), make_call())
            return running.engine.read_rows

    assert asyncio.run(scenario()) == [8, 8, 4]


def test_predictions_go_on_between_reads(reading, make_clip, make_query, make_call):
    log = []
    engine = ToyLikelihoodEngine(read_hook=lambda rows: log.append("read"))
    rollout = ToyRolloutEngine(engine.contract, step_hook=lambda rows: log.append("step"))
    rows = scattered_rows(make_clip) * 4

    async def scenario():
        async with reading(engine, rollout=rollout, max_rows=1) as running:
            log.clear()
            jobs = [asyncio.create_task(read(running.reader, rows, make_call())) for _ in range(3)]
            await running.core.service.predict(make_query(steps=4), make_call())
            num_reads_before = log.count("read")
            await asyncio.gather(*jobs)
            return num_reads_before

    assert asyncio.run(scenario()) < len(rows)
    assert log.count("step") == 4


class TestDeadlinesAndDisconnects:
    def test_a_deadline_ends_a_job_between_reads(self, reading, make_clip, make_call, fake_clock):
        def advance(rows):
            fake_clock.now += 1.0

        engine = ToyLikelihoodEngine(read_hook=advance)

        async def scenario():
            async with reading(engine, clock=fake_clock, max_rows=2) as running:
                call = make_call(deadline_s=fake_clock.now + 2.5)
                with pytest.raises(DeadlineExceeded):
                    await read(running.reader, scattered_rows(make_clip), call)
                num_reads = running.engine.calls["read"]
                with pytest.raises(DeadlineExceeded):
                    await read(running.reader, scattered_rows(make_clip), call)
                assert running.engine.calls["read"] == num_reads == 3
                assert running.reader.pending_s == 0

        asyncio.run(scenario())

    def test_a_client_that_leaves_ends_its_job_between_reads(self, reading, make_clip, make_call):
        answers = [False, False, True]

        async def is_disconnected():
            return answers.pop(0)

        async def scenario():
            async with reading(max_rows=4) as running:
                with pytest.raises(ClientLeft):
                    await read(running.reader, scattered_rows(make_clip), make_call(is_disconnected=is_disconnected))
                assert running.engine.calls["read"] == 2

        asyncio.run(scenario())

    def test_a_job_that_is_cancelled_gives_its_turn_on(self, reading, make_clip, make_call, gate):
        rows = scattered_rows(make_clip, 2)

        async def scenario():
            async with reading(ToyLikelihoodEngine(read_hook=gate), max_rows=1) as running:
                gate.close()
                first, second, third = (asyncio.create_task(read(running.reader, rows, make_call())) for _ in range(3))
                assert await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)
                first.cancel()
                second.cancel()
                gate.open()
                assert len(await third) == 2
                assert running.reader.pending_s == 0

        asyncio.run(scenario())


class TestAdmission:
    """Every read takes a second of the fake clock; at most 5 s may be ahead."""

    async def run(self, reading, make_clip, fake_clock, gate, scenario):
        def take_a_second(rows):
            gate(rows)
            fake_clock.now += len(rows)

        async with reading(
            ToyLikelihoodEngine(read_hook=take_a_second), clock=fake_clock, max_rows=1, max_pending_s=5.0
        ) as running:
            gate.close()
            await scenario(running.reader, scattered_rows(make_clip, 6))

    def test_reads_beyond_the_limit_are_refused_with_a_time(self, reading, make_clip, make_call, fake_clock, gate):
        async def scenario(reader, rows):
            busy = asyncio.create_task(read(reader, rows, make_call()))
            assert await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)
            with pytest.raises(Overloaded) as refusal:
                await read(reader, rows[:1], make_call())
            assert refusal.value.retry_after_ms == 1000
            gate.open()
            await busy
            assert len(await read(reader, rows[:1], make_call())) == 1

        asyncio.run(self.run(reading, make_clip, fake_clock, gate, scenario))

    def test_bulk_work_keeps_no_controller_out(self, reading, make_clip, make_call, fake_clock, gate):
        async def scenario(reader, rows):
            bulk = make_call(priority=Priority.BULK)
            busy = asyncio.create_task(read(reader, rows, bulk))
            assert await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)
            with pytest.raises(Overloaded):
                await read(reader, rows[:1], bulk)
            controller = asyncio.create_task(read(reader, rows[:1], make_call()))
            gate.open()
            await asyncio.gather(busy, controller)

        asyncio.run(self.run(reading, make_clip, fake_clock, gate, scenario))

    def test_an_admitted_job_is_never_refused_half_way(self, reading, make_clip, make_call, fake_clock, gate):
        async def scenario(reader, rows):
            gate.open()
            with reader.admitting(12, make_call()) as job:
                assert len(await job.read(rows) + await job.read(rows)) == 12
                assert job.num_left == 0
                assert (job.queue_s, job.device_s) == (0, 12)

        asyncio.run(self.run(reading, make_clip, fake_clock, gate, scenario))


class TestFaults:
    def test_an_engine_that_fails_is_a_model_fault_and_the_next_read_works(self, reading, make_clip, make_call, logs):
        class Once:
            is_broken = False

            def __call__(self, rows):
                if self.is_broken:
                    raise RuntimeError("planted")

        hook = Once()

        async def scenario():
            async with reading(ToyLikelihoodEngine(read_hook=hook)) as running:
                rows = scattered_rows(make_clip, 2)
                hook.is_broken = True
                with pytest.raises(ModelFault) as fault:
                    await read(running.reader, rows, make_call())
                hook.is_broken = False
                assert len(await read(running.reader, rows, make_call())) == 2
                return fault.value

        assert "planted" not in asyncio.run(scenario()).detail
        assert "token_reader.engine_failed" in [entry["event"] for entry in logs]

    def test_numbers_that_are_not_finite_are_a_model_fault(self, reading, make_clip, make_call):
        async def scenario():
            async with reading() as running:
                row: TokenRow = scattered_rows(make_clip, 1)[0]
                with pytest.raises(ModelFault):
                    await read(running.reader, [replace(row, states=row.states * np.float32(np.nan))], make_call())

        asyncio.run(scenario())


class TestStopping:
    def test_admitted_jobs_end_and_new_ones_are_refused(self, reading, make_clip, make_call, gate):
        async def scenario():
            async with reading(ToyLikelihoodEngine(read_hook=gate)) as running:
                gate.close()
                rows = scattered_rows(make_clip)
                admitted = asyncio.create_task(read(running.reader, rows, make_call()))
                assert await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)
                stopping = asyncio.create_task(running.reader.stop(PATIENCE_S))
                await asyncio.sleep(0)
                with pytest.raises(NotReady):
                    await read(running.reader, rows, make_call())
                gate.open()
                await stopping
                assert len(await admitted) == len(rows)
                assert running.engine.is_closed

        asyncio.run(scenario())

    def test_before_the_worker_is_warm_nothing_is_read(self, reading, make_clip, make_call):
        async def scenario():
            async with reading() as running:
                core = running.core
            late = TokenReader(ToyLikelihoodEngine(), core.worker, core.metrics)
            assert not late.is_ready
            with pytest.raises(NotReady):
                await read(late, scattered_rows(make_clip, 1), make_call())

        asyncio.run(scenario())
