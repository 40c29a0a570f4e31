"""How many robots' questions were worth asking. Pure.

The rule: an answer counts when it was in hand within the deadline, counted from when the question was due, and has all
members at all steps. An answer in time that says that it is degraded is counted by itself, and never as a whole one.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peers.plan import PLANNER

from foreframe_server.load.records import Record
from foreframe_server.load.summary import Percentiles


@dataclass(frozen=True, slots=True)
class Goodput:
    """Robots' questions by what became of them, and planners' beside them. Rates are by the trace's seconds."""

    robots_asked: int
    whole: int
    degraded: int
    late: int
    unanswered: int
    goodput_per_s: float
    with_degraded_per_s: float
    refusals: Mapping[str, int]
    robots_ms: Percentiles | None
    degraded_members: float | None
    planners_asked: int
    planners_answered: int
    planners_ms: Percentiles | None


def count(records: Sequence[Record], duration_s: float) -> Goodput:
    """Count up a mixed trace's records."""
    robots = [record for record in records if record.arrival.group != PLANNER]
    planners = [record for record in records if record.arrival.group == PLANNER and record.reply.is_ok]
    timely = [record for record in robots if not record.is_miss]
    degraded = [record for record in timely if is_degraded(record)]
    whole = len(timely) - len(degraded)
    return Goodput(
        robots_asked=len(robots),
        whole=whole,
        degraded=len(degraded),
        late=sum(record.is_miss and record.reply.is_ok for record in robots),
        unanswered=sum(not record.reply.is_ok for record in robots),
        goodput_per_s=round(whole / duration_s, 4),
        with_degraded_per_s=round(len(timely) / duration_s, 4),
        refusals=dict(Counter(record.reply.code for record in robots if not record.reply.is_ok)),
        robots_ms=Percentiles.of(record.latency_ms for record in robots if record.reply.is_ok),
        degraded_members=_mean([record.reply.members for record in degraded]),
        planners_asked=sum(record.arrival.group == PLANNER for record in records),
        planners_answered=len(planners),
        planners_ms=Percentiles.of(record.latency_ms for record in planners),
    )


def is_degraded(record: Record) -> bool:
    """Tell whether an answer is less than was asked for."""
    return record.reply.is_degraded or record.reply.members < record.arrival.ask.members


def _mean(values: Sequence[int]) -> float | None:
    return round(sum(values) / len(values), 3) if values else None
