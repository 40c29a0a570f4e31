"""A query on the device: its members, how far each has come, and how the whole ended. Values and counts only.

The unit of work is (job, member, step). Members are taken in order, so the whole ones are always a prefix.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum

from foreframe_engines.types import Conditioning, OnDeadline, Priority, Query, StepRow, StepState
from foreframe_server.quarantine import Deaths, digest_query

_STEP_MARGIN = 1.5
"""A step that is begun cannot be called back, and one in four takes longer than predicted."""

_RESERVED_SHARE = 0.25
"""Of the budget at most: or one slow decode would refuse every later job without a try."""


class Ending(StrEnum):
    """How a job ended."""

    FINISHED = "finished"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"
    FAULTED = "faulted"
    CRASHED = "crashed"
    STRANDED = "stranded"
    """No engine was there to run it."""


@dataclass(frozen=True, slots=True)
class Share:
    """Which members of an ensemble are one device's: every `count`-th antithetic pair, from the `index`-th on."""

    index: int = 0
    count: int = 1

    @property
    def is_part(self) -> bool:
        """Whether other devices compute the rest."""
        return self.count > 1

    def holds(self, member: int) -> bool:
        """Whether a member is this device's."""
        return member // 2 % self.count == self.index


WHOLE = Share()


@dataclass(slots=True, eq=False)
class Member:
    """One noise draw in flight: its latents after `step` steps and one step before; None until the job is prepared."""

    index: int
    latents: StepState | None = None
    previous: StepState | None = None
    step: int = 0


