"""Several workers as one: the members, bytes, order and endings that a single worker gives."""

import asyncio
import contextlib
import random
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from foreframe_engines import OnDeadline
from foreframe_engines.testing import ToyRolloutEngine
from foreframe_server.cost_model import CostModel
from foreframe_server.errors import DeadlineExceeded, ModelFault, NotReady, Overloaded, Superseded
from foreframe_server.jobs import Share
from foreframe_server.metrics import Metrics
from foreframe_server.pool import PoolTicket, WorkerPool
from foreframe_server.quarantine import Quarantine
from foreframe_server.scheduler import Scheduler
from foreframe_server.worker import EngineWorker

PATIENCE_S = 20


@dataclass
class Notes:
    """A listener that writes down what it hears."""

    wants_estimate: bool = False
    estimates: list = field(default_factory=list)
    members: list = field(default_factory=list)

    def on_estimate(self, frames):
        self.estimates.append(frames)

    def on_members(self, frames):
        self.members += frames


def build_worker(engine, clock, max_pending_s, quarantine):
    buckets = engine.contract.buckets
    scheduler = Scheduler(CostModel(buckets, max_rows=buckets[-1]), max_pending_s=max_pending_s)
    return EngineWorker(engine, scheduler, Metrics(), clock, quarantine=quarantine)


@contextlib.asynccontextmanager
async def running_pool(*engines, clock=None, max_pending_s=600.0):
    ticking = clock or asyncio.get_running_loop().time
    quarantine = Quarantine()
    workers = [build_worker(engine, ticking, max_pending_s, quarantine) for engine in engines]
    pool = WorkerPool(workers, ticking)
    for worker in workers:
        worker.start()
    await pool.warm_up()
    for engine in engines:
        engine.calls.clear()
        engine.step_rows.clear()
    try:
        yield pool
    finally:
        await pool.stop(PATIENCE_S)


def same_result(one, other):
    pairs = [(one.members, other.members), (one.latents, other.latents)]
    return all(
        len(mine) == len(theirs) and all(map(np.array_equal, mine, theirs)) for mine, theirs in pairs
    )  # fmt: skip


async def alone(running, query, call, first_member=0):
    async with running() as core:
        ticket = core.worker.admit(query, call, first_member=first_member)
        return await core.worker.wait(ticket)


@pytest.mark.parametrize("num_devices", [1, 2, 3, 5])
@pytest.mark.parametrize(("size", "first_member"), [(1, 0), (2, 0), (3, 0), (8, 0), (9, 0), (9, 3), (20, 6)])
def test_an_ensemble_is_the_same_on_any_number_of_devices(
    running, make_query, make_call, num_devices, size, first_member
):
    query = make_query(3, size=size, steps=3)

    async def scenario():
        expected = await alone(running, query, make_call(), first_member)
        notes = Notes()
        async with running_pool(*(ToyRolloutEngine() for _ in range(num_devices))) as pool:
            ticket = pool.admit(query, make_call(), first_member=first_member, listener=notes)
            result = await pool.wait(ticket)
            assert same_result(result, expected)
            assert all(map(np.array_equal, notes.members, expected.members))
            assert len(notes.members) == size - first_member
            num_pairs = (size + 1) // 2 - first_member // 2
            assert len(ticket.parts) == min(num_devices, num_pairs)
            assert pool.num_jobs == 0

    asyncio.run(scenario())


def test_antithetic_pairs_stay_together_and_are_dealt_out_in_turn():
    shares = [Share(index, 3) for index in range(3)]
    owners = [[share.holds(member) for share in shares].index(True) for member in range(8)]
    assert owners == [0, 0, 1, 1, 2, 2, 0, 0]


