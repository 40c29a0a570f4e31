"""What was asked and what became of it: one entry a call, one outcome an entry, and a judge. Knows no wire."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

_WINDOW_S = 0.5


class Outcome(StrEnum):
    """What became of a call. LOST: it was sent and nothing came back. UNREACHABLE: it could not be sent."""

    OK = "ok"
    WRONG = "wrong"
    REFUSED = "refused"
    SHED = "shed"
    EXPIRED = "expired"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"
    UNREACHABLE = "unreachable"


SHED_CODES = frozenset({"overloaded", "quota_exceeded", "not_ready"})


def outcome_of(status: int, code: str) -> Outcome:
    """Classify a reply that is no answer."""
    if status == 504:
        return Outcome.EXPIRED
    if status in (503, 429):
        return Outcome.SHED
    return Outcome.FAILED if status >= 500 else Outcome.REFUSED


@dataclass(slots=True)
class Entry:
    """One call. Seconds are those of one monotonic clock; `due_s` is when it was to be sent."""

    number: int
    due_s: float
    sent_s: float
    deadline_s: float | None = None
    done_s: float | None = None
    outcome: Outcome | None = None
    code: str = ""
    closings: int = 0

    @property
    def latency_ms(self) -> float:
        """Milliseconds from when it was due to its outcome."""
        return 1000 * ((self.done_s or self.sent_s) - self.due_s)


class Ledger:
    """Entries in the order of their opening."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._numbers = itertools.count()

    def open(self, due_s: float, sent_s: float, deadline_ms: int | None = None) -> Entry:
        """Begin a call's entry."""
        deadline_s = None if deadline_ms is None else sent_s + deadline_ms / 1000
        entry = Entry(next(self._numbers), due_s, sent_s, deadline_s)
        self.entries.append(entry)
        return entry

    def close(self, entry: Entry, outcome: Outcome, done_s: float, code: str = "") -> None:
        """Write down what became of a call; a second closing is kept as a fault."""
        entry.closings += 1
        entry.outcome, entry.done_s, entry.code = outcome, done_s, code

    def counts(self) -> dict[str, int]:
        """Count the entries of every outcome."""
        found = Counter(entry.outcome for entry in self.entries)
        return {outcome.value: found[outcome] for outcome in Outcome}

    def codes(self) -> dict[str, int]:
        """Count the codes of what was no answer."""
        return dict(Counter(entry.code for entry in self.entries if entry.code))

    def of(self, *outcomes: Outcome) -> list[Entry]:
        """Return the entries with one of these outcomes."""
        return [entry for entry in self.entries if entry.outcome in outcomes]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge found: broken rules, each with how often."""

    violations: dict[str, int] = field(default_factory=dict)

    @property
    def num_violations(self) -> int:
        return sum(self.violations.values())


def judge(ledger: Ledger, *, late_s: float = 0.25) -> Verdict:
    """Demand exactly one outcome of every call, none wrong, none lost, and no answer long after its deadline."""
    found: Counter[str] = Counter()
    for entry in ledger.entries:
        if entry.closings != 1:
            found["open" if entry.closings == 0 else "closed twice"] += 1
        if entry.outcome in (Outcome.WRONG, Outcome.LOST):
            found[entry.outcome.value] += 1
        if (
            entry.outcome is Outcome.OK
            and entry.deadline_s is not None
            and (entry.done_s or 0) > entry.deadline_s + late_s
        ):
            found["late"] += 1
    if sum(ledger.counts().values()) + found["open"] != len(ledger.entries):
        found["not counted"] += 1
    return Verdict(dict(found))


def percentile(values: Iterable[float], share: float) -> float | None:
    """Return the smallest value that so large a share lies at or below; None of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(np.ceil(share * len(ordered))) - 1)] if ordered else None


def recovery_s(entries: Sequence[Entry], struck_s: Sequence[float], usual_ms: float) -> float:
    """Return the longest time after a strike until calls are answered as usual, to half a second.

    Of every half second up to the next strike the middle call counts: slow is over twice the usual and 100 ms.
    """
    limit_ms = 2 * usual_ms + 100
    worst_s = 0.0
    for begin_s, end_s in itertools.pairwise([*struck_s, float("inf")]):
        windows: dict[int, list[float]] = {}
        for entry in entries:
            if begin_s <= entry.due_s < end_s:
                slowness = entry.latency_ms if entry.outcome is Outcome.OK else float("inf")
                windows.setdefault(int((entry.due_s - begin_s) / _WINDOW_S), []).append(slowness)
        bad = [number for number, values in windows.items() if (percentile(values, 0.5) or 0) > limit_ms]
        worst_s = max(worst_s, _WINDOW_S * (max(bad, default=-1) + 1))
    return worst_s