@dataclass(slots=True, eq=False)
class Job:
    """A query admitted. The worker sets `conditioning` and the members' first latents; the scheduler the rest.

    times: the schedule of every member, 1 to 0. deadline_s: when the answer is due, on the scheduler's clock.
    received_s: when it was asked, which decides what is newest in a stream. first_member: how many members are known
    already. decode_s: predicted seconds of decoding one member. key: whose budget it uses. share: which of the members
    it computes. deaths: of engines that held its request. context_digest: of its context, where it is known.
    """

    id: str
    query: Query
    times: tuple[float, ...]
    deadline_s: float | None = None
    on_deadline: OnDeadline = OnDeadline.DEGRADE
    received_s: float = 0.0
    first_member: int = 0
    decode_s: float = 0.0
    key: str = ""
    share: Share = WHOLE
    deaths: Deaths = field(default_factory=Deaths)
    context_digest: bytes | None = None
    arrival: int = 0
    conditioning: Conditioning | None = None
    members: list[Member] = field(init=False)
    num_pending_rows: int = field(init=False)
    _size: int = field(init=False)
    _digest: bytes | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._size, self.members = self.first_member, []
        self.num_pending_rows = 0
        self.grow(self.query.ensemble.size)

    @property
    def is_top_up(self) -> bool:
        """Whether members before its own come from elsewhere, so that even none of its own is an answer."""
        return not self.members or self.members[0].index > 0

    def digest(self) -> bytes:
        """Return the digest of what is asked, worked out once."""
        if self._digest is None:
            self._digest = digest_query(self.query)
        return self._digest

    @property
    def num_steps(self) -> int:
        """Solver steps of a member."""
        return len(self.times) - 1

    @property
    def is_finished(self) -> bool:
        """Whether every member took every step."""
        return self.num_pending_rows == 0

    @property
    def is_started(self) -> bool:
        """Whether any member has taken a step."""
        return self.num_pending_rows < len(self.members) * self.num_steps

    @property
    def whole_members(self) -> list[Member]:
        """The members that took every step, which are the first ones."""
        return [member for member in self.members if self.is_whole(member)]

    @property
    def num_unfinished(self) -> int:
        """How many members have steps before them."""
        return sum(not self.is_whole(member) for member in self.members)

    @property
    def has_answer(self) -> bool:
        """Whether something could be returned now: known members, whole ones, or for `degrade` a first step."""
        if self.is_top_up or self.is_whole(self.members[0]):
            return self.on_deadline is not OnDeadline.FAIL
        return self.on_deadline is OnDeadline.DEGRADE and self.members[0].step > 0

    @property
    def num_needed_rows(self) -> int:
        """Member-steps without which there is no answer: one member where fewer will do, else all that wait."""
        if self.deadline_s is None or self.on_deadline is OnDeadline.FAIL:
            return self.num_pending_rows
        return 0 if self.is_top_up else self.num_steps - self.members[0].step

    @property
    def num_least_rows(self) -> int:
        """Member-steps of the least answer: for `degrade` a single step, else all that is needed."""
        if self.on_deadline is not OnDeadline.DEGRADE or self.deadline_s is None:
            return self.num_needed_rows
        return 0 if self.has_answer else 1

    @property
    def num_needed_steps(self) -> int:
        """How many of the needed rows come one after another, because they are of one member."""
        if self.deadline_s is None or self.on_deadline is OnDeadline.FAIL:
            return self.num_steps - self.members[-1].step  # the last member is never ahead of another
        return self.num_needed_rows

    def is_whole(self, member: Member) -> bool:
        """Whether a member took every step."""
        return member.step == self.num_steps

    def is_nearly_whole(self, member: Member) -> bool:
        """Whether a member has one step before it."""
        return member.step == self.num_steps - 1

    def is_needed(self, member: Member) -> bool:
        """Whether a member is one of those without which there is no answer."""
        if self.deadline_s is None or self.on_deadline is OnDeadline.FAIL:
            return True
        return not self.is_top_up and member is self.members[0]

    def is_expired(self, now: float, step_s: float, max_rows: int) -> bool:
        """Whether the deadline has come; for a job that has an answer, whether one more step would be late."""
        if self.deadline_s is None:
            return False
        if self.deadline_s <= now or not self.has_answer:
            return self.deadline_s <= now
        budget_s = max(0.0, self.deadline_s - self.received_s)
        next_s = _STEP_MARGIN * step_s + self.decode_s * self._num_nearly_whole(max_rows)
        return self.deadline_s < now + min(next_s, _RESERVED_SHARE * budget_s)

    def _num_nearly_whole(self, max_rows: int) -> int:
        """Count the members that the next forward may make whole: at least one, for an estimate is decoded too."""
        waiting = [member for member in self.members if not self.is_whole(member)][:max_rows]
        return max(1, sum(map(self.is_nearly_whole, waiting)))

    def missing(self, size: int) -> list[int]:
        """Say which members are to be added for an ensemble of so many."""
        return [index for index in range(self._size, size) if self.share.holds(index)]

    def grow(self, size: int) -> None:
        """Ask for more members."""
        missing = self.missing(size)
        self._size = max(self._size, size)
        self.members += map(Member, missing)
        self.num_pending_rows += len(missing) * self.num_steps

    def shorten(self, times: tuple[float, ...]) -> None:
        """Take another schedule, before any step is taken."""
        if self.is_started:
            raise RuntimeError("a job that has been started keeps its schedule")
        self.times = times
        self.num_pending_rows = len(self.members) * self.num_steps

    def book(self, member: Member, latents: StepState) -> None:
        """Put a member one step on."""
        member.previous, member.latents = member.latents, latents
        member.step += 1
        self.num_pending_rows -= 1


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One member's place in a forward."""

    job: Job
    member: Member

    def step_row(self) -> StepRow:
        """Return what the engine steps. The job must be prepared."""
        if self.member.latents is None or self.job.conditioning is None:
            raise RuntimeError("a row was stepped before its job was prepared")
        step, times = self.member.step, self.job.times
        guidance = self.job.query.sampling.guidance
        return StepRow(self.member.latents, times[step], times[step + 1], self.job.conditioning, times[:step], guidance)


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
    """How a job ended."""

    job: Job
    ending: Ending

    @property
    def has_answer(self) -> bool:
        """Whether its caller gets what there is: everything, or what a deadline left."""
        return self.ending is Ending.FINISHED or (self.ending is Ending.EXPIRED and self.job.has_answer)


def can_share(one: Job, other: Job) -> bool:
    """Whether rows of two jobs may run in one forward: whatever cost an engine runs alone."""
    return one is other or not (one.deaths.num or other.deaths.num)


def is_bulk(job: Job) -> bool:
    """Whether a job only fills what controllers leave."""
    return job.query.priority is Priority.BULK


def due_s(job: Job, patience_s: float) -> float:
    """Return when a job ought to be done: its deadline, or what patience allows after it came."""
    return job.received_s + patience_s if job.deadline_s is None else job.deadline_s


def later_deadline(one_s: float | None, other_s: float | None) -> float | None:
    """Return the later of two deadlines; None is never."""
    return None if one_s is None or other_s is None else max(one_s, other_s)


def affordable_steps(seconds: float, step_s: float, limit: int) -> int:
    """Return how many steps fit into so much time: 1..limit, all of them while nothing is known of their cost.

    The last one needs the reserve that `Job.is_expired` keeps, or it would not be begun.
    """
    return limit if step_s <= 0 else max(1, min(limit, math.floor(seconds / step_s - (_STEP_MARGIN - 1))))
