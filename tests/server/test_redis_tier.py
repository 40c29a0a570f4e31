import asyncio
import random

import numpy as np
import pytest

from foreframe_server.calls import CacheResult
from foreframe_server.metrics import Metrics


async def names(tier):
    return await tier._link._client.keys("*")


async def raw(tier, *command):
    return await tier._link._client.execute_command(*command)


def test_entries_expire_in_redis(redis_server, connect_tier, make_key, make_members):
    async def scenario():
        tier = connect_tier(redis_server.url, ttl_s=30.0)
        await tier.put(make_key(), make_members(2))
        (name,) = await names(tier)
        assert 0 < await raw(tier, "PTTL", name) <= 30_000
        await tier.close()

    asyncio.run(scenario())


def test_an_entry_only_grows_and_lives_on_when_it_is_computed_again(
    redis_server, connect_tier, make_key, make_members, events
):
    async def scenario():
        metrics = Metrics()
        tier = connect_tier(redis_server.url, metrics)
        await tier.put(make_key(), make_members(3))
        await tier.put(make_key(), make_members(5))
        (name,) = await names(tier)
        for count in (4, 5):
            await raw(tier, "PEXPIRE", name, 1000)
            await tier.put(make_key(), make_members(count))
            assert await raw(tier, "PTTL", name) > 1000
        assert (await tier.get(make_key())).members.tolist() == make_members(5).tolist()
        assert events(metrics) == {"stored": 2, "kept": 2, "hit": 1}
        await tier.close()

    asyncio.run(scenario())


def test_of_many_writers_at_once_the_longest_stays(redis_server, connect_tier, make_key, make_members):
    async def scenario():
        tiers = [connect_tier(redis_server.url) for _ in range(2)]
        counts = [*range(1, 21)] * 2
        random.Random(0).shuffle(counts)
        await asyncio.gather(*(tiers[at % 2].put(make_key(), make_members(count)) for at, count in enumerate(counts)))
        assert (await tiers[0].get(make_key())).members.tolist() == make_members(20).tolist()
        for tier in tiers:
            await tier.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("planted", [("SET", b"short"), ("SET", b"x" * 5000), ("LPUSH", b"item")])
def test_what_is_no_entry_is_replaced_by_one(redis_server, connect_tier, make_key, make_members, planted):
    async def scenario():
        tier = connect_tier(redis_server.url)
        await tier.put(make_key(), make_members(1))
        (name,) = await names(tier)
        await raw(tier, "DEL", name)
        await raw(tier, planted[0], name, planted[1])
        await tier.put(make_key(), make_members(2))
        assert (await tier.get(make_key())).members.tolist() == make_members(2).tolist()
        await tier.close()

    asyncio.run(scenario())


def test_an_entry_whose_first_member_is_over_the_size_limit_is_not_sent(
    redis_server, connect_tier, make_key, make_members, events
):
    async def scenario():
        metrics = Metrics()
        tier = connect_tier(redis_server.url, metrics, max_entry_bytes=make_members(1).nbytes - 1)
        await tier.put(make_key(), make_members(2))
        assert (await tier.get(make_key())).result is CacheResult.MISS
        assert events(metrics) == {"skipped": 1, "miss": 1}
        await tier.close()

    asyncio.run(scenario())


def test_of_an_ensemble_over_the_size_limit_the_first_members_are_sent(
    redis_server, connect_tier, make_key, make_members
):
    async def scenario():
        members = make_members(5)
        tier = connect_tier(redis_server.url, max_entry_bytes=3 * members[0].nbytes + 1)
        await tier.put(make_key(), members)
        assert np.array_equal((await tier.get(make_key())).members, members[:3])
        await tier.close()

    asyncio.run(scenario())


def test_an_entry_of_another_secret_is_missed(redis_server, connect_tier, make_key, make_members):
    async def scenario():
        writer, reader = (connect_tier(redis_server.url, secret=None) for _ in range(2))
        await writer.put(make_key(), make_members(2))
        assert (await writer.get(make_key())).result is CacheResult.HIT
        assert (await reader.get(make_key())).result is CacheResult.MISS
        await writer.close()
        await reader.close()

    asyncio.run(scenario())


def test_cancelled_calls_never_shift_answers(redis_server, connect_tier, make_key, make_members, events):
    async def scenario():
        metrics = Metrics()
        tier = connect_tier(redis_server.url, metrics)
        for number in range(20):
            await tier.put(make_key(number), make_members(2, number))
        tasks = [asyncio.create_task(tier.get(make_key(number))) for number in [*range(20)] * 5]
        for task in tasks[::3]:
            asyncio.get_running_loop().call_later(0.002, task.cancel)
        await asyncio.gather(*tasks, return_exceptions=True)
        for number in range(20):
            assert (await tier.get(make_key(number))).members.tolist() == make_members(2, number).tolist()
        assert "corrupt" not in events(metrics)
        await tier.close()

    asyncio.run(scenario())