def test_whole_jobs_go_where_the_least_work_waits(make_query, make_call, gate):
    engines = [ToyRolloutEngine(step_hook=gate) for _ in range(3)]

    async def scenario():
        async with running_pool(*engines) as pool:
            for worker in pool._workers:
                worker._cost.fit({rows: 0.01 * rows for rows in (1, 2, 4, 8, 16)})
            gate.close()
            tickets = [pool.admit(make_query(seed, steps=4), make_call()) for seed in range(6)]
            used = [ticket.parts[0].worker for ticket in tickets]
            assert [used.count(worker) for worker in pool._workers] == [2, 2, 2]
            gate.open()
            for ticket in tickets:
                await pool.wait(ticket)

    asyncio.run(scenario())


def test_a_listener_hears_no_member_before_those_in_front_of_it(make_query, make_call, gate):
    query, notes = make_query(1, size=6, steps=1), Notes()

    async def scenario():
        async with running_pool(ToyRolloutEngine(step_hook=gate), ToyRolloutEngine()) as pool:
            gate.close()
            ticket = pool.admit(query, make_call(), listener=notes)
            held, free = (part.worker for part in ticket.parts)
            assert held is pool._workers[0]
            await asyncio.wait({ticket.parts[1].ticket.future}, timeout=PATIENCE_S)
            assert free.num_jobs == 0
            assert notes.members == []
            gate.open()
            result = await pool.wait(ticket)
            assert all(map(np.array_equal, notes.members, result.members))
            assert len(notes.members) == 6

    asyncio.run(scenario())


def test_the_estimate_is_of_the_first_member(running, make_query, make_call):
    query = make_query(1, size=8, steps=4)

    async def estimates(workers):
        notes = Notes(wants_estimate=True)
        ticket = workers.admit(query, make_call(), listener=notes)
        await workers.wait(ticket)
        return notes.estimates

    async def scenario():
        async with running() as core:
            expected = await estimates(core.worker)
        async with running_pool(ToyRolloutEngine(), ToyRolloutEngine()) as pool:
            (estimate,) = await estimates(pool)
            assert np.array_equal(estimate, expected[0])

    asyncio.run(scenario())


def test_a_split_job_grows_on_every_device(running, make_query, make_call, gate):
    small, large = make_query(1, size=4), make_query(1, size=11)

    async def scenario():
        expected = await alone(running, large, make_call())
        async with running_pool(*(ToyRolloutEngine(step_hook=gate) for _ in range(2))) as pool:
            gate.close()
            ticket = pool.admit(small, make_call())
            assert pool.grow(ticket, 11)
            gate.open()
            assert same_result(await pool.wait(ticket), expected)
            assert not pool.grow(ticket, 12)

    asyncio.run(scenario())


def test_a_fault_of_one_part_ends_the_whole_job(make_query, make_call, gate):
    def fail(rows):
        raise FloatingPointError("broken")

    async def scenario():
        engines = [ToyRolloutEngine(step_hook=gate), ToyRolloutEngine()]
        async with running_pool(*engines) as pool:
            engines[1]._step_hook = fail
            with pytest.raises(ModelFault):
                await pool.submit(make_query(size=8), make_call())
            assert pool.num_jobs == 0
            engines[1]._step_hook = None
            assert len((await pool.submit(make_query(size=8), make_call())).members) == 8

    asyncio.run(scenario())


def test_a_cancelled_wait_frees_every_device(make_query, make_call, gate):
    async def scenario():
        async with running_pool(*(ToyRolloutEngine(step_hook=gate) for _ in range(2))) as pool:
            gate.close()
            task = asyncio.create_task(pool.submit(make_query(size=8, steps=40), make_call()))
            assert await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert pool.num_jobs == 0
            gate.open()

    asyncio.run(scenario())


