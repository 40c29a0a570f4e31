"""Which members of which jobs share the next forward. Pure: it knows no device, no clock and no event loop.

The unit is (job, member, step): `schedule` picks rows, its caller runs them, `settle` books the results.
Controllers come before bulk work, then the earliest deadline, then the first to arrive. Every job that was added
ends exactly once, in an `Outcome` that `take_outcomes` hands out.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count, islice

from foreframe_engines.types import Conditioning, Latents, OnDeadline, Priority, Query, StepRow
from foreframe_server.errors import Overloaded, TooExpensive

_STEP_SMOOTHING = 0.2


class Ending(StrEnum):
    """How a job ended."""

    FINISHED = "finished"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"
    FAULTED = "faulted"


@dataclass(slots=True, eq=False)
class Member:
    """One noise draw in flight: its latents after `step` of its schedule's steps; None before the job is prepared."""

    index: int
    times: tuple[float, ...]
    latents: Latents | None = None
    step: int = 0

    @property
    def is_finished(self) -> bool:
        """Whether every step was taken."""
        return self.step == len(self.times) - 1


@dataclass(slots=True, eq=False)
class Job:
    """A query admitted. The worker sets `conditioning` and the members' first latents; the scheduler the rest.

    times: the schedule of every member, 1 to 0. deadline_s: when the answer is due, on the clock that `schedule` is
    given. received_s: when it was asked, which decides what is newest in a stream. member_decode_s: what it takes to
    decode one whole member, kept free before the deadline.
    """

    id: str
    query: Query
    times: tuple[float, ...]
    deadline_s: float | None = None
    on_deadline: OnDeadline = OnDeadline.DEGRADE
    received_s: float = 0.0
    member_decode_s: float = 0.0
    arrival: int = 0
    conditioning: Conditioning | None = None
    members: tuple[Member, ...] = field(init=False)
    num_pending_rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.members = tuple(Member(index, self.times) for index in range(self.query.ensemble.size))
        self.num_pending_rows = len(self.members) * (len(self.times) - 1)

    @property
    def is_finished(self) -> bool:
        """Whether every member took every step."""
        return self.num_pending_rows == 0

    @property
    def finished_members(self) -> tuple[Member, ...]:
        """The members that are whole: always 0..n-1, because lower indices are stepped first."""
        return tuple(member for member in self.members if member.is_finished)

    @property
    def finished_latents(self) -> tuple[Latents, ...]:
        """The latents of the members that are whole, context included."""
        return tuple(member.latents for member in self.finished_members if member.latents is not None)

    def is_expired(self, now: float) -> bool:
        """Whether the deadline has come, or only the time to decode what is whole is left before it."""
        if self.deadline_s is None:
            return False
        return self.deadline_s <= now + self.member_decode_s * max(1, len(self.finished_members))


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One member's place in a forward."""

    job: Job
    member: Member

    def step_row(self) -> StepRow:
        """Return what the engine steps. The job must be prepared."""
        if self.member.latents is None or self.job.conditioning is None:
            raise RuntimeError("a row was stepped before its job was prepared")
        time, next_time = self.member.times[self.member.step : self.member.step + 2]
        return StepRow(self.member.latents, time, next_time, self.job.conditioning)


