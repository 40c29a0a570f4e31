"""Sessions in a Redis that all replicas share, so that another one can go on where this one stopped.

A broken Redis costs the hand-over and nothing else: no step waits for it.
"""

import asyncio
from typing import Final, Self

from foreframe_server.metrics import Metrics
from foreframe_server.redis_link import RedisLink, connect_redis
from foreframe_server.session_blob import CorruptSession, decode_session_blob, encode_session_blob
from foreframe_server.sessions import Session

_PREFIX: Final = b"foreframe:session:"
_TIMEOUT_S: Final = 1.0
"""Longer than the cache's: no answer waits for it but that of a session which is not here."""


class SharedSessions:
    """Sessions by their id, in Redis. A session is written after each change, the newest state only.

    fingerprint: what tells this model from others; a session of another is not taken up.
    """

    def __init__(
        self,
        link: RedisLink,
        metrics: Metrics,
        *,
        secret: bytes,
        fingerprint: str,
        max_blob_bytes: int = 64 * 2**20,
    ) -> None:
        self._link = link
        self._metrics = metrics
        self._secret = secret
        self._fingerprint = fingerprint
        self._max_blob_bytes = max_blob_bytes
        self._waiting: dict[str, Session] = {}
        self._writing: dict[str, asyncio.Task[None]] = {}

    @classmethod
    def connect(cls, url: str, metrics: Metrics, *, secret: bytes, fingerprint: str) -> Self:
        """Make one on a Redis URL; nothing is sent before the first call."""
        link = RedisLink(connect_redis(url, _TIMEOUT_S), metrics, timeout_s=_TIMEOUT_S, holds="sessions")
        return cls(link, metrics, secret=secret, fingerprint=fingerprint)

    def put_soon(self, session: Session) -> None:
        """Write a session in the background, once what is being written of it is there."""
        name = session.session_id
        self._waiting[name] = session
        if name not in self._writing:
            self._writing[name] = asyncio.create_task(self._write(name))

    async def get(self, session_id: str) -> Session | None:
        """Read a session; None when it is not there, is broken, or belongs to another model."""
        reply = await self._link.call("GET", _name(session_id))
        if not isinstance(reply.value, bytes) or not reply.is_answer:
            return None
        try:
            return await asyncio.to_thread(
                decode_session_blob, session_id, reply.value, self._secret, self._fingerprint
            )
        except CorruptSession:
            self._metrics.count_session("corrupt")
            await self._link.call("DEL", _name(session_id))
            return None

    async def delete(self, session_id: str) -> None:
        """Forget a session, also one that is about to be written."""
        self._waiting.pop(session_id, None)
        if session_id in self._writing:
            await asyncio.wait({self._writing[session_id]})
        await self._link.call("DEL", _name(session_id))

    async def settle(self) -> None:
        """Wait until every session is written as it stands."""
        while self._writing:
            await asyncio.wait(set(self._writing.values()))

    async def close(self) -> None:
        """Write what waits, then close every connection."""
        await self.settle()
        await self._link.close()

    async def _write(self, name: str) -> None:
        try:
            while name in self._waiting:
                await self._write_once(self._waiting.pop(name))
        finally:
            # At once, not in a callback: whoever puts a session in between would believe that it is being written.
            self._writing.pop(name, None)

    async def _write_once(self, session: Session) -> None:
        if not self._link.can_call():
            return
        blob = await asyncio.to_thread(encode_session_blob, session, self._secret, self._fingerprint)
        if len(blob) > self._max_blob_bytes:
            self._metrics.count_session("not_shared")
            return
        ttl_ms = max(1, int(1000 * session.ttl_s))
        reply = await self._link.call("SET", _name(session.session_id), blob, "PX", ttl_ms)
        self._metrics.count_session("shared" if reply.is_answer else "not_shared")


def _name(session_id: str) -> bytes:
    return _PREFIX + session_id.encode()