def test_of_a_stream_only_the_newest_lives_wherever_it_runs(make_query, make_call, gate):
    async def scenario():
        async with running_pool(*(ToyRolloutEngine(step_hook=gate) for _ in range(3))) as pool:
            gate.close()
            older = pool.admit(make_query(1, size=6, stream_id="arm"), make_call(received_s=1.0))
            other = pool.admit(make_query(2, stream_id="leg"), make_call(received_s=1.0))
            newer = pool.admit(make_query(3, stream_id="arm"), make_call(received_s=2.0))
            with pytest.raises(Superseded):
                pool.admit(make_query(4, stream_id="arm"), make_call(received_s=1.5))
            gate.open()
            with pytest.raises(Superseded):
                await pool.wait(older)
            assert len((await pool.wait(newer)).members) == len((await pool.wait(other)).members) == 1
            assert not pool._streams

    asyncio.run(scenario())


def test_a_job_that_finds_no_room_leaves_nothing_behind(make_query, make_call, gate):
    async def scenario():
        engines = [ToyRolloutEngine(step_hook=gate) for _ in range(2)]
        async with running_pool(*engines, max_pending_s=1.0) as pool:
            for worker in pool._workers:
                worker._cost.fit({rows: 0.05 * rows for rows in (1, 2, 4, 8, 16)})
            gate.close()
            held = pool._workers[1].admit(make_query(9, steps=15), make_call())
            with pytest.raises(Overloaded):
                pool.admit(make_query(1, size=6, steps=4), make_call())
            assert pool.num_jobs == 1
            gate.open()
            await pool._workers[1].wait(held)

    asyncio.run(scenario())


async def ask_again_while_one_device_is_full(gate, make_query, make_call):
    """Ask twice in a stream; the second time one of two devices has no room. Returns the first's members."""
    engines = [ToyRolloutEngine(step_hook=gate) for _ in range(2)]
    async with running_pool(*engines, max_pending_s=1.0) as pool:
        for worker in pool._workers:
            worker._cost.fit({rows: 0.05 * rows for rows in (1, 2, 4, 8, 16)})
        gate.close()
        older = pool.admit(make_query(1, size=4, stream_id="arm"), make_call(received_s=1.0))
        full = older.parts[1].worker
        held = full.admit(make_query(9, steps=11), make_call())
        with pytest.raises(Overloaded):
            pool.admit(make_query(2, size=8, steps=4, stream_id="arm"), make_call(received_s=2.0))
        gate.open()
        await full.wait(held)
        return (await pool.wait(older)).members


def test_a_job_that_one_device_refuses_replaces_nothing_on_another(running, make_query, make_call, gate):
    async def scenario():
        expected = await alone(running, make_query(1, size=4), make_call())
        members = await ask_again_while_one_device_is_full(gate, make_query, make_call)
        assert len(members) == 4
        assert all(map(np.array_equal, members, expected.members))

    asyncio.run(scenario())


def test_control_parts_that_replace_at_once_are_caught(make_query, make_call, gate, monkeypatch):
    monkeypatch.setattr(Share, "is_part", property(lambda share: False))
    with pytest.raises(Superseded):
        asyncio.run(ask_again_while_one_device_is_full(gate, make_query, make_call))


def test_the_parts_of_a_newer_job_may_take_the_room_of_those_that_they_replace(make_query, make_call, gate):
    async def scenario():
        async with running_pool(*(ToyRolloutEngine(step_hook=gate) for _ in range(2)), max_pending_s=1.0) as pool:
            for worker in pool._workers:
                worker._cost.fit({rows: 0.05 * rows for rows in (1, 2, 4, 8, 16)})
            gate.close()
            older = pool.admit(make_query(1, size=8, stream_id="arm"), make_call(received_s=1.0))
            with pytest.raises(Overloaded):
                pool.admit(make_query(2, size=8, stream_id="leg"), make_call(received_s=2.0))
            newer = pool.admit(make_query(3, size=8, stream_id="arm"), make_call(received_s=2.0))
            gate.open()
            with pytest.raises(Superseded):
                await pool.wait(older)
            assert len((await pool.wait(newer)).members) == 8

    asyncio.run(scenario())


class Clocked:
    """A step hook that takes a second of a fake clock for each forward."""

    def __init__(self, clock):
        self.clock = clock

    def __call__(self, rows):
        self.clock.now += 1.0


