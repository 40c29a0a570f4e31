"""Servers that share one Redis compute an ensemble once, also when the one that computes dies."""

import asyncio
import contextlib
import subprocess
import sys

import pytest

from foreframe_server.cache import ResultCache
from foreframe_server.metrics import Metrics

PATIENCE_S = 20


class Replica:
    """A cache and a device that takes its time; `asks_for_leases` is how it should be used."""

    def __init__(self, cache, make_members, *, asks_for_leases=True):
        self.cache = cache
        self.make_members = make_members
        self.asks_for_leases = asks_for_leases
        self.num_computed = 0

    async def ask(self, key, size):
        """Answer with members 0..size-1."""
        members = await self.find(key, size)
        if members is not None:
            return members
        async with self.claiming(key) as lease:
            members = None if lease is None else await self.find(key, size)
            return await self.compute(key, size) if members is None else members

    async def find(self, key, size):
        found = (await self.cache.get(key, at_least=size)).members
        return None if found is None or len(found) < size else found[:size]

    @contextlib.asynccontextmanager
    async def claiming(self, key):
        lease = await self.cache.lease(key) if self.asks_for_leases else None
        while lease is not None and not lease.is_held:
            await lease.wait(PATIENCE_S)
            lease = await self.cache.lease(key)
        try:
            yield lease
        finally:
            if lease is not None:
                await lease.release()

    async def compute(self, key, size):
        kept = self.cache.recall(key)
        num_kept = 0 if kept is None else len(kept)
        self.num_computed += size - num_kept
        await asyncio.sleep(0.05)
        members = self.make_members(size)
        assert kept is None or members[:num_kept].tolist() == kept.tolist()
        self.cache.remember(key, members)
        await self.cache.share(key, members)
        return members


@pytest.fixture
def replicas(redis_server, connect_tier, make_members):
    def run(scenario, *, asks_for_leases=True, lease_ttl_s=2.0):
        async def connected():
            caches = [
                ResultCache(Metrics(), redis=connect_tier(redis_server.url, lease_ttl_s=lease_ttl_s)) for _ in range(2)
            ]
            both = [Replica(cache, make_members, asks_for_leases=asks_for_leases) for cache in caches]
            try:
                await scenario(*both)
            finally:
                for cache in caches:
                    await cache.close()

        asyncio.run(connected())

    return run


@pytest.mark.parametrize("asks_for_leases", [True, False])
def test_two_that_are_asked_at_once_compute_once(replicas, make_key, make_members, asks_for_leases):
    """Without leases, the planted fault, both compute."""

    async def scenario(one, other):
        answers = await asyncio.gather(one.ask(make_key(), 5), other.ask(make_key(), 5))
        assert all(answer.tolist() == make_members(5).tolist() for answer in answers)
        assert one.num_computed + other.num_computed == (5 if asks_for_leases else 10)

    replicas(scenario, asks_for_leases=asks_for_leases)


def test_what_one_began_the_other_completes(replicas, make_key, make_members):
    async def scenario(one, other):
        await one.ask(make_key(), 12)
        assert (await other.ask(make_key(), 20)).tolist() == make_members(20).tolist()
        assert (one.num_computed, other.num_computed) == (12, 8)
        assert (await one.ask(make_key(), 20)).tolist() == make_members(20).tolist()
        assert (await one.ask(make_key(), 7)).tolist() == make_members(7).tolist()
        assert (one.num_computed, other.num_computed) == (12, 8)

    replicas(scenario)


def test_sizes_asked_for_at_once_share_what_they_have_in_common(replicas, make_key):
    async def scenario(one, other):
        sizes = (3, 8, 5, 8)
        answers = await asyncio.gather(
            *(replica.ask(make_key(), size) for replica, size in zip((one, other) * 2, sizes, strict=True))
        )
        assert tuple(map(len, answers)) == sizes
        assert one.num_computed + other.num_computed == 8

    replicas(scenario)


def test_when_the_one_that_computes_is_killed_the_other_takes_over(replicas, redis_server, make_key, make_members):
    code = f"""
import asyncio
from foreframe_server.cache import RedisTier, connect_redis
from foreframe_server.entry import CacheKey
from foreframe_server.metrics import Metrics

async def compute_for_ever():
    tier = RedisTier(connect_redis("{redis_server.url}", 5.0), Metrics(), timeout_s=5.0, lease_ttl_s=0.5)
    lease = await tier.lease(CacheKey(bytes.fromhex("{make_key().digest.hex()}")))
    print(lease.is_held, flush=True)
    await asyncio.Event().wait()

asyncio.run(compute_for_ever())
"""

    async def scenario(one, other):
        assert await asyncio.to_thread(process.stdout.readline) == "True\n"
        waiting = [asyncio.create_task(replica.ask(make_key(), 5)) for replica in (one, other)]
        done, _ = await asyncio.wait(waiting, timeout=1.0)
        assert not done
        process.kill()
        async with asyncio.timeout(PATIENCE_S):
            answers = await asyncio.gather(*waiting)
        assert all(answer.tolist() == make_members(5).tolist() for answer in answers)
        assert one.num_computed + other.num_computed == 5

    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            replicas(scenario, lease_ttl_s=0.5)
        finally:
            process.kill()


def test_when_redis_dies_both_compute_alone(replicas, redis_server, make_key, make_members):
    async def scenario(one, other):
        redis_server.kill()
        answers = await asyncio.gather(one.ask(make_key(), 5), other.ask(make_key(), 5))
        assert all(answer.tolist() == make_members(5).tolist() for answer in answers)
        assert one.num_computed + other.num_computed == 10

    replicas(scenario)
