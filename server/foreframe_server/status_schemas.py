"""The wire's status of a server, as pydantic models."""

import math
from typing import Self

from pydantic import Field

from foreframe_server.schemas import WireReply
from foreframe_server.vital_signs import VitalSigns


class LatencyBucket(WireReply):
    """How many requests took at most so long."""

    at_most_s: float | None = Field(description="Null: any time.")
    count: int


class DeadlinesReply(WireReply):
    """What became of calls with a deadline."""

    met: int
    degraded: int = Field(description="In time, with less than was asked for.")
    late: int
    exceeded: int = Field(description="Answered with an error.")


class CacheReply(WireReply):
    """What the result cache was asked and had."""

    lookups: int
    hits: int


class StatusReply(WireReply):
    """How a server is doing. Counts are since its start and of requests for work: predictions, steps, scores, reads."""

    is_ready: bool
    queue_s: float = Field(description="Predicted seconds of work that waits.")
    busy_ratio: float = Field(description="Share 0..1 of the last seconds in engine calls.")
    sessions: int
    requests: int
    refused: int = Field(description="Requests that got an error instead of an answer.")
    latency: list[LatencyBucket] = Field(description="Cumulative, rising; first byte to last.")
    deadlines: DeadlinesReply
    cache: CacheReply

    @classmethod
    def of(cls, signs: VitalSigns, *, is_ready: bool, num_sessions: int) -> Self:
        """Write what was added up."""
        deadlines = signs.deadlines
        return cls(
            is_ready=is_ready,
            queue_s=signs.queue_s,
            busy_ratio=signs.busy_ratio,
            sessions=num_sessions,
            requests=signs.num_requests,
            refused=signs.num_refused,
            latency=[
                LatencyBucket(at_most_s=None if math.isinf(seconds) else seconds, count=count)
                for seconds, count in sorted(signs.at_most.items())
            ],
            deadlines=DeadlinesReply(
                met=deadlines["met"],
                degraded=deadlines["degraded"],
                late=deadlines["late"],
                exceeded=deadlines["exceeded"],
            ),
            cache=CacheReply(lookups=signs.cache_lookups, hits=signs.cache_hits),
        )
