"""How much of the device each key may use at all. It knows keys' ids and seconds, and nothing of requests.

Unlike a budget, which decides who goes first, a quota refuses, on an idle device too.
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from foreframe_server.errors import QuotaExceeded
from foreframe_server.keys import Quota

Charge = Callable[[str, float], None]
"""Books seconds of the device for a key's id. Any thread may call it."""


def charge_nobody(_key: str, _seconds: float) -> None:
    """Book nothing."""


@dataclass(slots=True)
class _Account:
    quota: Quota
    left_ms: float
    since_s: float

    def settle(self, now_s: float) -> None:
        """Let what came since the last time in."""
        earned_ms = self.quota.step_ms_per_s * (now_s - self.since_s)
        self.left_ms = min(self.quota.burst_step_ms, self.left_ms + earned_ms)
        self.since_s = now_s


class Quotas:
    """An account of step-milliseconds for each key with a quota.

    Work is booked when it was done, and may overdraw: a key that owes is refused until it has paid, so that over time
    it uses what it may and no more.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._accounts: dict[str, _Account] = {}

    def check(self, key: str, quota: Quota | None) -> None:
        """Let a key with something left pass. Raises QuotaExceeded with when it has paid."""
        if quota is None:
            return
        with self._lock:
            account = self._accounts.setdefault(key, _Account(quota, quota.burst_step_ms, self._clock()))
            account.settle(self._clock())
            account.quota = quota
            owed_ms = -account.left_ms
        if owed_ms >= 0:
            retry_after_ms = 1 + math.floor(1000 * owed_ms / quota.step_ms_per_s)
            raise QuotaExceeded("The key has used up its share of the device for now.", retry_after_ms=retry_after_ms)

    def charge(self, key: str, seconds: float) -> None:
        """Book work that was done for a key; keys without a quota have no account."""
        with self._lock:
            account = self._accounts.get(key)
            if account is not None:
                account.settle(self._clock())
                account.left_ms -= 1000 * seconds
