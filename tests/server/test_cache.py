import asyncio
import signal
import time
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from foreframe_engines.sampling import sample
from foreframe_engines.testing import ToyRolloutEngine
from foreframe_server.cache import CircuitBreaker, RedisTier, ResultCache, cache_key, connect_redis
from foreframe_server.calls import CacheResult
from foreframe_server.metrics import Metrics

SECRET = b"s" * 32
# A healthy Redis is given time, because these tests share their machine; a broken one gets the default 20 ms.
HEALTHY_TIMEOUT_S = 5.0


def healthy_tier(url, metrics=None, **limits):
    limits = {"secret": SECRET, "timeout_s": HEALTHY_TIMEOUT_S, **limits}
    return RedisTier(connect_redis(url, limits["timeout_s"]), metrics or Metrics(), **limits)


@pytest.fixture
def query(make_query):
    return make_query(size=3)


@pytest.fixture
def key(query):
    return cache_key(query, "toy")


@pytest.fixture
def prediction(query):
    return sample(ToyRolloutEngine(), query)


def events(metrics, tier="redis"):
    families = [family for family in metrics.registry.collect() if family.name == "foreframe_cache_events"]
    return {
        sample.labels["result"]: sample.value
        for family in families
        for sample in family.samples
        if sample.name.endswith("_total") and sample.labels["tier"] == tier
    }


def same(one, other):
    return one.members.tobytes() == other.members.tobytes() and one.variance.tobytes() == other.variance.tobytes()


def test_memory_hits_until_the_entry_is_too_old(query, key, prediction, fake_clock):
    async def scenario():
        cache = ResultCache(Metrics(), ttl_s=10.0, clock=fake_clock)
        assert (await cache.get(key, query)).result is CacheResult.MISS
        await cache.put(key, prediction)
        found = await cache.get(key, query)
        assert (found.prediction, found.result) == (prediction, CacheResult.HIT)
        fake_clock.now += 10.0
        assert (await cache.get(key, query)).result is CacheResult.MISS

    asyncio.run(scenario())


def test_memory_is_bounded_by_bytes(make_query, prediction):
    async def scenario():
        metrics = Metrics()
        size = sum(array.nbytes for array in (prediction.frames, prediction.members, prediction.variance))
        cache = ResultCache(metrics, max_bytes=2 * size)
        queries = [make_query(seed, size=3) for seed in range(3)]
        for each in queries:
            await cache.put(cache_key(each, "toy"), prediction)
        results = [(await cache.get(cache_key(each, "toy"), each)).result for each in queries]
        assert results == [CacheResult.MISS, CacheResult.HIT, CacheResult.HIT]
        assert events(metrics, "memory")["evicted"] == 1

    asyncio.run(scenario())


def test_what_is_kept_cannot_be_written_to(key, prediction):
    ResultCache(Metrics()).remember(key, prediction)
    with pytest.raises(ValueError, match="read-only"):
        prediction.frames[:] = 0


def test_replicas_share_predictions_through_redis(redis_server, query, key, prediction):
    async def scenario():
        metrics = Metrics()
        writer = ResultCache(Metrics(), redis=healthy_tier(redis_server.url))
        reader = ResultCache(metrics, redis=healthy_tier(redis_server.url, metrics))
        assert (await reader.get(key, query)).result is CacheResult.MISS
        await writer.put(key, prediction)
        found = await reader.get(key, query)
        assert found.result is CacheResult.HIT
        assert same(found.prediction, prediction)
        await reader.get(key, query)
        assert events(metrics) == {"miss": 1, "hit": 1}
        assert events(metrics, "memory")["hit"] == 1
        await writer.close()
        await reader.close()

    asyncio.run(scenario())


def test_entries_expire_in_redis(redis_server, query, key, prediction):
    async def scenario():
        tier = healthy_tier(redis_server.url, ttl_s=30.0)
        await tier.put(key, prediction)
        (name,) = await tier._client.keys("*")
        assert 0 < await tier._client.pttl(name) <= 30_000
        await tier.close()

    asyncio.run(scenario())


def test_an_entry_over_the_size_limit_is_not_sent(redis_server, query, key, prediction):
    async def scenario():
        metrics = Metrics()
        tier = healthy_tier(redis_server.url, metrics, max_entry_bytes=100)
        await tier.put(key, prediction)
        assert (await tier.get(key, query)).result is CacheResult.MISS
        assert events(metrics) == {"skipped": 1, "miss": 1}
        await tier.close()

    asyncio.run(scenario())


def swap(blob, other):
    return other


