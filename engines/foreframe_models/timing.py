"""Times of several ways to do one thing on one device, taken in turns, so that ratios hold on a noisy machine."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Way = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one way: the median, and the least and most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, taken_ms: list[float]) -> "Timing":
        """Summarise what was taken."""
        return cls(*(round(value, 4) for value in (statistics.median(taken_ms), min(taken_ms), max(taken_ms))))


def time_in_turns(
    ways: Mapping[str, Way], device: torch.device, *, rounds: int, warm_ups: int = 1
) -> dict[str, Timing]:
    """Time every way once a round, round after round, after rounds that do not count. A device is waited for."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(warm_ups + rounds):
        for name, way in ways.items():
            spent_ms = time_once(way, device)
            if number >= warm_ups:
                taken[name].append(spent_ms)
    return {name: Timing.of(values) for name, values in taken.items()}


def time_once(way: Way, device: torch.device) -> float:
    """Return the milliseconds until a device has done what one call asks of it."""
    synchronise(device)
    started = time.perf_counter()
    way()
    synchronise(device)
    return (time.perf_counter() - started) * 1000


def synchronise(device: torch.device) -> None:
    """Wait until a device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
