"""Whatever Redis does, a cache answers at once and with nothing wrong, and says what happened in its counters."""

import asyncio
import contextlib
import itertools
import time

import pytest
from redis.exceptions import ResponseError

from foreframe_server.cache import ResultCache
from foreframe_server.calls import CacheResult
from foreframe_server.metrics import Metrics

PATIENCE_S = 20
LONGEST_S = 0.5  # of one call; 20 ms and what a busy machine adds, where redis-py by default waits for seconds


class Watch:
    """The longest of the calls that went through it."""

    def __init__(self):
        self.longest_s = 0.0

    async def __call__(self, call):
        started_s = time.monotonic()
        result = await call
        self.longest_s = max(self.longest_s, time.monotonic() - started_s)
        return result


async def use(cache, key, members, *, times=10):
    """Look, claim, store and release; return what the looks gave."""
    watch = Watch()
    results = []
    for _ in range(times):
        results.append(await watch(cache.get(key)))
        lease = await watch(cache.lease(key))
        await watch(cache.share(key, members))
        if lease is not None:
            await watch(lease.release())
    assert watch.longest_s < LONGEST_S
    return results


async def until(is_reached):
    """Let the event loop turn until a condition holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not is_reached():
            await asyncio.to_thread(time.monotonic)


def kinds(results):
    return {found.result for found in results}


@pytest.fixture
def check_unavailable(connect_tier, make_key, make_members, events):
    async def check(url):
        metrics = Metrics()
        cache = ResultCache(metrics, redis=connect_tier(url, metrics, timeout_s=None))
        results = await use(cache, make_key(), make_members(3))
        assert kinds(results) == {CacheResult.UNAVAILABLE}
        counted = events(metrics)
        assert counted["failed"] >= 5
        assert counted["opened"] == 1
        assert counted["skipped"] >= 10
        await cache.close()

    return check


def test_absent(tmp_path, check_unavailable):
    asyncio.run(check_unavailable(f"unix://{tmp_path}/nothing.sock"))


@pytest.mark.parametrize("fault", ["kill", "hang"])
def test_dead_or_hung(redis_server, check_unavailable, fault):
    getattr(redis_server, fault)()
    asyncio.run(check_unavailable(redis_server.url))


def test_slow_trickling_silent_cut_or_reset_answers(redis_server, proxy_to, check_unavailable, fault):
    async def scenario():
        async with proxy_to(redis_server) as proxy:
            proxy.fault = fault
            await check_unavailable(proxy.url)

    asyncio.run(scenario())


def test_the_same_proxy_without_a_fault_is_a_hit(
    redis_server, proxy_to, connect_tier, make_key, make_members, harmless
):
    """The control: what makes the looks above fail is the fault and not the proxy."""

    async def scenario():
        async with proxy_to(redis_server) as proxy:
            proxy.fault = harmless
            tier = connect_tier(proxy.url)
            await tier.put(make_key(), make_members(3))
            assert (await tier.get(make_key())).members.tolist() == make_members(3).tolist()
            assert (await tier.lease(make_key())).is_held
            await tier.close()

    asyncio.run(scenario())


def test_garbage_is_never_served_and_never_raised(redis_server, proxy_to, connect_tier, make_key, make_members, events):
    async def scenario():
        async with proxy_to(redis_server) as proxy:
            metrics = Metrics()
            for seed in range(100):
                proxy.spoil(seed)
                cache = ResultCache(Metrics(), redis=connect_tier(proxy.url, metrics, timeout_s=None))
                results = await use(cache, make_key(), make_members(3), times=2)
                assert all(found.members is None for found in results)
                await cache.close()
            assert events(metrics)["failed"] > 100
            assert events(metrics)["corrupt"] > 0

    asyncio.run(scenario())


def entry_name(key):
    return f"foreframe:members:{key.digest.hex()}"


@pytest.fixture
def store_all(redis_server, connect_tier, make_key, make_members):
    """Store the members of keys 0..count-1; return their bytes."""

    async def store(count):
        tier = connect_tier(redis_server.url)
        for number in range(count):
            await tier.put(make_key(number), make_members(3, number))
        blobs = [await tier._link._client.get(entry_name(make_key(number))) for number in range(count)]
        await tier.close()
        return blobs

    return store


def test_answers_to_other_questions_are_all_found_out(
    redis_server, proxy_to, connect_tier, make_key, store_all, events
):
    async def scenario():
        metrics = Metrics()
        *_, stale = await store_all(51)
        async with proxy_to(redis_server) as proxy:
            for number in range(50):
                proxy.shift(stale)
                tier = connect_tier(proxy.url, metrics)
                found = await tier.get(make_key(number))
                assert (found.members, found.result) == (None, CacheResult.MISS)
                await tier.close()
        assert events(metrics)["corrupt"] == 50

    asyncio.run(scenario())


def test_a_reader_that_does_not_look_would_take_them(redis_server, proxy_to, connect_tier, make_key, store_all):
    """The planted fault for the test above and the one below."""

    async def scenario():
        blobs = await store_all(4)
        async with proxy_to(redis_server) as proxy:
            proxy.shift(blobs[3])
            tier = connect_tier(proxy.url)
            read = [await tier._link._client.get(entry_name(make_key(number))) for number in range(3)]
            assert read == [blobs[3], blobs[0], blobs[1]]
            await tier.close()

    asyncio.run(scenario())


def test_a_connection_that_answered_another_question_is_dropped(
    redis_server, proxy_to, connect_tier, make_key, make_members, store_all
):
    async def scenario():
        _, stale = await store_all(2)
        async with proxy_to(redis_server) as proxy:
            proxy.shift(stale)
            tier = connect_tier(proxy.url)
            looking = asyncio.create_task(tier.get(make_key(0)))
            await until(lambda: proxy.connections)
            proxy.pass_on()
            assert (await looking).result is CacheResult.MISS
            assert (await tier.get(make_key(1))).members.tolist() == make_members(3, 1).tolist()
            assert len(proxy.connections) == 2
            await tier.close()

    asyncio.run(scenario())


async def fill(client):
    """Store what is nobody's until not even a little more fits."""
    for size in (50_000, 1000, 20):
        with contextlib.suppress(ResponseError):
            for number in itertools.count():
                await client.set(f"other:{size}:{number}", bytes(size))


