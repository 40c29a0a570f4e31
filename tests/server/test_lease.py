import asyncio
import time

import pytest

from foreframe_server.metrics import Metrics

PATIENCE_S = 20


async def raw(tier, *command):
    return await tier._link._client.execute_command(*command)


async def until(condition):
    """Let the event loop turn until a condition holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.to_thread(time.monotonic)


@pytest.fixture
def replicas(redis_server, connect_tier):
    """Run a scenario on two tiers of one Redis."""

    def run(scenario, **options):
        async def connected():
            one, other = (connect_tier(redis_server.url, **options) for _ in range(2))
            try:
                await scenario(one, other)
            finally:
                await one.close()
                await other.close()

        asyncio.run(connected())

    return run


def test_one_of_two_holds_a_lease_and_the_other_waits_for_it(replicas, make_key):
    async def scenario(one, other):
        held, awaited = await one.lease(make_key()), await other.lease(make_key())
        assert (held.is_held, awaited.is_held) == (True, False)
        waiting = asyncio.create_task(awaited.wait(PATIENCE_S))
        await awaited.wait(0.1)
        assert not waiting.done()
        await held.release()
        await waiting
        assert not held.is_held
        assert (await other.lease(make_key())).is_held

    replicas(scenario)


def test_leases_on_other_keys_are_free(replicas, make_key):
    async def scenario(one, other):
        leases = [await one.lease(make_key(0)), await other.lease(make_key(1))]
        assert all(lease.is_held for lease in leases)

    replicas(scenario)


def test_who_holds_a_lease_does_not_wait(replicas, make_key):
    async def scenario(one, other):
        lease = await one.lease(make_key())
        async with asyncio.timeout(PATIENCE_S):
            await lease.wait(10 * PATIENCE_S)

    replicas(scenario)


@pytest.mark.parametrize("timeout_s", [-1.0, 0.0, 0.05])
def test_waiting_ends_when_time_is_up(replicas, make_key, timeout_s):
    async def scenario(one, other):
        held, awaited = await one.lease(make_key()), await other.lease(make_key())
        async with asyncio.timeout(PATIENCE_S):
            await awaited.wait(timeout_s)
        assert held.is_held
        assert not (await other.lease(make_key())).is_held

    replicas(scenario)


def test_a_lease_outlives_its_time_to_live_while_it_is_held(replicas, make_key):
    async def scenario(one, other):
        held, awaited = await one.lease(make_key()), await other.lease(make_key())
        await awaited.wait(3.0)
        assert held.is_held
        assert not (await other.lease(make_key())).is_held

    replicas(scenario, lease_ttl_s=1.0)


def test_the_lease_of_a_holder_that_no_longer_renews_runs_out(replicas, make_key):
    """The planted fault for the test above: renewal stops, as it does in a replica that dies."""

    async def scenario(one, other):
        held, awaited = await one.lease(make_key()), await other.lease(make_key())
        held._renewal.cancel()
        await awaited.wait(PATIENCE_S)
        assert (await other.lease(make_key())).is_held
        await held.release()
        assert not (await one.lease(make_key())).is_held

    replicas(scenario, lease_ttl_s=0.3)


def test_a_lease_that_was_lost_says_so_and_releases_nothing(replicas, make_key):
    async def scenario(one, other):
        lost = await one.lease(make_key())
        await raw(one, "FLUSHALL")
        held = await other.lease(make_key())
        await until(lambda: not lost.is_held)
        await lost.release()
        assert held.is_held
        assert not (await one.lease(make_key())).is_held

    replicas(scenario, lease_ttl_s=1.0)


def test_closing_frees_what_is_held(redis_server, connect_tier, make_key):
    async def scenario():
        one, other = (connect_tier(redis_server.url) for _ in range(2))
        leases = [await one.lease(make_key(number)) for number in range(3)]
        await one.close()
        assert not any(lease.is_held for lease in leases)
        assert all([(await other.lease(make_key(number))).is_held for number in range(3)])
        await other.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("fault", ["kill", "hang"])
def test_a_redis_that_goes_away_stops_neither_holder_nor_waiter(redis_server, connect_tier, make_key, fault):
    async def scenario():
        one, other = (connect_tier(redis_server.url, timeout_s=0.2) for _ in range(2))
        held, awaited = await one.lease(make_key()), await other.lease(make_key())
        getattr(redis_server, fault)()
        async with asyncio.timeout(PATIENCE_S):
            await awaited.wait(10 * PATIENCE_S)
            await held.release()
            assert await other.lease(make_key()) is None
            await one.close()
            await other.close()

    asyncio.run(scenario())


def test_after_a_failure_no_time_is_spent_on_leases(redis_server, connect_tier, make_key, events):
    async def scenario():
        metrics = Metrics()
        tier = connect_tier(redis_server.url, metrics)
        redis_server.kill()
        await tier.get(make_key())
        assert await tier.lease(make_key()) is None
        assert events(metrics) == {"failed": 1}
        redis_server.start()
        await tier.get(make_key())
        assert (await tier.lease(make_key())).is_held
        assert events(metrics) == {"failed": 1, "miss": 1, "leased": 1}
        await tier.close()

    asyncio.run(scenario())
