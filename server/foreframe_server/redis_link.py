"""Commands to a Redis that may be absent, slow, full or lying: one short try each, and none while it fails.

It knows no entry and no lease.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from foreframe_server.metrics import Metrics

TIMEOUT_S = 0.02

_MAX_REASON = 200
_MAX_CONNECTIONS = 16
# What redis-py lets out beside its own errors when a server talks nonsense or hangs up while being written to.
_BROKEN = (RedisError, OSError, EOFError, RuntimeError, ValueError, TypeError, AttributeError)

_log = structlog.get_logger(__name__)


class Outcome(Enum):
    """What came of a command: an answer, an error that Redis itself sent, or nothing in time."""

    ANSWERED = auto()
    REFUSED = auto()
    UNAVAILABLE = auto()


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a command; `value` is the answer as redis-py reads it, or the text of Redis' error."""

    outcome: Outcome
    value: object = None

    @property
    def is_answer(self) -> bool:
        """Whether Redis did what was asked."""
        return self.outcome is Outcome.ANSWERED


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

    @property
    def is_in_doubt(self) -> bool:
        """Whether the last call failed, or the breaker has just closed."""
        return self._num_failures > 0

    def take_turn(self) -> bool:
        """Ask whether to call now; while open, a yes is given once a probe interval."""
        if not self.is_open:
            return True
        if self._clock() < self._probe_s:
            return False
        self._probe_s = self._clock() + self._probe_after_s
        return True

    def record(self, *, is_success: bool) -> None:
        """Book how a call went. What was open closes on trial: the next failure opens it again."""
        if is_success:
            self._num_failures = self._max_failures - 1 if self.is_open else 0
        else:
            self._num_failures += 1
        if self.is_open:
            self._probe_s = self._clock() + self._probe_after_s


class RedisLink:
    """Sends commands. While the breaker is open nobody waits: a ping in the background finds out when it is over.

    holds: what is kept in Redis, for the log, which hears once that Redis is away and once that it is back.
    """

    def __init__(
        self,
        client: Redis,
        metrics: Metrics,
        *,
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
        holds: str = "results",
    ) -> None:
        self._client = client
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._breaker = CircuitBreaker(clock)
        self._attempts: set[asyncio.Task[Reply]] = set()
        self._holds = holds
        self._is_away = False

    @property
    def is_available(self) -> bool:
        """Whether commands are sent at all."""
        return not self._breaker.is_open

    @property
    def is_in_doubt(self) -> bool:
        """Whether the last command failed: what can be done without Redis had better be."""
        return self._breaker.is_in_doubt

    async def call(self, *command: str | bytes | int) -> Reply:
        """Send one command and wait briefly for its answer. Never raises but when cancelled."""
        if not self.can_call():
            return Reply(Outcome.UNAVAILABLE)
        # In a task of its own, because redis-py can swallow the caller's cancellation: asyncio.wait_for of Python 3.11
        # does when what it waits for has just ended.
        return await asyncio.shield(self._begin(*command))

    def can_call(self) -> bool:
        """Ask whether a command would be sent; if not, it counts as skipped, and now and then a ping goes out."""
        if self.is_available:
            return True
        self._metrics.count_cache("redis", "skipped")
        if self._breaker.take_turn():
            self._begin("PING")
        return False

    async def check(self) -> None:
        """Ask once whether Redis answers, and say in the log when it does not."""
        reply = await self.call("PING")
        if not reply.is_answer:
            self._say_away(str(reply.value or ""))

    async def hang_up(self) -> None:
        """Drop the idle connections, after one gave an answer to somebody else's question."""
        with contextlib.suppress(*_BROKEN):
            await self._client.connection_pool.disconnect(inuse_connections=False)

    async def close(self) -> None:
        """Close every connection."""
        for attempt in self._attempts:
            attempt.cancel()
        await asyncio.gather(*self._attempts, return_exceptions=True)
        await self._client.aclose()
        await self._client.connection_pool.aclose()

    def _begin(self, *command: str | bytes | int) -> asyncio.Task[Reply]:
        attempt = asyncio.create_task(self._try(*command))
        self._attempts.add(attempt)
        attempt.add_done_callback(self._attempts.discard)
        return attempt

    async def _try(self, *command: str | bytes | int) -> Reply:
        try:
            # Connecting and calling have a limit each; this one bounds both and the wait for a connection.
            async with asyncio.timeout(2 * self._timeout_s):
                value = await self._client.execute_command(*command)  # type: ignore[no-untyped-call]
        except ResponseError as error:
            self._metrics.count_cache("redis", "failed")
            self._record(is_success=True)  # it answers, and at once
            return Reply(Outcome.REFUSED, str(error))
        except _BROKEN as error:
            self._metrics.count_cache("redis", "failed")
            self._record(is_success=False, reason=str(error))
            return Reply(Outcome.UNAVAILABLE, str(error))
        self._record(is_success=True)
        return Reply(Outcome.ANSWERED, value)

    def _record(self, *, is_success: bool, reason: str = "") -> None:
        was_available = self.is_available
        self._breaker.record(is_success=is_success)
        if self.is_available != was_available:
            self._metrics.count_cache("redis", "closed" if self.is_available else "opened")
        if not self.is_available:
            self._say_away(reason)
        elif self._is_away and not self.is_in_doubt:
            self._is_away = False
            _log.info("Redis is back", holds=self._holds)

    def _say_away(self, reason: str) -> None:
        if not self._is_away:
            self._is_away = True
            _log.warning(
                "Redis does not answer, requests go on without it",
                holds=self._holds,
                setting="FOREFRAME_CACHE__REDIS_URL",
                reason=reason[:_MAX_REASON],
            )


def connect_redis(url: str, timeout_s: float = TIMEOUT_S) -> Redis:
    """Make a client that tries once and briefly: redis-py's own defaults wait for seconds and retry."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=_MAX_CONNECTIONS,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,
    )
    return Redis(connection_pool=pool)
