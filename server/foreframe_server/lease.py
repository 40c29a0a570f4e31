"""The right to compute one key, held by one of several servers. It knows the commands, not what is computed.

A lease is advice: whoever gets none computes alone, and only work is lost.
"""

import asyncio
import contextlib
import secrets
from typing import Self

from foreframe_server.redis_link import RedisLink

_POLL_S = 0.02
_TOKEN_BYTES = 16
_RENEWALS_A_LIFE = 4

_RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class Lease:
    """One server's claim on a key: its own until released while `is_held`, else another's to wait for."""

    def __init__(self, link: RedisLink, name: bytes, token: bytes | None, ttl_s: float) -> None:
        self._link = link
        self._name = name
        self._token = token
        self._ttl_ms = int(1000 * ttl_s)
        self._renewal = None if token is None else asyncio.create_task(self._renew(token))

    @classmethod
    async def take(cls, link: RedisLink, name: bytes, ttl_s: float) -> Self | None:
        """Take a lease, or see that another holds it; None when Redis does not say."""
        token = secrets.token_bytes(_TOKEN_BYTES)
        reply = await link.call("SET", name, token, "NX", "PX", int(1000 * ttl_s))
        if not reply.is_answer:
            return None
        return cls(link, name, token if reply.value is True else None, ttl_s)

    @property
    def is_held(self) -> bool:
        """Whether this server may compute while the others wait; false once the lease is released or lost."""
        return self._token is not None

    async def wait(self, timeout_s: float) -> None:
        """Wait until another's lease is free, Redis does not answer or time is up. Ask for the lease again then."""
        if self.is_held:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while await self._is_taken():  # noqa: ASYNC110 - Redis tells only when it is asked
                    await asyncio.sleep(_POLL_S)

    async def release(self) -> None:
        """Let others compute, after the result was shared. Never raises; twice does nothing."""
        token, self._token = self._token, None
        if self._renewal is not None:
            self._renewal.cancel()
        if token is not None:
            await self._link.call("EVAL", _RELEASE, 1, self._name, token)

    async def _is_taken(self) -> bool:
        reply = await self._link.call("EXISTS", self._name)
        return reply.is_answer and reply.value == 1

    async def _renew(self, token: bytes) -> None:
        while self.is_held:
            await asyncio.sleep(self._ttl_ms / 1000 / _RENEWALS_A_LIFE)
            reply = await self._link.call("EVAL", _RENEW, 1, self._name, token, self._ttl_ms)
            if reply.is_answer and reply.value != 1:
                self._token = None
