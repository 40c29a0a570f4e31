import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreframe_engines import EnsembleSpec, OnDeadline, Priority, Query, Sampling, Strategy
from foreframe_engines.schedule import get_schedule
from foreframe_server.errors import Overloaded, TooExpensive
from foreframe_server.scheduler import Ending, Job, Scheduler, StepBatch

LATENTS = np.zeros((1, 1, 1, 1), np.float32)


def make_job(
    name,
    *,
    size=1,
    steps=1,
    deadline_s=None,
    on_deadline=OnDeadline.DEGRADE,
    priority=Priority.CONTROLLER,
    stream_id=None,
):
    query = Query(
        model="toy",
        context=np.zeros((1, 2, 2, 3), np.uint8),
        states=np.zeros((2, 1), np.float32),
        frame_indices=(1,),
        sampling=Sampling(Strategy.SAMPLE, steps, 0),
        ensemble=EnsembleSpec(size),
        priority=priority,
        stream_id=stream_id,
    )
    return Job(name, query, get_schedule(steps, 5.0), deadline_s, on_deadline)


def make_scheduler(max_rows=4, max_pending_rows=64):
    return Scheduler(max_rows=max_rows, max_pending_rows=max_pending_rows)


def names(batch: StepBatch):
    return [(row.job.id, row.member.index, row.member.step) for row in batch.rows]


def run_once(scheduler, now=0.0, step_s=0.0):
    batch = scheduler.schedule(now)
    scheduler.settle(batch, [LATENTS] * len(batch.rows), now + step_s)
    return batch


def run_dry(scheduler, now=0.0):
    while (batch := scheduler.schedule(now)) is not None:
        scheduler.settle(batch, [LATENTS] * len(batch.rows), now)


def endings(scheduler):
    return {outcome.job.id: outcome.ending for outcome in scheduler.take_outcomes()}


def test_rows_of_different_jobs_and_steps_share_a_forward():
    scheduler = make_scheduler()
    scheduler.add(make_job("a", steps=3))
    run_once(scheduler)
    scheduler.add(make_job("b", steps=2))
    assert names(scheduler.schedule(0.0)) == [("a", 0, 1), ("b", 0, 0)]


def test_a_forward_holds_no_more_rows_than_the_largest_bucket():
    scheduler = make_scheduler(max_rows=4)
    scheduler.add(make_job("a", size=6))
    assert len(scheduler.schedule(0.0).rows) == 4


def test_controllers_precede_bulk_then_earlier_deadlines_then_earlier_arrivals():
    scheduler = make_scheduler(max_rows=8)
    scheduler.add(make_job("bulk", deadline_s=1.0, priority=Priority.BULK))
    scheduler.add(make_job("endless"))
    scheduler.add(make_job("late", deadline_s=9.0))
    scheduler.add(make_job("soon", deadline_s=2.0))
    scheduler.add(make_job("soon too", deadline_s=2.0))
    order = [name for name, _, _ in names(scheduler.schedule(0.0))]
    assert order == ["soon", "soon too", "late", "endless", "bulk"]


def test_a_more_urgent_job_preempts_at_the_next_step_border():
    scheduler = make_scheduler(max_rows=1)
    scheduler.add(make_job("slow", steps=3, deadline_s=9.0))
    run_once(scheduler)
    scheduler.add(make_job("urgent", deadline_s=1.0))
    run_once(scheduler)
    assert endings(scheduler) == {"urgent": Ending.FINISHED}


def test_lower_members_are_finished_before_higher_ones_start():
    scheduler = make_scheduler(max_rows=2)
    scheduler.add(make_job("a", size=4, steps=2))
    seen = [names(run_once(scheduler)) for _ in range(4)]
    assert [[index for _, index, _ in batch] for batch in seen] == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_an_expired_job_leaves_its_whole_members():
    scheduler = make_scheduler(max_rows=2)
    scheduler.add(make_job("a", size=4, steps=2, deadline_s=1.0))
    for now in (0.0, 0.1, 0.2):
        run_once(scheduler, now)
    assert scheduler.schedule(1.0) is None
    (outcome,) = scheduler.take_outcomes()
    assert outcome.ending is Ending.EXPIRED
    assert [member.index for member in outcome.members] == [0, 1]


def test_an_expired_job_that_must_fail_leaves_nothing():
    scheduler = make_scheduler(max_rows=1)
    scheduler.add(make_job("a", size=2, deadline_s=1.0, on_deadline=OnDeadline.FAIL))
    run_once(scheduler, 0.0)
    scheduler.schedule(2.0)
    (outcome,) = scheduler.take_outcomes()
    assert (outcome.ending, outcome.members) == (Ending.EXPIRED, ())


