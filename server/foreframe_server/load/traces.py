"""When which question is asked: pure, seeded, and fixed before the first one goes out. Knows no clock and no wire."""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, slots=True)
class Ask:
    """How a prediction is asked for; None leaves a field to the server. `deadline_ms` is a budget."""

    members: int = 1
    steps: int | None = None
    strategy: str = "sample"
    deadline_ms: int | None = None
    on_deadline: str = "degrade"
    priority: str = "controller"
    stream_id: str | None = None
    cache: str = "use"


@dataclass(frozen=True, slots=True)
class Arrival:
    """One question and the second of the trace in which it is due. Equal `content` asks about the same."""

    due_s: float
    ask: Ask
    content: int
    group: str = "all"


def constant(rate_hz: float, duration_s: float, ask: Ask, *, group: str = "all") -> list[Arrival]:
    """Space arrivals evenly, from second 0."""
    count = round(rate_hz * duration_s)
    return [Arrival(index / rate_hz, ask, index, group) for index in range(count)]


def poisson(rate_hz: float, duration_s: float, ask: Ask, *, seed: int, group: str = "all") -> list[Arrival]:
    """Draw as many arrivals as the rate says and place them at random: a Poisson process, given its count.

    The count is not left to chance, so that runs of different seeds offer the same load.
    """
    dues_s = np.sort(np.random.default_rng(seed).uniform(0, duration_s, round(rate_hz * duration_s)))
    return [Arrival(float(due_s), ask, index, group) for index, due_s in enumerate(dues_s)]


def robots(count: int, rate_hz: float, duration_s: float, ask: Ask, *, seed: int) -> list[Arrival]:
    """Let robots ask once a period, each at a phase of its own, on a stream of its own.

    A robot asks at every tick whether or not the last answer came: the newest of its stream wins. Without a deadline
    in `ask` it is one period.
    """
    period_ms = round(1000 / rate_hz)
    deadline_ms = period_ms if ask.deadline_ms is None else ask.deadline_ms
    phases_s = np.random.default_rng(seed).uniform(0, 1 / rate_hz, count)
    return merge(
        _delay(
            constant(rate_hz, duration_s, replace(ask, deadline_ms=deadline_ms, stream_id=f"robot-{robot}")),
            float(phase_s),
        )
        for robot, phase_s in enumerate(phases_s)
    )


def planners(rate_hz: float, duration_s: float, ask: Ask, *, group: str = "planner") -> list[Arrival]:
    """Space bulk work evenly; the first is due after half an interval."""
    trace = constant(rate_hz, duration_s, replace(ask, priority="bulk"), group=group)
    return _delay(trace, 0.5 / rate_hz)


def merge(traces: Iterable[Sequence[Arrival]]) -> list[Arrival]:
    """Put traces into one in order of time; every arrival asks about something of its own."""
    merged = heapq.merge(*traces, key=lambda arrival: arrival.due_s)
    return [replace(arrival, content=content) for content, arrival in enumerate(merged)]


def in_turn(parts: Iterable[tuple[Sequence[Arrival], float]]) -> list[Arrival]:
    """Put traces behind each other, each with the seconds that it lasts."""
    trace: list[Arrival] = []
    start_s = 0.0
    for part, duration_s in parts:
        trace.extend(_delay(part, start_s))
        start_s += duration_s
    return [replace(arrival, content=content) for content, arrival in enumerate(trace)]


def at_once(trace: Sequence[Arrival]) -> list[Arrival]:
    """Make every arrival due at second 0, in the same order."""
    return [replace(arrival, due_s=0.0) for arrival in trace]


def _delay(trace: Sequence[Arrival], seconds: float) -> list[Arrival]:
    return [replace(arrival, due_s=arrival.due_s + seconds) for arrival in trace]
