"""Predictions that were computed before: in this process first, then in a Redis that all replicas share.

Redis may be absent, slow, full or lying. A broken cache is a miss and a metric, never an error and never a wait.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from foreframe_engines import Prediction, Query
from foreframe_server.calls import CacheResult
from foreframe_server.entry import CacheKey, CorruptEntry, cache_key, decode_entry, encode_entry
from foreframe_server.lru import LruBytes
from foreframe_server.metrics import Metrics

__all__ = ["CacheKey", "CircuitBreaker", "Lookup", "RedisTier", "ResultCache", "cache_key"]

_KEY_PREFIX = b"foreframe:prediction:"
_MAX_CONNECTIONS = 16


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """What a look into the cache gave: a prediction on `hit`, nothing on `miss` and `unavailable`."""

    prediction: Prediction | None
    result: CacheResult


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    prediction: Prediction
    expires_s: float


@dataclass(frozen=True, slots=True)
class _Reply:
    is_success: bool
    value: bytes | None = None


class CircuitBreaker:
    """Stops calling what fails: open after `max_failures` in a row, then one try every `probe_after_s`."""

    def __init__(self, clock: Callable[[], float], *, max_failures: int = 5, probe_after_s: float = 1.0) -> None:
        self._clock = clock
        self._max_failures = max_failures
        self._probe_after_s = probe_after_s
        self._num_failures = 0
        self._probe_s = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the last calls failed."""
        return self._num_failures >= self._max_failures

    def take_turn(self) -> bool:
        """Ask whether to call now; while open, a yes is given once a probe interval."""
        if not self.is_open:
            return True
        if self._clock() < self._probe_s:
            return False
        self._probe_s = self._clock() + self._probe_after_s
        return True

    def record(self, *, is_success: bool) -> None:
        """Book how a call went."""
        self._num_failures = 0 if is_success else self._num_failures + 1
        if self.is_open:
            self._probe_s = self._clock() + self._probe_after_s


class RedisTier:
    """Predictions in Redis: one short try a call, signed entries, a breaker."""

    def __init__(  # noqa: PLR0913 - one keyword a limit
        self,
        client: Redis,
        metrics: Metrics,
        *,
        secret: bytes | None = None,
        ttl_s: float = 600.0,
        timeout_s: float = 0.02,
        max_entry_bytes: int = 8 * 2**20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._metrics = metrics
        self._secret = secret or secrets.token_bytes(32)
        self._ttl_s = ttl_s
        self._timeout_s = timeout_s
        self._max_entry_bytes = max_entry_bytes
        self._breaker = CircuitBreaker(clock)

    @classmethod
    def connect(cls, url: str, metrics: Metrics, *, secret: bytes | None = None, ttl_s: float = 600.0) -> Self:
        """Make a tier on a Redis URL; nothing is sent before the first call."""
        return cls(connect_redis(url), metrics, secret=secret, ttl_s=ttl_s)

    @property
    def is_available(self) -> bool:
        """Whether the last calls went through."""
        return not self._breaker.is_open

    async def get(self, key: CacheKey, query: Query) -> Lookup:
        """Look a query up. A broken entry is deleted and missed."""
        reply = await self._call(lambda: self._client.get(_redis_key(key)))
        if not reply.is_success:
            return Lookup(None, CacheResult.UNAVAILABLE)
        if reply.value is None:
            return self._missed("miss")
        try:
            prediction = await asyncio.to_thread(decode_entry, key, query, reply.value, self._secret)
        except CorruptEntry:
            await self._call(lambda: self._client.delete(_redis_key(key)))
            return self._missed("corrupt")
        self._metrics.count_cache("redis", "hit")
        return Lookup(prediction, CacheResult.HIT)

    async def put(self, key: CacheKey, prediction: Prediction) -> None:
        """Store a prediction, unless it is too large or Redis does not answer in time."""
        blob = await asyncio.to_thread(encode_entry, key, prediction, self._secret)
        if len(blob) > self._max_entry_bytes:
            self._metrics.count_cache("redis", "skipped")
            return
        ttl_ms = int(1000 * self._ttl_s)
        reply = await self._call(lambda: self._client.set(_redis_key(key), blob, px=ttl_ms))
        if reply.is_success:
            self._metrics.count_cache("redis", "stored")

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()
        await self._client.connection_pool.aclose()

    def _missed(self, event: str) -> Lookup:
        self._metrics.count_cache("redis", event)
        return Lookup(None, CacheResult.MISS)

    async def _call(self, command: Callable[[], Awaitable[object]]) -> _Reply:
        if not self._breaker.take_turn():
            self._metrics.count_cache("redis", "skipped")
            return _Reply(is_success=False)
        try:
            # Connecting and calling have a limit each; this one bounds both and the wait for a connection.
            async with asyncio.timeout(2 * self._timeout_s):
                value = await command()
        except (RedisError, OSError):
            self._metrics.count_cache("redis", "failed")
            self._breaker.record(is_success=False)
            return _Reply(is_success=False)
        self._breaker.record(is_success=True)
        return _Reply(is_success=True, value=value if isinstance(value, bytes) else None)


class ResultCache:
    """Two tiers of predictions. `remember` and the lookup in memory never wait; the shared tier is optional."""

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

    async def get(self, key: CacheKey, query: Query) -> Lookup:
        """Look a query up, in memory and then in Redis. Never raises."""
        prediction = self._recall(key)
        if prediction is not None:
            return Lookup(prediction, CacheResult.HIT)
        if self._redis is None:
            return Lookup(None, CacheResult.MISS)
        lookup = await self._redis.get(key, query)
        if lookup.prediction is not None:
            self.remember(key, lookup.prediction)
        return lookup

    def remember(self, key: CacheKey, prediction: Prediction) -> None:
        """Keep a prediction in memory; its arrays become read-only."""
        arrays = (prediction.frames, prediction.members, prediction.variance)
        for array in arrays:
            array.flags.writeable = False
        kept = _Kept(prediction, self._clock() + self._ttl_s)
        num_evicted = self._kept.put(key.digest, kept, sum(array.nbytes for array in arrays))
        self._metrics.count_cache("memory", "stored")
        for _ in range(num_evicted):
            self._metrics.count_cache("memory", "evicted")

    async def share(self, key: CacheKey, prediction: Prediction) -> None:
        """Store a prediction in Redis, where there is one. Never raises."""
        if self._redis is not None:
            await self._redis.put(key, prediction)

    async def put(self, key: CacheKey, prediction: Prediction) -> None:
        """Keep a prediction in both tiers. Never raises."""
        self.remember(key, prediction)
        await self.share(key, prediction)

    async def close(self) -> None:
        """Forget everything here and hang up on Redis."""
        self._kept = LruBytes(0)
        if self._redis is not None:
            await self._redis.close()

    def _recall(self, key: CacheKey) -> Prediction | None:
        kept = self._kept.get(key.digest)
        if kept is not None and kept.expires_s <= self._clock():
            self._kept.pop(key.digest)
            kept = None
        self._metrics.count_cache("memory", "miss" if kept is None else "hit")
        return None if kept is None else kept.prediction


def connect_redis(url: str, timeout_s: float = 0.02) -> Redis:
    """Make a client that tries once and briefly: redis-py's own defaults wait for seconds and retry."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=_MAX_CONNECTIONS,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )
    return Redis(connection_pool=pool)


def _redis_key(key: CacheKey) -> bytes:
    return _KEY_PREFIX + key.digest.hex().encode()
