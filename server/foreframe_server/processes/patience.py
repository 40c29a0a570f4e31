"""How long a call may be silent, from how long calls of its kind took. Pure: time is passed in."""

from collections import defaultdict
from dataclasses import dataclass, field

from foreframe_server.processes.limits import ProcessLimits

_SMOOTHING = 0.2


@dataclass(slots=True)
class _Seen:
    """Seconds of calls by the power of two that their size lies below."""

    seconds: dict[int, float] = field(default_factory=dict)

    def predict(self, size: int) -> float | None:
        """Predict from the slowest size seen, and in proportion beyond the largest; None when nothing was seen."""
        if not self.seconds:
            return None
        largest = 1 << max(self.seconds)
        return max(self.seconds.values()) * max(1.0, (1 << size.bit_length()) / largest)

    def has_met(self, size: int) -> bool:
        """Tell whether calls of about such a size are known."""
        return size.bit_length() in self.seconds

    def learn(self, size: int, seconds: float, weight: float) -> None:
        """Move the known seconds of a size towards those of one call."""
        before = self.seconds.setdefault(size.bit_length(), seconds)
        self.seconds[size.bit_length()] = before + weight * (seconds - before)


class Patience:
    """Limits of one process's calls. The first call of a kind in a life is slower, and known from earlier lives."""

    def __init__(self, limits: ProcessLimits) -> None:
        self._limits = limits
        self._first: defaultdict[str, _Seen] = defaultdict(_Seen)
        self._later: defaultdict[str, _Seen] = defaultdict(_Seen)
        self._begun: set[str] = set()

    def renew(self) -> None:
        """Begin a new life, which knows only how long first calls take."""
        self._later.clear()
        self._begun.clear()

    def has_seen(self, kind: str) -> bool:
        """Tell whether a call of a kind was answered in this life."""
        return kind in self._begun

    def limit_s(self, kind: str, size: int) -> float:
        """Return the seconds that a call of so many items may take."""
        later, first = self._later[kind], self._first[kind]
        # A size that this life has not met may need what first calls need.
        sources = (later,) if later.has_met(size) else (later, first)
        predicted = [seconds for source in sources if (seconds := source.predict(size)) is not None]
        if not predicted:
            return self._limits.start_s
        return max(self._limits.hang_s, self._limits.hang_factor * max(predicted))

    def observe(self, kind: str, size: int, seconds: float) -> None:
        """Learn from a call that was answered."""
        if kind in self._begun:
            self._later[kind].learn(size, seconds, _SMOOTHING)
        else:
            self._begun.add(kind)
            self._first[kind].learn(size, seconds, 1.0)
