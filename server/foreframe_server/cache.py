"""Ensembles that were computed before: in this process first, then in a Redis that all replicas share.

An entry is the first members of an ensemble, so of two entries of one key the longer contains the shorter: a cache
only grows, and a request for more computes the rest. It knows no queries and no reducers.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from foreframe_server.calls import CacheResult
from foreframe_server.entry import CacheKey, Members, cache_key
from foreframe_server.lease import Lease
from foreframe_server.lru import LruBytes
from foreframe_server.metrics import Metrics
from foreframe_server.redis_link import connect_redis
from foreframe_server.redis_tier import Lookup, RedisTier

__all__ = ["CacheKey", "Lease", "Lookup", "Members", "RedisTier", "ResultCache", "cache_key", "connect_redis"]


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    members: Members
    expires_s: float


class ResultCache:
    """Two tiers of members. `remember` and `recall` never wait; the shared tier is optional."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        max_bytes: int = 256 * 2**20,
        ttl_s: float = 600.0,
        redis: RedisTier | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._ttl_s = ttl_s
        self._redis = redis
        self._clock = clock
        self._kept: LruBytes[_Kept] = LruBytes(max_bytes)

    def recall(self, key: CacheKey) -> Members | None:
        """Return what is kept in memory."""
        members = self._find(key)
        self._metrics.count_cache("memory", "miss" if members is None else "hit")
        return members

    async def get(self, key: CacheKey, at_least: int = 1) -> Lookup:
        """Look in memory and, if there are fewer than `at_least` members, in Redis; the longer wins. Never raises."""
        members = self.recall(key)
        if self._redis is None or len(members if members is not None else ()) >= at_least:
            return Lookup(members, CacheResult.MISS if members is None else CacheResult.HIT)
        lookup = await self._redis.get(key)
        if lookup.members is not None:
            self.remember(key, lookup.members)
        longest = _longer(members, lookup.members)
        return lookup if longest is lookup.members else Lookup(longest, CacheResult.HIT)

    def remember(self, key: CacheKey, members: Members) -> None:
        """Keep members in memory unless more are kept; the array becomes read-only."""
        members.flags.writeable = False
        kept = self._find(key)
        longest = members if kept is None or len(kept) < len(members) else kept
        num_evicted = self._kept.put(key.digest, _Kept(longest, self._clock() + self._ttl_s), longest.nbytes)
        self._metrics.count_cache("memory", "kept" if longest is kept else "stored")
        for _ in range(num_evicted):
            self._metrics.count_cache("memory", "evicted")

    async def share(self, key: CacheKey, members: Members) -> None:
        """Store members in Redis, where there is one and fewer are stored. Never raises."""
        if self._redis is not None:
            await self._redis.put(key, members)

    async def lease(self, key: CacheKey) -> Lease | None:
        """Claim the computing of a key among all replicas; None: compute alone. Never raises.

        A lease that is not held is another's: wait for it and ask again. Once it is held, look again before computing,
        because another may just have shared; release it after `share`.
        """
        return None if self._redis is None else await self._redis.lease(key)

    async def check(self) -> None:
        """Say in the log when Redis does not answer. Never raises, and never waits long."""
        if self._redis is not None:
            await self._redis.check()

    async def close(self) -> None:
        """Forget everything here and hang up on Redis."""
        self._kept = LruBytes(0)
        if self._redis is not None:
            await self._redis.close()

    def _find(self, key: CacheKey) -> Members | None:
        kept = self._kept.get(key.digest)
        if kept is not None and kept.expires_s <= self._clock():
            self._kept.pop(key.digest)
            return None
        return None if kept is None else kept.members


def _longer(one: Members | None, other: Members | None) -> Members | None:
    if one is None or other is None:
        return other if one is None else one
    return one if len(one) > len(other) else other
