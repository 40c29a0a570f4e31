"""How fast bytes must move: an allowance at the start, then so many a second. The time is passed in."""


class Pace:
    """Bytes since a moment."""

    def __init__(self, now_s: float) -> None:
        self.since_s = now_s
        self._num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Count bytes that moved."""
        self._num_bytes += num_bytes

    def forgive(self, now_s: float) -> None:
        """Begin again: nothing could move."""
        self.since_s, self._num_bytes = now_s, 0

    def is_too_slow(self, now_s: float, *, grace_s: float, min_rate: float) -> bool:
        """Whether fewer bytes moved than so many a second after a grace."""
        return now_s > self.since_s + grace_s + self._num_bytes / min_rate


class Outflow:
    """What waits to be read by the other side, looked at from time to time."""

    def __init__(self, now_s: float) -> None:
        self._pace = Pace(now_s)
        self._num_waiting = 0

    def is_stuck(self, num_waiting: int, now_s: float, *, grace_s: float, min_rate: float) -> bool:
        """Whether the other side reads too slowly. num_waiting: bytes that wait now."""
        if self._num_waiting == 0 or num_waiting == 0:
            self._pace.forgive(now_s)
        self._pace.add(max(0, self._num_waiting - num_waiting))
        self._num_waiting = num_waiting
        return self._pace.is_too_slow(now_s, grace_s=grace_s, min_rate=min_rate)
