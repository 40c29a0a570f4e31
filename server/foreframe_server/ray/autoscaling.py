"""How many replicas the work that waits needs. Pure but for the class's constructor: it knows no Ray and no clock."""

import math
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

PENDING_STEP_MS: Final = "pending_step_ms"
"""What every replica tells: predicted milliseconds of the work that waits for it."""

_SPARE: Final = 0.5
"""Fewer replicas only where what waits would fill so much of them: or they would come and go."""


def wanted_replicas(pending_ms: float, target_ms: float, current: int) -> int:
    """Return how many replicas have at most `target_ms` of work each, at least one."""
    wanted = max(1, math.ceil(pending_ms / target_ms))
    if wanted >= current:
        return wanted
    return min(current, max(1, math.ceil(pending_ms / (_SPARE * target_ms))))


class Situation(Protocol):
    """What Ray Serve tells a policy."""

    current_num_replicas: int
    capacity_adjusted_min_replicas: int
    capacity_adjusted_max_replicas: int

    @property
    def aggregated_metrics(self) -> Mapping[str, Mapping[object, float]] | None:
        """What replicas told, by name and replica, over the time that is looked back on."""


class PendingWorkPolicy:
    """Asks for as many replicas as have at most `target_ms` of predicted work each."""

    def __init__(self, target_ms: float = 500.0) -> None:
        if target_ms <= 0:
            raise ValueError("target_ms is above 0")
        self._target_ms = target_ms

    def __call__(self, situation: Situation) -> tuple[int, dict[str, float]]:
        """Return how many replicas there should be, and nothing to remember."""
        told = (situation.aggregated_metrics or {}).get(PENDING_STEP_MS, {})
        wanted = wanted_replicas(_total(told.values()), self._target_ms, situation.current_num_replicas)
        least, most = situation.capacity_adjusted_min_replicas, situation.capacity_adjusted_max_replicas
        return max(least, min(most, wanted)), {}


def _total(values: Iterable[float | None]) -> float:
    return sum(value for value in values if value is not None)