def cut(blob, other):
    return blob[: len(blob) // 2]


def flip(blob, other):
    return blob[:100] + bytes([blob[100] ^ 1]) + blob[101:]


def nonsense(blob, other):
    return b"nonsense"


@pytest.mark.parametrize("damage", [swap, cut, flip, nonsense])
def test_a_damaged_entry_is_counted_deleted_and_missed(redis_server, query, key, prediction, damage):
    async def scenario():
        metrics = Metrics()
        tier = healthy_tier(redis_server.url, metrics)
        other_query = replace(query, model="other")
        other_key = cache_key(other_query, "toy")
        await tier.put(key, prediction)
        await tier.put(other_key, prediction)
        names = {name: await tier._client.get(name) for name in await tier._client.keys("*")}
        (own,) = [name for name in names if key.digest.hex().encode() in name]
        (foreign,) = [blob for name, blob in names.items() if name != own]
        await tier._client.set(own, damage(names[own], foreign))
        found = await tier.get(key, query)
        assert (found.prediction, found.result) == (None, CacheResult.MISS)
        assert events(metrics)["corrupt"] == 1
        assert await tier._client.exists(own) == 0
        assert (await tier.get(other_key, other_query)).result is CacheResult.HIT
        await tier.close()

    asyncio.run(scenario())


def test_an_entry_of_another_secret_is_missed(redis_server, query, key, prediction):
    async def scenario():
        writer = healthy_tier(redis_server.url, secret=None)
        reader = healthy_tier(redis_server.url, secret=None)
        await writer.put(key, prediction)
        assert (await writer.get(key, query)).result is CacheResult.HIT
        assert (await reader.get(key, query)).result is CacheResult.MISS
        await writer.close()
        await reader.close()

    asyncio.run(scenario())


async def is_quiet_and_brief(cache, key, query, prediction):
    """Ask and store ten times; report whether every look was unavailable, and the seconds it all took."""
    started_s = time.monotonic()
    results = []
    for _ in range(10):
        results.append((await cache.get(key, query)).result)
        await cache.share(key, prediction)
    return set(results) == {CacheResult.UNAVAILABLE}, time.monotonic() - started_s


def check_broken_redis(url, query, key, prediction):
    async def scenario():
        metrics = Metrics()
        cache = ResultCache(metrics, redis=RedisTier.connect(url, metrics, secret=SECRET))
        is_quiet, duration_s = await is_quiet_and_brief(cache, key, query, prediction)
        assert is_quiet
        assert duration_s < 2.0
        assert events(metrics)["failed"] >= 5
        assert events(metrics)["failed"] + events(metrics)["skipped"] == 20
        assert events(metrics)["skipped"] >= 10
        await cache.close()

    asyncio.run(scenario())


def test_an_absent_redis_is_a_quiet_miss(tmp_path, query, key, prediction):
    check_broken_redis(f"unix://{tmp_path}/nothing.sock", query, key, prediction)


def test_a_killed_redis_is_a_quiet_miss(redis_server, query, key, prediction):
    redis_server.kill()
    check_broken_redis(redis_server.url, query, key, prediction)


def test_a_redis_that_hangs_is_a_quiet_miss(redis_server, query, key, prediction):
    redis_server.process.send_signal(signal.SIGSTOP)
    check_broken_redis(redis_server.url, query, key, prediction)


def test_the_client_of_redis_py_by_default_would_wait(redis_server, query, key):
    """The planted fault: without our time-outs, a Redis that hangs holds the caller."""

    async def scenario():
        redis_server.process.send_signal(signal.SIGSTOP)
        client = Redis.from_url(redis_server.url)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await client.get("anything")
        await client.aclose()

    asyncio.run(scenario())


def test_a_redis_that_comes_back_is_used_again(redis_server, query, key, prediction, fake_clock):
    async def scenario():
        metrics = Metrics()
        tier = healthy_tier(redis_server.url, metrics, timeout_s=0.2, clock=fake_clock)
        await tier.put(key, prediction)
        redis_server.process.send_signal(signal.SIGSTOP)
        for _ in range(5):
            await tier.get(key, query)
        assert not tier.is_available
        redis_server.process.send_signal(signal.SIGCONT)
        assert (await tier.get(key, query)).result is CacheResult.UNAVAILABLE
        fake_clock.now += 1.0
        tier._timeout_s = HEALTHY_TIMEOUT_S
        assert (await tier.get(key, query)).result is CacheResult.HIT
        assert tier.is_available
        await tier.close()

    asyncio.run(scenario())


def test_cancelled_calls_never_shift_answers(redis_server, make_query, prediction):
    async def scenario():
        metrics = Metrics()
        tier = healthy_tier(redis_server.url, metrics)
        queries = [make_query(seed, size=3) for seed in range(20)]
        for each in queries:
            await tier.put(cache_key(each, "toy"), sample(ToyRolloutEngine(), each))
        tasks = [asyncio.create_task(tier.get(cache_key(each, "toy"), each)) for each in queries * 5]
        for task in tasks[::3]:
            asyncio.get_running_loop().call_later(0.002, task.cancel)
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in queries:
            found = await tier.get(cache_key(each, "toy"), each)
            assert same(found.prediction, sample(ToyRolloutEngine(), each))
        assert "corrupt" not in events(metrics)
        await tier.close()

    asyncio.run(scenario())


def test_the_breaker_opens_after_five_failures_and_tries_once_a_second(fake_clock):
    breaker = CircuitBreaker(fake_clock)
    for _ in range(4):
        breaker.record(is_success=False)
    assert breaker.take_turn()
    breaker.record(is_success=False)
    assert breaker.is_open
    assert not breaker.take_turn()
    fake_clock.now += 1.0
    assert [breaker.take_turn(), breaker.take_turn()] == [True, False]
    breaker.record(is_success=True)
    assert not breaker.is_open
    assert breaker.take_turn()