def test_a_job_that_finishes_in_a_step_across_its_deadline_is_finished():
    scheduler = make_scheduler()
    scheduler.add(make_job("a", deadline_s=1.0))
    run_once(scheduler, 0.9, step_s=0.5)
    assert endings(scheduler) == {"a": Ending.FINISHED}


def test_confirm_drops_rows_that_ended_while_jobs_were_prepared():
    scheduler = make_scheduler()
    scheduler.add(make_job("late", deadline_s=1.0))
    scheduler.add(make_job("gone", deadline_s=8.0))
    scheduler.add(make_job("kept", deadline_s=9.0))
    batch = scheduler.schedule(0.0)
    scheduler.cancel("gone")
    assert names(scheduler.confirm(batch, 1.0)) == [("kept", 0, 0)]
    scheduler.cancel("kept")
    assert scheduler.confirm(batch, 1.0) is None


def test_a_newer_job_of_a_stream_supersedes_the_older_one_even_in_a_forward():
    scheduler = make_scheduler()
    scheduler.add(make_job("old", steps=2, stream_id="arm"))
    scheduler.add(make_job("other", stream_id="leg"))
    batch = scheduler.schedule(0.0)
    scheduler.add(make_job("new", stream_id="arm"))
    scheduler.settle(batch, [LATENTS] * len(batch.rows), 0.0)
    assert endings(scheduler) == {"old": Ending.SUPERSEDED, "other": Ending.FINISHED}
    run_dry(scheduler)
    assert endings(scheduler) == {"new": Ending.FINISHED}


def test_a_cancelled_job_ends_once():
    scheduler = make_scheduler()
    scheduler.add(make_job("a", steps=2))
    run_once(scheduler)
    scheduler.cancel("a")
    scheduler.cancel("a")
    scheduler.cancel("never added")
    assert scheduler.schedule(0.0) is None
    assert endings(scheduler) == {"a": Ending.CANCELLED}
    assert scheduler.take_outcomes() == []


def test_the_queue_is_bounded_in_member_steps_and_says_when_to_come_back():
    scheduler = make_scheduler(max_rows=4, max_pending_rows=20)
    scheduler.record_step(0.1)
    scheduler.add(make_job("a", size=4, steps=4))
    with pytest.raises(Overloaded) as refusal:
        scheduler.add(make_job("b", size=5, steps=1))
    assert refusal.value.retry_after_ms == 400
    scheduler.add(make_job("c", size=4, steps=1))
    assert scheduler.num_pending_rows == 20
    assert scheduler.pending_s == pytest.approx(0.5)


def test_a_refused_job_supersedes_nothing():
    scheduler = make_scheduler(max_pending_rows=8)
    scheduler.add(make_job("old", stream_id="arm"))
    scheduler.add(make_job("other", size=7))
    with pytest.raises(Overloaded):
        scheduler.add(make_job("new", size=2, stream_id="arm"))
    run_dry(scheduler)
    assert endings(scheduler) == {"old": Ending.FINISHED, "other": Ending.FINISHED}


def test_a_newer_job_may_take_the_room_of_those_it_supersedes():
    scheduler = make_scheduler(max_pending_rows=8)
    scheduler.add(make_job("old", size=8, stream_id="arm"))
    scheduler.add(make_job("new", size=8, stream_id="arm"))
    assert endings(scheduler) == {"old": Ending.SUPERSEDED}


def test_a_job_that_could_never_fit_is_too_expensive():
    with pytest.raises(TooExpensive):
        make_scheduler(max_pending_rows=8).add(make_job("a", size=3, steps=3))


def test_bulk_work_never_keeps_a_controller_out():
    scheduler = make_scheduler(max_pending_rows=8)
    scheduler.add(make_job("bulk", size=8, priority=Priority.BULK))
    scheduler.add(make_job("controller", size=8))
    with pytest.raises(Overloaded):
        scheduler.add(make_job("more bulk", priority=Priority.BULK))


def test_extend_keeps_the_later_deadline_and_the_milder_end():
    scheduler = make_scheduler()
    job = make_job("a", deadline_s=5.0, on_deadline=OnDeadline.FAIL)
    scheduler.add(job)
    scheduler.extend("a", 3.0, OnDeadline.PARTIAL)
    assert (job.deadline_s, job.on_deadline) == (5.0, OnDeadline.PARTIAL)
    scheduler.extend("a", None, OnDeadline.FAIL)
    assert (job.deadline_s, job.on_deadline) == (None, OnDeadline.PARTIAL)
    scheduler.extend("never added", None, OnDeadline.FAIL)


