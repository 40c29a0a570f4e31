"""Which members of which jobs share the next forward. Pure: it knows no device, no clock and no event loop.

`schedule` picks rows, its caller runs them, `settle` books the results; every job that was added ends exactly once,
in an `Outcome` that `take_outcomes` hands out.

Controllers and bulk work share the device by weight while both wait. Within a class the earliest deadline is first.
Members beyond those a job needs (`Job.num_needed_rows`) are stepped only while every job can still be on time.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

from foreframe_engines.types import OnDeadline, Priority, StepState
from foreframe_server.budgets import Budgets
from foreframe_server.cost_model import CostModel
from foreframe_server.errors import DeadlineUnmeetable, LoadedDeadline, Overloaded, TooExpensive, retry_ms
from foreframe_server.jobs import Ending, Job, Outcome, Row, StepBatch, can_share, due_s, is_bulk, later_deadline

_OPTIMISM = 0.7
"""What no server could do in time is told from even so much of the predicted time: predictions err."""

_CAUTION = 1.15


@dataclass(slots=True)
class _Class:
    """One class of work. `used` is rows run so far over the class's weight: the class with less is next."""

    weight: float
    used: float = 0.0


class Scheduler:
    """Holds the admitted jobs and decides whose rows run next.

    cost: what work takes, and how many rows a forward has. max_pending_s: predicted seconds of work that may wait; bulk
    work counts everything that waits, a controller's job only the controllers' share, so bulk work never keeps a
    controller out. bulk_share: of the rows while controllers wait too. patience_s: a job without a deadline is treated
    as due so long after it came. budgets: what each key may use before others go first.
    """

    def __init__(
        self,
        cost: CostModel,
        *,
        max_pending_s: float,
        bulk_share: float = 0.1,
        patience_s: float = 10.0,
        budgets: Budgets | None = None,
    ) -> None:
        self.cost = cost
        self.max_pending_s = max_pending_s
        self._patience_s = patience_s
        self._budgets = budgets or Budgets()
        self._classes = {Priority.CONTROLLER: _Class(1 - bulk_share), Priority.BULK: _Class(bulk_share)}
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
        return sum(self._work_s(job) for job in self._jobs.values())

    @property
    def is_roomy(self) -> bool:
        """Whether nobody waits for the end of a forward: no job has a deadline, and each fills a long one."""
        rows = self.cost.roomy_rows
        return all(job.deadline_s is None and job.num_unfinished >= rows for job in self._jobs.values())

    def add(self, job: Job, now: float) -> None:
        """Admit a job; of a stream only the newest lives on, which may be one that was admitted before.

        A part of a job ends nothing: the others may be refused, so who dealt them out ends what is older, later.
        Raises TooExpensive or DeadlineUnmeetable when it could never be served, LoadedDeadline or Overloaded with
        `retry_after_ms` when it cannot be served now.
        """
        same_stream = self._same_stream(job)
        self._check_cost(job, now)
        self._check_room(job, same_stream, now)
        job.arrival = next(self._arrivals)
        self._jobs[job.id] = job
        if job.share.is_part:
            return
        *older, _ = sorted([*same_stream, job], key=lambda each: (each.received_s, each.arrival))
        for other in older:
            self._end(other, Ending.SUPERSEDED)

    def grow(self, job_id: str, size: int) -> bool:
        """Ask for more members of a job; False when it has ended, or when the queue has no room for them."""
        job = self._jobs.get(job_id)
        if job is None:
            return False
        num_new = len(job.missing(size))
        new_s = num_new * (job.num_steps * self.cost.row_s + job.decode_s)
        waiting_s = sum(self._work_s(other) for other in self._jobs.values() if is_bulk(other) <= is_bulk(job))
        if num_new > 0 and waiting_s + new_s > self.max_pending_s:
            return False
        job.grow(size)
        return True

    def ahead_s(self, job: Job) -> float:
        """Predict how long what other jobs of its class need before its deadline will take."""
        due = due_s(job, self._patience_s)
        others = [other for other in self._jobs.values() if other is not job and is_bulk(other) <= is_bulk(job)]
        return sum(self._needed_s(other) for other in others if due_s(other, self._patience_s) < due)

    def extend(self, job_id: str, deadline_s: float | None, on_deadline: OnDeadline) -> None:
        """Let a job live until the later of both deadlines, and end there in the milder of both ways."""
        job = self._jobs.get(job_id)
        if job is None:
            return
        job.deadline_s = later_deadline(job.deadline_s, deadline_s)
        job.on_deadline = milder(job.on_deadline, on_deadline)

    def cancel(self, job_id: str, reason: Ending = Ending.CANCELLED) -> None:
        """End a job; one that has ended stays as it is. Rows of it that are in a forward are dropped at `settle`."""
        if job_id in self._jobs:
            self._end(self._jobs[job_id], reason)

    def schedule(self, now: float) -> StepBatch | None:
        """Expire what is late, then pick the rows of the next forward; None when there is nothing to run."""
        self._expire(now)
        self._budgets.refill(now)
        rows = tuple(self._pick(now))
        return StepBatch(rows, now) if rows else None

    def confirm(self, batch: StepBatch, now: float) -> StepBatch | None:
        """Drop the rows of a batch whose jobs ended or expired since it was picked; None when none is left."""
        self._expire(now)
        rows = tuple(row for row in batch.rows if row.job.id in self._jobs)
        return StepBatch(rows, now) if rows else None

    def settle(self, batch: StepBatch, results: Sequence[StepState], now: float) -> list[Row]:
        """Book the latents after one step, one for each row in order; end the jobs that are finished or late.

        Returns the rows whose members became whole, of jobs that still lived.
        """
        self._charge(batch, now - batch.started_s)
        alive = [row.job.id in self._jobs for row in batch.rows]
        for row, latents, is_alive in zip(batch.rows, results, alive, strict=True):
            if is_alive:
                row.job.book(row.member, latents)
        for job in batch.jobs:
            if job.is_finished and job.id in self._jobs:
                self._end(job, Ending.FINISHED)
        self._expire(now)
        return [
            row for row, is_alive in zip(batch.rows, alive, strict=True) if is_alive and row.job.is_whole(row.member)
        ]

    def take_outcomes(self) -> list[Outcome]:
        """Hand out the jobs that ended since the last call, each once."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _pick(self, now: float) -> Iterator[Row]:
        """Yield the rows of one forward, the most urgent one first."""
        rows = self._mix(now)
        first = next(rows, None)
        if first is not None:
            yield first
            company = (row for row in rows if can_share(first.job, row.job))
            num_rows = self.cost.roomy_rows if self.is_roomy else self.cost.max_rows
            yield from islice(company, num_rows - 1)

    def _mix(self, now: float) -> Iterator[Row]:
        """Yield all rows that wait, from class to class by weight."""
        queues = {kind: self._rows(kind, now) for kind in self._classes}
        used = {kind: each.used for kind, each in self._classes.items()}
        while True:
            row = None
            while row is None and queues:
                kind = min(queues, key=lambda each: (used[each], each is Priority.BULK))
                row = next(queues[kind], None)
                if row is None:
                    del queues[kind]
            if row is None:
                return
            used[kind] += 1 / self._classes[kind].weight
            yield row

    def _rows(self, kind: Priority, now: float) -> Iterator[Row]:
        """Yield a class's rows: needed and spare ones by deadline while all are on time, then the needed ones first."""
        jobs = sorted((job for job in self._jobs.values() if job.query.priority is kind), key=self._urgency)
        slack_s = self._slack_s(jobs, now)
        later: list[Row] = []
        for job in jobs:
            for member in job.members:
                if job.is_whole(member):
                    continue
                if not job.is_needed(member):
                    slack_s -= self.cost.row_s + (job.decode_s if job.is_nearly_whole(member) else 0.0)
                    if slack_s < 0:
                        later.append(Row(job, member))
                        continue
                yield Row(job, member)
        yield from later

    def _slack_s(self, jobs: Sequence[Job], now: float) -> float:
        """Return how long the needed rows of jobs, most urgent first, could wait and all be on time."""
        ahead_s, slack_s = 0.0, math.inf
        forward_s = self.cost.step_s(self.cost.max_rows)
        for job in jobs:
            if job.num_needed_rows:
                ahead_s += self._needed_s(job)
                # One member cannot use a full forward: its steps come one after another.
                own_s = max(ahead_s, job.num_needed_steps * forward_s + job.decode_s)
                slack_s = min(slack_s, due_s(job, self._patience_s) - now - own_s)
        return slack_s

    def _urgency(self, job: Job) -> tuple[bool, float, int]:
        return (self._budgets.is_spent(job.key), due_s(job, self._patience_s), job.arrival)

    def _charge(self, batch: StepBatch, seconds: float) -> None:
        self.cost.observe_step(len(batch.rows), seconds)
        for row in batch.rows:
            each = self._classes[row.job.query.priority]
            each.used += 1 / each.weight
            self._budgets.charge(row.job.key, seconds / len(batch.rows))
        self._forget_credit()

    def _forget_credit(self) -> None:
        """Let a class that had too little to run forget what it did not use, or it would have the device alone later.

        Classes that both have enough to run are never further apart than one row of the lighter one.
        """
        classes = self._classes.values()
        floor = max(each.used for each in classes) - max(1 / each.weight for each in classes)
        for each in classes:
            each.used = max(each.used, floor)

    def _same_stream(self, job: Job) -> list[Job]:
        if job.query.stream_id is None:
            return []
        stream = (job.key, job.query.stream_id)
        return [other for other in self._jobs.values() if (other.key, other.query.stream_id) == stream]

    def _check_cost(self, job: Job, now: float) -> None:
        own_s = self._work_s(job)
        if own_s > self.max_pending_s:
            raise TooExpensive(
                f"The request needs {own_s:.1f} s of the device; at most {self.max_pending_s:g} s may wait."
            )
        if job.deadline_s is not None and now + _OPTIMISM * self._least_s(job) > job.deadline_s:
            raise DeadlineUnmeetable(
                f"Even an idle server needs about {1000 * self._least_s(job):.0f} ms for the least that was asked for."
            )

    def _check_room(self, job: Job, leaving: Sequence[Job], now: float) -> None:
        ahead = [other for other in self._jobs.values() if is_bulk(other) <= is_bulk(job) and other not in leaving]
        ahead_s = sum(self._work_s(other) for other in ahead)
        if ahead_s + self._work_s(job) > self.max_pending_s:
            raise Overloaded("More work waits than the server takes on.", retry_after_ms=retry_ms(ahead_s))
        if job.deadline_s is None:
            return
        first = [other for other in ahead if due_s(other, self._patience_s) <= job.deadline_s]
        first_s = sum(self._time_s(other, other.num_least_rows) for other in first)
        # Not optimistic here: work that is begun and then given up is taken from those who could have been in time.
        if first_s > 0 and now + _CAUTION * (first_s + self._least_s(job)) > job.deadline_s:
            raise LoadedDeadline("Too much work waits to meet this deadline.", retry_after_ms=retry_ms(first_s))

    def _work_s(self, job: Job) -> float:
        """Predict the device's time for all that a job still waits for."""
        return self._time_s(job, job.num_pending_rows)

    def _needed_s(self, job: Job) -> float:
        """Predict the device's time for what a job still needs to have an answer."""
        return self._time_s(job, job.num_needed_rows)

    def _time_s(self, job: Job, num_rows: int) -> float:
        prepare_s = self.cost.prepare_s if job.conditioning is None and num_rows > 0 else 0.0
        num_members = math.ceil(num_rows / job.num_steps)
        return prepare_s + num_rows * self.cost.row_s + num_members * job.decode_s

    def _least_s(self, job: Job) -> float:
        """Predict what the least answer takes on an idle device: for `degrade` one step, else all that it needs."""
        if job.is_top_up and job.on_deadline is not OnDeadline.FAIL:
            return 0.0
        if job.on_deadline is OnDeadline.DEGRADE:
            return self.cost.prepare_s + self.cost.step_s(1) + job.decode_s
        num_members = len(job.members) if job.on_deadline is OnDeadline.FAIL else 1
        rows_s = self.cost.row_s * num_members * job.num_steps
        # A single member cannot use a full forward: its steps come one after another.
        steps_s = max(rows_s, self.cost.step_s(1) * job.num_steps)
        return self.cost.prepare_s + steps_s + num_members * job.decode_s

    def _expire(self, now: float) -> None:
        for job in [job for job in self._jobs.values() if self._is_late(job, now)]:
            self._end(job, Ending.EXPIRED)

    def _is_late(self, job: Job, now: float) -> bool:
        if job.deadline_s is None:
            return False
        rows = self.cost.max_rows
        return job.is_expired(now, self.cost.step_s(rows), rows) or self._is_hopeless(job, now)

    def _is_hopeless(self, job: Job, now: float) -> bool:
        """Whether a job that must be whole will not be: running on would only take time from the others."""
        if job.deadline_s is None or job.has_answer or job.on_deadline is OnDeadline.DEGRADE:
            return False
        steps_s = job.num_needed_steps * self.cost.step_s(1) + job.decode_s
        return now + _OPTIMISM * max(steps_s, self._needed_s(job)) > job.deadline_s

    def _end(self, job: Job, ending: Ending) -> None:
        del self._jobs[job.id]
        self._outcomes.append(Outcome(job, ending))


def milder(one: OnDeadline, other: OnDeadline) -> OnDeadline:
    """Return the way of ending that returns more."""
    order = (OnDeadline.DEGRADE, OnDeadline.PARTIAL, OnDeadline.FAIL)
    return min(one, other, key=order.index)
