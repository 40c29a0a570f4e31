"""Ensembles in a Redis that all replicas share: signed entries that only grow, and leases on computing them.

A broken Redis is a miss and a metric, never an error and never a wait.
"""

import asyncio
import secrets
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from redis.asyncio import Redis

from foreframe_server.calls import CacheResult
from foreframe_server.entry import (
    COUNT_FORMAT,
    IDENTITY_BYTES,
    CacheKey,
    CorruptEntry,
    Members,
    decode_entry,
    encode_entry,
)
from foreframe_server.lease import Lease
from foreframe_server.metrics import Metrics
from foreframe_server.redis_link import TIMEOUT_S, Outcome, RedisLink, Reply, connect_redis

_KEY_PREFIX = b"foreframe:members:"
_LEASE_PREFIX = b"foreframe:lease:"

# Replaces an entry by a longer one of the same key, and anything that is no entry of this key, whatever its type.
_GROW = f"""
local head = redis.pcall('GETRANGE', KEYS[1], 0, {IDENTITY_BYTES + 3})
local is_entry = type(head) == 'string' and #head == {IDENTITY_BYTES + 4}
    and string.sub(head, 1, {IDENTITY_BYTES}) == string.sub(ARGV[1], 1, {IDENTITY_BYTES})
if is_entry and struct.unpack('{COUNT_FORMAT}', head, {IDENTITY_BYTES + 1})
    >= struct.unpack('{COUNT_FORMAT}', ARGV[1], {IDENTITY_BYTES + 1}) then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """What a look into the cache gave: on `hit` the members that were there, nothing on `miss` and `unavailable`."""

    members: Members | None
    result: CacheResult


class RedisTier:
    """Members by their key, in Redis."""

    def __init__(  # noqa: PLR0913 - one keyword a limit
        self,
        client: Redis,
        metrics: Metrics,
        *,
        secret: bytes | None = None,
        ttl_s: float = 600.0,
        timeout_s: float = TIMEOUT_S,
        lease_ttl_s: float = 2.0,
        max_entry_bytes: int = 4 * 2**20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = RedisLink(client, metrics, timeout_s=timeout_s, clock=clock)
        self._metrics = metrics
        self._secret = secret or secrets.token_bytes(32)
        self._ttl_ms = int(1000 * ttl_s)
        self._lease_ttl_s = lease_ttl_s
        self._max_entry_bytes = max_entry_bytes
        self._leases: weakref.WeakSet[Lease] = weakref.WeakSet()

    @classmethod
    def connect(cls, url: str, metrics: Metrics, *, secret: bytes | None = None, ttl_s: float = 600.0) -> Self:
        """Make a tier on a Redis URL; nothing is sent before the first call."""
        return cls(connect_redis(url), metrics, secret=secret, ttl_s=ttl_s)

    @property
    def is_available(self) -> bool:
        """Whether the last calls went through."""
        return self._link.is_available

    async def get(self, key: CacheKey) -> Lookup:
        """Look a key up. A broken entry is deleted and missed."""
        reply = await self._link.call("GET", _entry_name(key))
        if _is_no_entry(reply):
            return await self._discard(key)
        if not reply.is_answer:
            return Lookup(None, CacheResult.UNAVAILABLE)
        if not isinstance(reply.value, bytes):
            return self._missed("miss")
        try:
            members = await asyncio.to_thread(decode_entry, key, reply.value, self._secret)
        except CorruptEntry:
            return await self._discard(key)
        self._metrics.count_cache("redis", "hit")
        return Lookup(members, CacheResult.HIT)

    async def put(self, key: CacheKey, members: Members) -> None:
        """Store as many members as an entry may hold, where fewer are stored and Redis answers in time."""
        members = members[: self._max_entry_bytes // members[0].nbytes]
        if len(members) == 0:
            self._metrics.count_cache("redis", "skipped")
            return
        if not self._link.can_call():
            return
        blob = await asyncio.to_thread(encode_entry, key, members, self._secret)
        reply = await self._link.call("EVAL", _GROW, 1, _entry_name(key), blob, self._ttl_ms)
        if reply.is_answer:
            self._metrics.count_cache("redis", "stored" if reply.value == 1 else "kept")

    async def lease(self, key: CacheKey) -> Lease | None:
        """Claim the computing of a key. None when Redis does not answer, or did not a moment ago: compute alone."""
        if self._link.is_in_doubt:
            return None
        lease = await Lease.take(self._link, _LEASE_PREFIX + key.digest.hex().encode(), self._lease_ttl_s)
        if lease is not None:
            self._leases.add(lease)
            self._metrics.count_cache("redis", "leased" if lease.is_held else "awaited")
        return lease

    async def check(self) -> None:
        """Say in the log when Redis does not answer."""
        await self._link.check()

    async def close(self) -> None:
        """Release every lease and close every connection."""
        for lease in tuple(self._leases):
            await lease.release()
        await self._link.close()

    async def _discard(self, key: CacheKey) -> Lookup:
        # An entry of another key may be the answer to another question: no later answer may come over that connection.
        await self._link.hang_up()
        await self._link.call("DEL", _entry_name(key))
        return self._missed("corrupt")

    def _missed(self, event: str) -> Lookup:
        self._metrics.count_cache("redis", event)
        return Lookup(None, CacheResult.MISS)


def _entry_name(key: CacheKey) -> bytes:
    return _KEY_PREFIX + key.digest.hex().encode()


def _is_no_entry(reply: Reply) -> bool:
    """Tell what no entry can be: a value of another type, or an answer that no GET gives."""
    if reply.outcome is Outcome.REFUSED:
        return str(reply.value).startswith("WRONGTYPE")
    return reply.is_answer and not isinstance(reply.value, bytes | None)