def test_step_time_is_learned_from_settled_forwards():
    scheduler = make_scheduler(max_rows=1)
    scheduler.add(make_job("a", size=3))
    run_once(scheduler, 0.0, step_s=0.25)
    assert scheduler.pending_s == pytest.approx(0.5)


JOBS = st.builds(
    dict,
    size=st.integers(1, 5),
    steps=st.integers(1, 4),
    deadline_s=st.one_of(st.none(), st.integers(0, 30).map(float)),
    on_deadline=st.sampled_from(OnDeadline),
    priority=st.sampled_from(Priority),
    stream_id=st.sampled_from([None, None, "arm", "leg"]),
)
EVENTS = st.one_of(
    st.tuples(st.just("add"), JOBS),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("step"), st.integers(0, 3)),
    st.tuples(st.just("cancel in a step"), st.integers(0, 9)),
)


class Trace:
    """Plays events on a scheduler with a clock of its own and keeps a ledger of what must hold."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.now = 0.0
        self.jobs = []
        self.cancelled = set()
        self.outcomes = []
        self.steps_run = {}

    def play(self, events):
        for kind, value in events:
            if kind == "add":
                self.add(value)
            elif kind == "cancel":
                self.cancel(value)
            elif kind == "step":
                self.step(value)
            else:
                self.step(1, cancelled=value)
        while self.scheduler.has_work:
            self.step(1)
        self.outcomes += self.scheduler.take_outcomes()

    def add(self, words):
        job = make_job(f"job {len(self.jobs)}", **words)
        if job.deadline_s is not None:
            job.deadline_s += self.now
        try:
            self.scheduler.add(job)
        except Overloaded:
            return
        self.jobs.append(job)

    def cancel(self, index):
        if index < len(self.jobs):
            self.scheduler.cancel(self.jobs[index].id)
            self.cancelled.add(self.jobs[index].id)

    def step(self, duration, cancelled=None):
        batch = self.scheduler.schedule(self.now)
        self.outcomes += self.scheduler.take_outcomes()
        ended = {outcome.job.id for outcome in self.outcomes}
        waiting = [job for job in self.jobs if job.id not in ended]
        if batch is None:
            assert not waiting
            return
        self.check(batch, waiting)
        if cancelled is not None:
            self.cancel(cancelled)
        self.now += duration
        self.scheduler.settle(batch, [LATENTS] * len(batch.rows), self.now)

    def check(self, batch, waiting):
        num_runnable = sum(not member.is_finished for job in waiting for member in job.members)
        assert len(batch.rows) == min(self.scheduler.max_rows, num_runnable)
        assert len({(row.job.id, row.member.index) for row in batch.rows}) == len(batch.rows)
        for row in batch.rows:
            assert row.job in waiting
            assert row.job.id not in self.cancelled
            assert row.job.deadline_s is None or row.job.deadline_s > self.now
            self.steps_run.setdefault((row.job.id, row.member.index), []).append(row.member.step)


@settings(max_examples=150, deadline=None)
@given(events=st.lists(EVENTS, max_size=40), max_rows=st.sampled_from([1, 2, 4, 8]))
def test_any_trace_keeps_the_rules(events, max_rows):
    trace = Trace(make_scheduler(max_rows=max_rows, max_pending_rows=60))
    trace.play(events)
    assert sorted(outcome.job.id for outcome in trace.outcomes) == sorted(job.id for job in trace.jobs)
    for steps in trace.steps_run.values():
        assert steps == list(range(len(steps)))
    for outcome in trace.outcomes:
        assert [member.index for member in outcome.members] == list(range(len(outcome.members)))
        if outcome.ending is Ending.FINISHED:
            assert len(outcome.members) == len(outcome.job.members)
            assert all(
                len(trace.steps_run[outcome.job.id, member.index]) == len(member.times) - 1
                for member in outcome.members
            )
        elif outcome.ending is not Ending.EXPIRED or outcome.job.on_deadline is OnDeadline.FAIL:
            assert outcome.members == ()


class ForgetfulScheduler(Scheduler):
    """A scheduler with a planted fault: deadlines are only looked at after a step."""

    def schedule(self, now):
        return super().schedule(-math.inf)


def test_the_trace_catches_a_scheduler_that_ignores_deadlines():
    trace = Trace(ForgetfulScheduler(max_rows=2, max_pending_rows=60))
    with pytest.raises(AssertionError):
        trace.play([("add", {"deadline_s": 0.0}), ("step", 1)])
