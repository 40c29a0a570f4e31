"""When to try again and how long to wait before. Pure: reads no clock, draws nothing, sleeps never.

Capped exponential pauses with full jitter, a floor set by the server, and a budget that keeps
retries a small share of all calls, so that many clients do not make a struggling server worse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from foreframe_client._errors import ForeframeError, ServerError

MIN_DEADLINE_MS = 5
"""The server takes no shorter deadline."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how patiently a call is tried again; `max_retries=0` never does."""

    max_retries: int = 2
    first_pause_s: float = 0.1
    max_pause_s: float = 5.0
    """A server that asks for a longer pause than this is not waited for."""


@dataclass(frozen=True)
class Deadline:
    """When a call must be answered, in seconds of a monotonic clock; None is never."""

    at_s: Optional[float] = None

    @classmethod
    def after(cls, budget_ms: Optional[int], now_s: float) -> Deadline:
        """Start a budget now."""
        return cls() if budget_ms is None else cls(now_s + budget_ms / 1000)

    def left_ms(self, now_s: float) -> Optional[int]:
        """Return the whole milliseconds that are left, None without a deadline."""
        return None if self.at_s is None else round((self.at_s - now_s) * 1000)


class RetryBudget:
    """Tokens shared by all calls of a client: a call earns a part of one, a retry costs one."""

    def __init__(self, *, capacity: float = 10.0, earned_per_call: float = 0.1) -> None:
        self._capacity = capacity
        self._earned_per_call = earned_per_call
        self._tokens = capacity

    def earn(self) -> None:
        """Credit one call."""
        self._tokens = min(self._capacity, self._tokens + self._earned_per_call)

    def spend(self) -> bool:
        """Pay for one retry; say whether there was a token."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


def pause_before_retry(
    policy: RetryPolicy, error: ForeframeError, *, retries_done: int, uniform: float, left_ms: Optional[int]
) -> Optional[float]:
    """Return the seconds to wait before the next try, or None when there should be none.

    uniform: a draw from 0..1. left_ms: what remains of the deadline, None without one.
    """
    if not error.is_retryable or retries_done >= policy.max_retries:
        return None
    floor_s = _asked_pause_s(error)
    if floor_s > policy.max_pause_s:
        return None
    pause_s = floor_s + uniform * min(policy.max_pause_s, policy.first_pause_s * 2**retries_done)
    if left_ms is not None and pause_s * 1000 > left_ms - MIN_DEADLINE_MS:
        return None
    return pause_s


def _asked_pause_s(error: ForeframeError) -> float:
    asked_ms = error.retry_after_ms if isinstance(error, ServerError) else None
    return (asked_ms or 0) / 1000