def test_full_and_refusing_to_evict(start_redis, connect_tier, make_key, make_members, events):
    async def scenario():
        redis = start_redis("--maxmemory", "4mb", "--maxmemory-policy", "noeviction")
        metrics = Metrics()
        cache = ResultCache(Metrics(), redis=connect_tier(redis.url, metrics))
        await cache.share(make_key(), make_members(3))
        held = await cache.lease(make_key())
        await fill(cache._redis._link._client)
        assert kinds(await use(cache, make_key(), make_members(20))) == {CacheResult.HIT}
        assert kinds(await use(cache, make_key(1), make_members(20))) == {CacheResult.MISS}
        assert await cache.lease(make_key(1)) is None
        await held.release()
        assert "opened" not in events(metrics)
        assert events(metrics)["failed"] >= 20
        await cache.close()

    asyncio.run(scenario())


def test_evicting(start_redis, connect_tier, make_key, make_members, events):
    async def scenario():
        redis = start_redis("--maxmemory", "4mb", "--maxmemory-policy", "allkeys-lru")
        metrics = Metrics()
        tier = connect_tier(redis.url, metrics)
        large = make_members(1).repeat(200, axis=0)
        for number in range(300):
            await tier.put(make_key(number), large)
        looks = [await tier.get(make_key(number)) for number in range(300)]
        assert kinds(looks) == {CacheResult.HIT, CacheResult.MISS}
        assert all(found.members is None or found.members.tobytes() == large.tobytes() for found in looks)
        counted = events(metrics)
        assert counted == {"stored": 300, "hit": counted["hit"], "miss": 300 - counted["hit"]}
        await tier.close()

    asyncio.run(scenario())


def test_without_the_right_to_run_scripts_nothing_is_stored_and_the_rest_works(
    start_redis, connect_tier, make_key, make_members
):
    async def scenario():
        redis = start_redis("--rename-command", "EVAL", "")
        cache = ResultCache(Metrics(), redis=connect_tier(redis.url))
        assert kinds(await use(cache, make_key(), make_members(3), times=1)) == {CacheResult.MISS}
        assert not (await cache.lease(make_key())).is_held
        assert (await cache.get(make_key())).result is CacheResult.MISS
        await cache.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("fault", ["kill", "hang"])
def test_going_away_and_coming_back_under_load(redis_server, connect_tier, make_key, make_members, fault, events):
    """Ten callers at once: no wrong answer, no long one, and Redis is used again after it is back."""

    async def scenario():
        metrics = Metrics()
        tier = connect_tier(redis_server.url, metrics, timeout_s=None)
        cache = ResultCache(Metrics(), max_bytes=0, redis=tier)
        watch = Watch()
        is_over = asyncio.Event()

        async def keep_asking(number):
            while not is_over.is_set():
                members = make_members(2, number)
                found = await watch(cache.get(make_key(number)))
                assert found.members is None or found.members.tolist() == members.tolist()
                await watch(cache.share(make_key(number), members))
                await asyncio.sleep(0.005)

        callers = [asyncio.create_task(keep_asking(number)) for number in range(10)]
        await until(lambda: events(metrics).get("hit", 0) > 20)
        await asyncio.to_thread(getattr(redis_server, fault))
        await until(lambda: events(metrics).get("skipped", 0) > 50)
        before = events(metrics)["hit"]
        await asyncio.to_thread(redis_server.start if fault == "kill" else redis_server.go_on)
        await until(lambda: events(metrics)["hit"] > before + 20)
        is_over.set()
        await asyncio.gather(*callers)
        assert watch.longest_s < LONGEST_S
        await cache.close()

    asyncio.run(scenario())
