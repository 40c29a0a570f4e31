"""When a process that died may be started again. Pure: time is passed in.

The pause doubles from death to death, and too many in a short time end the restarts for as long. A death after useful
work is no part of a crash loop.
"""

import random
from collections import deque

from foreframe_server.processes.limits import ProcessLimits


class Restarts:
    """Deaths of one process and its successors, and when the next may be started."""

    def __init__(self, limits: ProcessLimits, rng: random.Random) -> None:
        """rng: spreads pauses, so that processes that died together do not start together."""
        self._limits = limits
        self._rng = rng
        self._deaths: deque[float] = deque(maxlen=limits.max_deaths)
        self._num_early = 0
        self._broken_until_s: float | None = None

    def died(self, now_s: float, *, was_useful: bool) -> float:
        """Book a death, and return when the next process may be started."""
        if was_useful:
            self._num_early = 0
            self._deaths.clear()
            return now_s + self._pause_s(0)
        self._deaths.append(now_s)
        if len(self._deaths) == self._limits.max_deaths and now_s - self._deaths[0] <= self._limits.deaths_s:
            self._broken_until_s = now_s + self._limits.deaths_s
            self._deaths.clear()
            return self._broken_until_s
        self._num_early += 1
        return now_s + self._pause_s(self._num_early - 1)

    def is_broken(self, now_s: float) -> bool:
        """Tell whether too many deaths have ended the restarts for now."""
        return self._broken_until_s is not None and now_s < self._broken_until_s

    def _pause_s(self, exponent: int) -> float:
        longest_s = min(self._limits.max_delay_s, self._limits.delay_s * 2.0 ** min(exponent, 60))
        return longest_s * self._rng.uniform(0.5, 1.0)
