"""What a person wants to know of a running server at a glance, added up from its metrics. Knows no wire."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.samples import Sample

WORK_ROUTES: Final = frozenset(
    {
        "/v1/predictions",
        "/v1/likelihoods",
        "/v1/scores",
        "/v1/sessions/{id}/steps",
        "/v2/models/{name}/infer",
        "/v2/models/{name}/versions/{version}/infer",
    }
)
"""Whose requests are work of the device's; all else is bookkeeping and would hide it."""


@dataclass(slots=True)
class VitalSigns:
    """Counts are since the start. `at_most[s]` are the requests for work that took at most `s` seconds."""

    queue_s: float = 0.0
    busy_ratio: float = 0.0
    at_most: Counter[float] = field(default_factory=Counter)
    num_refused: int = 0
    deadlines: Counter[str] = field(default_factory=Counter)
    cache_lookups: int = 0
    cache_hits: int = 0

    @property
    def num_requests(self) -> int:
        """Requests for work, refused ones among them."""
        return self.at_most[math.inf]


def read_vital_signs(registry: CollectorRegistry) -> VitalSigns:
    """Add up a registry's samples, in one pass."""
    signs = VitalSigns()
    for family in registry.collect():
        _READERS.get(family.name, _skip)(signs, family.samples)
    return signs


def _skip(_: VitalSigns, __: Iterable[Sample]) -> None:
    pass


def _read_queue(signs: VitalSigns, samples: Iterable[Sample]) -> None:
    signs.queue_s = sum(sample.value for sample in samples)


def _read_busy(signs: VitalSigns, samples: Iterable[Sample]) -> None:
    signs.busy_ratio = sum(sample.value for sample in samples)


def _read_seconds(signs: VitalSigns, samples: Iterable[Sample]) -> None:
    for sample in samples:
        if sample.name.endswith("_bucket") and sample.labels["route"] in WORK_ROUTES:
            signs.at_most[float(sample.labels["le"])] += int(sample.value)


def _read_requests(signs: VitalSigns, samples: Iterable[Sample]) -> None:
    for sample in samples:
        labels = sample.labels
        if sample.name.endswith("_total") and labels["route"] in WORK_ROUTES and labels["code"] != "ok":
            signs.num_refused += int(sample.value)


def _read_deadlines(signs: VitalSigns, samples: Iterable[Sample]) -> None:
    for sample in samples:
        if sample.name.endswith("_total"):
            signs.deadlines[sample.labels["outcome"]] += int(sample.value)


def _read_cache(signs: VitalSigns, samples: Iterable[Sample]) -> None:
    for sample in samples:
        if not sample.name.endswith("_total"):
            continue
        tier, result, count = sample.labels["tier"], sample.labels["result"], int(sample.value)
        signs.cache_hits += count if result == "hit" else 0
        signs.cache_lookups += count if tier == "memory" and result in ("hit", "miss") else 0


_READERS: Final = {
    "foreframe_queue_step_seconds": _read_queue,
    "foreframe_engine_busy_ratio": _read_busy,
    "foreframe_request_seconds": _read_seconds,
    "foreframe_requests": _read_requests,
    "foreframe_deadline": _read_deadlines,
    "foreframe_cache_events": _read_cache,
}