def test_a_job_without_time_for_every_step_is_not_split(make_query, make_call, fake_clock):
    async def scenario():
        engines = [ToyRolloutEngine(step_hook=Clocked(fake_clock)) for _ in range(2)]
        async with running_pool(*engines, clock=fake_clock) as pool:
            tight = make_call(received_s=fake_clock.now, deadline_s=fake_clock.now + 6.0)
            ticket = pool.admit(make_query(1, size=8, steps=10), tight)
            assert len(ticket.parts) == 1
            result = await pool.wait(ticket)
            assert result.members
            assert result.steps < 10

    asyncio.run(scenario())


@pytest.mark.parametrize("on_deadline", list(OnDeadline))
def test_a_deadline_leaves_a_prefix_or_a_refusal(running, make_query, make_call, fake_clock, on_deadline):
    query = make_query(1, size=32, steps=4)

    async def scenario():
        expected = await alone(running, query, make_call())
        engines = [ToyRolloutEngine(step_hook=Clocked(fake_clock)) for _ in range(2)]
        async with running_pool(*engines, clock=fake_clock) as pool:
            call = make_call(received_s=fake_clock.now, deadline_s=fake_clock.now + 9.0, on_deadline=on_deadline)
            try:
                result = await pool.submit(query, call)
            except DeadlineExceeded:
                return
            if result.steps == 4 and not result.is_estimate:
                assert all(map(np.array_equal, result.members, expected.members))

    asyncio.run(scenario())


def test_a_pool_is_as_ready_as_its_readiest_worker(make_query, make_call):
    async def scenario():
        async with running_pool(ToyRolloutEngine(), ToyRolloutEngine()) as pool:
            await pool._workers[0].stop(0.0)
            assert pool.is_ready
            assert len((await pool.submit(make_query(size=4), make_call())).members) == 4
            await pool._workers[1].stop(0.0)
            assert not pool.is_ready
            with pytest.raises(NotReady):
                pool.admit(make_query(), make_call())

    asyncio.run(scenario())


def test_a_ticket_of_one_device_is_refused_by_a_pool_and_the_other_way_round(running, make_query, make_call):
    async def scenario():
        async with running() as core, running_pool(ToyRolloutEngine()) as pool:
            single, pooled = core.worker.admit(make_query(), make_call()), pool.admit(make_query(), make_call())
            assert isinstance(pooled, PoolTicket)
            with pytest.raises(TypeError):
                pool.timings(single)
            with pytest.raises(TypeError):
                core.worker.timings(pooled)
            await core.worker.wait(single)
            assert (await pool.wait(pooled)).timings.denoise > 0

    asyncio.run(scenario())


def test_random_mixes_give_the_bytes_of_one_worker(running, make_query, make_call):
    rng = random.Random(0)
    queries = [make_query(seed, size=rng.randint(1, 12), steps=rng.randint(1, 5)) for seed in range(40)]

    async def scenario():
        async with running() as core:
            expected = [await core.worker.submit(query, make_call()) for query in queries]
        async with running_pool(*(ToyRolloutEngine() for _ in range(3))) as pool:
            results = await asyncio.gather(*(pool.submit(query, make_call()) for query in queries))
            assert all(map(same_result, results, expected))

    asyncio.run(scenario())


def test_the_mixes_catch_a_device_that_counts_its_members_from_its_own_first(running, make_query, make_call):
    query = make_query(1, size=8)

    async def scenario():
        expected = await alone(running, query, make_call())
        async with running_pool(ToyRolloutEngine(), ToyRolloutEngine()) as pool:
            ticket = pool.admit(query, make_call())
            ticket.parts.reverse()
            swapped = await pool.wait(ticket)
            assert same_result(swapped, expected)  # shares say whose members they are, not places
            assert not same_result(replace(swapped, members=swapped.members[::-1]), expected)

    asyncio.run(scenario())
