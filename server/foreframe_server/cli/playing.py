"""Questions asked at the times at which they are due, one at a time. Knows clocks, and nothing of what is asked."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

_AskedT = TypeVar("_AskedT")
_AnswerT = TypeVar("_AnswerT")


@dataclass(frozen=True, slots=True)
class Due(Generic[_AskedT]):
    """A question and when it is due, in seconds from the first."""

    at_s: float
    asked: _AskedT


@dataclass(frozen=True, slots=True)
class Played(Generic[_AskedT, _AnswerT]):
    """A question that was asked, or skipped: then without an answer."""

    asked: _AskedT
    answer: _AnswerT | None
    elapsed_ms: float


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast time passes, and how it is told and waited for. speed: 2 plays twice as fast."""

    speed: float = 1.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep


def play(
    dues: Iterable[Due[_AskedT]], ask: Callable[[_AskedT], _AnswerT], pace: Pace
) -> Iterator[Played[_AskedT, _AnswerT]]:
    """Ask each question when it is due; skip it when the next one is due already, as a robot would. Raises as `ask`."""
    started_s, waiting = pace.clock(), None
    for due in dues:
        if waiting is not None:
            yield _play_one(waiting, due.at_s, ask, started_s, pace)
        waiting = due
    if waiting is not None:
        yield _play_one(waiting, float("inf"), ask, started_s, pace)


def _play_one(
    due: Due[_AskedT], next_at_s: float, ask: Callable[[_AskedT], _AnswerT], started_s: float, pace: Pace
) -> Played[_AskedT, _AnswerT]:
    now_s = (pace.clock() - started_s) * pace.speed
    if now_s >= next_at_s:
        return Played(due.asked, None, 0.0)
    if due.at_s > now_s:
        pace.sleep((due.at_s - now_s) / pace.speed)
    asked_s = pace.clock()
    answer = ask(due.asked)
    return Played(due.asked, answer, (pace.clock() - asked_s) * 1000)
