"""What the models of the tensor door have done since the start, as KServe's statistics extension counts it.

It knows requests, rows and timings, and no wire. Only the event loop's thread may call.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

from foreframe_server.calls import CacheResult, StageTimings
from foreframe_server.metrics import WORK_STAGES

_QUEUE = "queue"


@dataclass(slots=True)
class Duration:
    """How often, and how many nanoseconds together."""

    count: int = 0
    ns: int = 0

    def add(self, milliseconds: float, count: int = 1) -> None:
        """Count something that took so long."""
        self.count += count
        self.ns += round(milliseconds * 1_000_000)


@dataclass(slots=True)
class InferenceCounts:
    """What one model has done. `num_rows` counts rows of batches, `num_computed` those that no cache had."""

    clock: Callable[[], float] = time.time
    last_inference_ms: int = 0
    num_rows: int = 0
    num_computed: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    cache_hit: Duration = field(default_factory=Duration)
    cache_miss: Duration = field(default_factory=Duration)

    def count_success(self, rows: Sequence[StageTimings], cached: Sequence[CacheResult], milliseconds: float) -> None:
        """Count one answered request. cached: what the cache did for each row; empty for a model without one."""
        slowest = max(rows, key=work_ms)
        num_hits = sum(result is CacheResult.HIT for result in cached)
        self.last_inference_ms = round(1000 * self.clock())
        self.num_rows += len(rows)
        self.num_computed += len(rows) - num_hits
        self.success.add(milliseconds)
        queue_ms = getattr(slowest, _QUEUE, 0.0)
        self.queue.add(queue_ms)
        self.compute_input.add(slowest.receive + slowest.decode)
        self.compute_infer.add(work_ms(slowest) - queue_ms)
        self.compute_output.add(slowest.respond)
        self.cache_hit.add(0.0, num_hits)
        self.cache_miss.add(0.0, len(cached) - num_hits)

    def count_failure(self, milliseconds: float) -> None:
        """Count one request that got an error."""
        self.last_inference_ms = round(1000 * self.clock())
        self.fail.add(milliseconds)


def work_ms(timings: StageTimings) -> float:
    """Return the milliseconds of a call's work, waiting included."""
    return sum(getattr(timings, each.name) for each in fields(timings) if each.name in WORK_STAGES)