@dataclass(frozen=True, slots=True, eq=False)
class StepBatch:
    """The rows of one forward, the most urgent job first."""

    rows: tuple[Row, ...]
    started_s: float

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs that have rows here, each once."""
        return tuple({row.job.id: row.job for row in self.rows}.values())


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """How a job ended, and the whole members it leaves: all of them, those at hand at its deadline, or none."""

    job: Job
    ending: Ending
    members: tuple[Member, ...] = ()


class Scheduler:
    """Holds the admitted jobs and decides whose rows run next.

    max_rows: rows of one forward. max_pending_rows: member-steps that may wait; bulk work counts everything that
    waits, a controller's job only the controllers' share, so bulk work never keeps a controller out.
    """

    def __init__(self, *, max_rows: int, max_pending_rows: int) -> None:
        self.max_rows = max_rows
        self.max_pending_rows = max_pending_rows
        self._step_s = 0.0
        self._jobs: dict[str, Job] = {}
        self._outcomes: list[Outcome] = []
        self._arrivals = count()

    @property
    def has_work(self) -> bool:
        """Whether any job is unfinished."""
        return bool(self._jobs)

    @property
    def num_pending_rows(self) -> int:
        """Member-steps that are admitted and not yet settled."""
        return sum(job.num_pending_rows for job in self._jobs.values())

    @property
    def pending_s(self) -> float:
        """Predicted seconds of the work that waits."""
        return self._predict_s(self.num_pending_rows)

    def add(self, job: Job) -> None:
        """Admit a job; of a stream only the newest lives on, which may be one that was admitted before.

        Raises TooExpensive when it could never fit, Overloaded with `retry_after_ms` when it does not fit now.
        """
        if job.num_pending_rows > self.max_pending_rows:
            raise TooExpensive(
                f"The request needs {job.num_pending_rows} member-steps; at most {self.max_pending_rows} may wait."
            )
        same_stream = self._same_stream(job)
        self._check_room(job, same_stream)
        job.arrival = next(self._arrivals)
        self._jobs[job.id] = job
        *older, _ = sorted([*same_stream, job], key=lambda each: (each.received_s, each.arrival))
        for other in older:
            self._end(other, Ending.SUPERSEDED)

    def extend(self, job_id: str, deadline_s: float | None, on_deadline: OnDeadline) -> None:
        """Let a job live until the later of both deadlines, and end there in the milder of both ways."""
        job = self._jobs.get(job_id)
        if job is None:
            return
        job.deadline_s = later_deadline(job.deadline_s, deadline_s)
        if job.on_deadline is OnDeadline.FAIL:
            job.on_deadline = on_deadline

    def cancel(self, job_id: str, reason: Ending = Ending.CANCELLED) -> None:
        """End a job; one that has ended stays as it is. Rows of it that are in a forward are dropped at `settle`."""
        if job_id in self._jobs:
            self._end(self._jobs[job_id], reason)

    def schedule(self, now: float) -> StepBatch | None:
        """Expire what is late, then pick the rows of the next forward; None when there is nothing to run."""
        self._expire(now)
        rows = tuple(islice(self._runnable_rows(), self.max_rows))
        return StepBatch(rows, now) if rows else None

    def confirm(self, batch: StepBatch, now: float) -> StepBatch | None:
        """Drop the rows of a batch whose jobs ended or expired since it was picked; None when none is left."""
        self._expire(now)
        rows = tuple(row for row in batch.rows if row.job.id in self._jobs)
        return StepBatch(rows, now) if rows else None

    def settle(self, batch: StepBatch, results: Sequence[Latents], now: float) -> None:
        """Book the latents after one step, one for each row in order; end the jobs that are finished or late."""
        self.record_step(now - batch.started_s)
        for row, latents in zip(batch.rows, results, strict=True):
            if row.job.id in self._jobs:
                row.member.latents = latents
                row.member.step += 1
                row.job.num_pending_rows -= 1
        for job in batch.jobs:
            if job.is_finished and job.id in self._jobs:
                self._end(job, Ending.FINISHED)
        self._expire(now)

    def take_outcomes(self) -> list[Outcome]:
        """Hand out the jobs that ended since the last call, each once."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def record_step(self, seconds: float) -> None:
        """Learn from one forward how long forwards take."""
        weight = _STEP_SMOOTHING if self._step_s else 1.0
        self._step_s += weight * (seconds - self._step_s)

    def _runnable_rows(self) -> Iterator[Row]:
        for job in sorted(self._jobs.values(), key=_urgency):
            for member in job.members:
                if not member.is_finished:
                    yield Row(job, member)

    def _same_stream(self, job: Job) -> list[Job]:
        stream_id = job.query.stream_id
        if stream_id is None:
            return []
        return [other for other in self._jobs.values() if other.query.stream_id == stream_id]

    def _check_room(self, job: Job, leaving: Sequence[Job]) -> None:
        ahead = sum(
            other.num_pending_rows
            for other in self._jobs.values()
            if _rank(other) <= _rank(job) and other not in leaving
        )
        if ahead + job.num_pending_rows > self.max_pending_rows:
            retry_after_ms = max(1, math.ceil(1000 * self._predict_s(ahead)))
            raise Overloaded("More work waits than the server takes on.", retry_after_ms=retry_after_ms)

    def _predict_s(self, rows: int) -> float:
        return math.ceil(rows / self.max_rows) * self._step_s

    def _expire(self, now: float) -> None:
        for job in [job for job in self._jobs.values() if job.is_expired(now)]:
            self._end(job, Ending.EXPIRED)

    def _end(self, job: Job, ending: Ending) -> None:
        del self._jobs[job.id]
        self._outcomes.append(Outcome(job, ending, _members_left(job, ending)))


def later_deadline(one_s: float | None, other_s: float | None) -> float | None:
    """Return the later of two deadlines; None is never."""
    return None if one_s is None or other_s is None else max(one_s, other_s)


def _rank(job: Job) -> int:
    return 0 if job.query.priority is Priority.CONTROLLER else 1


def _urgency(job: Job) -> tuple[int, float, int]:
    return (_rank(job), math.inf if job.deadline_s is None else job.deadline_s, job.arrival)


def _members_left(job: Job, ending: Ending) -> tuple[Member, ...]:
    is_cut_short = ending is Ending.EXPIRED and job.on_deadline is not OnDeadline.FAIL
    return job.finished_members if ending is Ending.FINISHED or is_cut_short else ()
