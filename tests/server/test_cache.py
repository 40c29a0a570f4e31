import asyncio

import pytest

from foreframe_server.cache import ResultCache
from foreframe_server.calls import CacheResult
from foreframe_server.metrics import Metrics


def test_memory_hits_until_the_entry_is_too_old(make_key, make_members, fake_clock):
    async def scenario():
        cache = ResultCache(Metrics(), ttl_s=10.0, clock=fake_clock)
        assert (await cache.get(make_key())).result is CacheResult.MISS
        members = make_members(3)
        cache.remember(make_key(), members)
        found = await cache.get(make_key())
        assert found.members is members
        assert found.result is CacheResult.HIT
        fake_clock.now += 10.0
        assert cache.recall(make_key()) is None
        assert (await cache.get(make_key())).result is CacheResult.MISS

    asyncio.run(scenario())


def test_memory_is_bounded_by_bytes(make_key, make_members, events):
    metrics = Metrics()
    cache = ResultCache(metrics, max_bytes=2 * make_members(3).nbytes)
    for number in range(3):
        cache.remember(make_key(number), make_members(3, number))
    assert [cache.recall(make_key(number)) is not None for number in range(3)] == [False, True, True]
    assert events(metrics, "memory") == {"stored": 3, "evicted": 1, "miss": 1, "hit": 2}


def test_what_is_kept_cannot_be_written_to(make_key, make_members):
    members = make_members(3)
    ResultCache(Metrics()).remember(make_key(), members)
    with pytest.raises(ValueError, match="read-only"):
        members[:] = 0


@pytest.mark.parametrize("counts", [(3, 5), (5, 3)])
def test_memory_keeps_the_longer_of_two(make_key, make_members, events, fake_clock, counts):
    metrics = Metrics()
    cache = ResultCache(metrics, ttl_s=10.0, clock=fake_clock)
    cache.remember(make_key(), make_members(counts[0]))
    fake_clock.now += 9.0
    cache.remember(make_key(), make_members(counts[1]))
    fake_clock.now += 9.0
    assert cache.recall(make_key()).tolist() == make_members(5).tolist()
    assert events(metrics, "memory").get("kept", 0) == (counts[0] > counts[1])


def test_a_replica_that_has_too_few_finds_more_in_redis(redis_server, connect_tier, make_key, make_members):
    async def scenario():
        one, other = (ResultCache(Metrics(), redis=connect_tier(redis_server.url)) for _ in range(2))
        one.remember(make_key(), make_members(3))
        await other.share(make_key(), make_members(5))
        assert len((await one.get(make_key())).members) == 3
        found = await one.get(make_key(), at_least=4)
        assert found.result is CacheResult.HIT
        assert found.members.tolist() == make_members(5).tolist()
        assert len(one.recall(make_key())) == 5
        await one.close()
        await other.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("is_redis_there", [True, False])
def test_too_few_in_memory_are_better_than_none(
    redis_server, connect_tier, make_key, make_members, is_redis_there, events
):
    async def scenario():
        metrics = Metrics()
        cache = ResultCache(Metrics(), redis=connect_tier(redis_server.url, metrics))
        await cache.share(make_key(), make_members(2))
        cache.remember(make_key(), make_members(3))
        if not is_redis_there:
            redis_server.kill()
        found = await cache.get(make_key(), at_least=20)
        assert (len(found.members), found.result) == (3, CacheResult.HIT)
        assert events(metrics).get("failed", 0) == (not is_redis_there)
        await cache.close()

    asyncio.run(scenario())


def test_replicas_share_members_through_redis(redis_server, connect_tier, make_key, make_members, events):
    async def scenario():
        metrics = Metrics()
        writer = ResultCache(Metrics(), redis=connect_tier(redis_server.url))
        reader = ResultCache(metrics, redis=connect_tier(redis_server.url, metrics))
        assert (await reader.get(make_key())).result is CacheResult.MISS
        await writer.share(make_key(), make_members(3))
        found = await reader.get(make_key())
        assert found.result is CacheResult.HIT
        assert found.members.tolist() == make_members(3).tolist()
        await reader.get(make_key())
        assert events(metrics) == {"miss": 1, "hit": 1}
        assert events(metrics, "memory")["hit"] == 1
        await writer.close()
        await reader.close()

    asyncio.run(scenario())


def test_with_memory_turned_off_redis_still_answers(redis_server, connect_tier, make_key, make_members):
    async def scenario():
        cache = ResultCache(Metrics(), max_bytes=0, redis=connect_tier(redis_server.url))
        await cache.share(make_key(), make_members(3))
        cache.remember(make_key(), make_members(3))
        assert cache.recall(make_key()) is None
        assert len((await cache.get(make_key())).members) == 3
        await cache.close()

    asyncio.run(scenario())


def test_a_cache_without_redis_gives_no_lease(make_key, make_members):
    async def scenario():
        cache = ResultCache(Metrics())
        assert await cache.lease(make_key()) is None
        await cache.share(make_key(), make_members(1))
        assert (await cache.get(make_key())).result is CacheResult.MISS

    asyncio.run(scenario())
