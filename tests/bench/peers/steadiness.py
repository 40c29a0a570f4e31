"""Whether the machine was the same for every server, by the engine's own time before and after each. Pure."""

from collections.abc import Mapping
from statistics import median
from typing import Any

MAX_DEVIATION = 0.2


def find_unsteady(results: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Return the results for which the engine took more than 20 % longer or shorter than the median of all times."""
    if not results:
        return set()
    usual_ms = median(each for result in results.values() for each in _times_ms(result))
    return {name for name, result in results.items() if any(_is_off(each, usual_ms) for each in _times_ms(result))}


def _times_ms(result: Mapping[str, Any]) -> tuple[float, float]:
    times: Mapping[str, float] = result["engine_ms"]
    return times["before"], times["after"]


def _is_off(taken_ms: float, usual_ms: float) -> bool:
    return abs(taken_ms - usual_ms) > MAX_DEVIATION * usual_ms
