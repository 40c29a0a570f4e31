import numpy as np
import pytest

from foreframe_engines import OnDeadline, Priority
from foreframe_engines.schedule import get_schedule
from foreframe_engines.testing import ToyRolloutEngine
from foreframe_server.jobs import (
    Ending,
    Job,
    Outcome,
    Row,
    Share,
    StepBatch,
    affordable_steps,
    can_share,
    due_s,
    is_bulk,
    later_deadline,
)
from foreframe_server.quarantine import Deaths

LATENTS = np.zeros((1, 1, 1, 1), np.float32)
SHIFT = 5.0


@pytest.fixture
def make_job(make_query):
    def make(*, size=3, steps=2, priority=Priority.CONTROLLER, **facts):
        query = make_query(size=size, steps=steps, priority=priority)
        return Job("job", query, get_schedule(steps, SHIFT), **facts)

    return make


def take_steps(job, *steps):
    """Put the first members so many steps on."""
    for member, count in zip(job.members, steps, strict=False):
        for _ in range(count):
            job.book(member, LATENTS)


def test_a_job_counts_the_steps_that_its_members_have_before_them(make_job):
    job = make_job(size=3, steps=2)
    assert (job.num_pending_rows, job.is_started, job.is_finished) == (6, False, False)
    take_steps(job, 2, 1)
    assert (job.num_pending_rows, job.is_started, job.is_finished) == (3, True, False)
    assert [member.index for member in job.whole_members] == [0]
    take_steps(job, 0, 1, 2)
    assert (job.num_pending_rows, job.is_finished) == (0, True)


def test_members_that_are_known_already_are_not_computed(make_job):
    job = make_job(size=5, first_member=3)
    assert [member.index for member in job.members] == [3, 4]
    assert job.num_pending_rows == 4


def test_growing_appends_the_members_that_are_missing(make_job):
    job = make_job(size=3, first_member=1)
    job.grow(5)
    assert [member.index for member in job.members] == [1, 2, 3, 4]
    assert job.num_pending_rows == 8
    job.grow(2)
    assert len(job.members) == 4
    assert job.num_pending_rows == 8


def test_a_job_takes_another_schedule_only_before_its_first_step(make_job):
    job = make_job(size=2, steps=4)
    job.shorten(get_schedule(2, SHIFT))
    assert (job.num_steps, job.num_pending_rows) == (2, 4)
    take_steps(job, 1)
    with pytest.raises(RuntimeError, match="keeps its schedule"):
        job.shorten(get_schedule(1, SHIFT))


@pytest.mark.parametrize(
    ("terms", "indices", "num_rows", "num_steps"),
    [
        ({"on_deadline": OnDeadline.DEGRADE, "deadline_s": 1.0}, [0], 2, 2),
        ({"on_deadline": OnDeadline.PARTIAL, "deadline_s": 1.0}, [0], 2, 2),
        ({"on_deadline": OnDeadline.FAIL, "deadline_s": 1.0}, [0, 1, 2], 6, 2),
        ({"on_deadline": OnDeadline.DEGRADE, "deadline_s": None}, [0, 1, 2], 6, 2),
        ({"on_deadline": OnDeadline.DEGRADE, "deadline_s": 1.0, "first_member": 1}, [], 0, 0),
        ({"on_deadline": OnDeadline.FAIL, "deadline_s": 1.0, "first_member": 1}, [1, 2], 4, 2),
    ],
)
def test_what_a_job_needs_for_an_answer(make_job, terms, indices, num_rows, num_steps):
    job = make_job(**terms)
    assert [member.index for member in job.members if job.is_needed(member)] == indices
    assert (job.num_needed_rows, job.num_needed_steps) == (num_rows, num_steps)


@pytest.mark.parametrize(
    ("terms", "steps", "num_rows"),
    [
        ({"on_deadline": OnDeadline.DEGRADE, "deadline_s": 1.0}, 0, 1),
        ({"on_deadline": OnDeadline.DEGRADE, "deadline_s": 1.0}, 1, 0),
        ({"on_deadline": OnDeadline.DEGRADE, "deadline_s": 1.0, "first_member": 1}, 0, 0),
        ({"on_deadline": OnDeadline.DEGRADE, "deadline_s": None}, 1, 5),
        ({"on_deadline": OnDeadline.PARTIAL, "deadline_s": 1.0}, 1, 1),
        ({"on_deadline": OnDeadline.PARTIAL, "deadline_s": 1.0}, 2, 0),
        ({"on_deadline": OnDeadline.FAIL, "deadline_s": 1.0}, 1, 5),
    ],
)
def test_the_least_answer_of_a_job_that_may_degrade_is_one_step(make_job, terms, steps, num_rows):
    job = make_job(**terms)
    take_steps(job, steps)
    assert job.num_least_rows == num_rows


def test_what_was_run_is_needed_no_more(make_job):
    job = make_job(deadline_s=1.0)
    take_steps(job, 1, 1)
    assert (job.num_needed_rows, job.num_needed_steps) == (1, 1)
    take_steps(job, 1)
    assert (job.num_needed_rows, job.num_needed_steps) == (0, 0)


@pytest.mark.parametrize(
    ("on_deadline", "steps", "first_member", "has_answer"),
    [
        (OnDeadline.DEGRADE, 0, 0, False),
        (OnDeadline.DEGRADE, 1, 0, True),
        (OnDeadline.PARTIAL, 1, 0, False),
        (OnDeadline.PARTIAL, 2, 0, True),
        (OnDeadline.PARTIAL, 0, 1, True),
        (OnDeadline.FAIL, 2, 0, False),
        (OnDeadline.FAIL, 0, 1, False),
    ],
)
def test_what_counts_as_an_answer(make_job, on_deadline, steps, first_member, has_answer):
    job = make_job(on_deadline=on_deadline, first_member=first_member, deadline_s=1.0)
    take_steps(job, steps)
    assert job.has_answer is has_answer
    assert Outcome(job, Ending.EXPIRED).has_answer is has_answer


def test_only_a_job_that_finished_or_expired_answers(make_job):
    job = make_job(first_member=1)
    assert [ending for ending in Ending if Outcome(job, ending).has_answer] == [Ending.FINISHED, Ending.EXPIRED]


def test_a_job_without_a_deadline_never_expires(make_job):
    assert not make_job().is_expired(1e9, 1.0, 1)


def test_a_job_without_an_answer_expires_at_its_deadline(make_job):
    job = make_job(deadline_s=1.0, decode_s=0.5)
    assert not job.is_expired(0.999, 0.5, 1)
    assert job.is_expired(1.0, 0.5, 1)


def expires_s(job, step_s, max_rows):
    """Return when a job expires, in hundredths."""
    return next(number / 100 for number in range(2000) if job.is_expired(number / 100, step_s, max_rows))


@pytest.mark.parametrize(
    ("steps", "max_rows", "reserve_s"),
    [
        ((1, 0, 0), 1, 1.5 * 0.2 + 0.5),
        ((1, 0, 0), 3, 1.5 * 0.2 + 0.5),
        ((2, 0, 0), 2, 1.5 * 0.2 + 0.5),
        ((1, 1, 1), 1, 1.5 * 0.2 + 0.5),
        ((1, 1, 1), 2, 1.5 * 0.2 + 1.0),
        ((2, 1, 1), 8, 1.5 * 0.2 + 1.0),
        ((1, 1, 1), 8, 1.5 * 0.2 + 1.5),
    ],
)
def test_a_job_with_an_answer_keeps_the_time_of_a_slow_step_and_of_decoding_what_it_makes_whole(
    make_job, steps, max_rows, reserve_s
):
    job = make_job(deadline_s=10.0, decode_s=0.5)
    take_steps(job, *steps)
    assert expires_s(job, 0.2, max_rows) == pytest.approx(10.0 - reserve_s, abs=0.011)


def test_an_answer_that_is_known_needs_the_same_reserve(make_job):
    job = make_job(size=5, steps=1, first_member=2, deadline_s=10.0, decode_s=0.5)
    assert expires_s(job, 0.2, 2) == pytest.approx(10.0 - 0.3 - 1.0, abs=0.011)


def test_no_prediction_takes_more_than_a_quarter_of_a_jobs_time(make_job):
    job = make_job(received_s=2.0, deadline_s=4.0, decode_s=100.0, first_member=1)
    assert not job.is_expired(3.49, 1.0, 4)
    assert job.is_expired(3.51, 1.0, 4)


def test_a_deadline_before_the_job_came_is_just_late(make_job):
    job = make_job(received_s=2.0, deadline_s=1.0, first_member=1)
    assert job.is_expired(2.0, 1.0, 1)


def test_a_row_is_stepped_between_the_times_of_its_member(make_job):
    engine = ToyRolloutEngine()
    job = make_job(steps=2)
    job.conditioning = engine.condition(engine.encode(job.query.context), job.query.states)
    job.members[0].latents = LATENTS
    job.book(job.members[0], LATENTS + 1)
    row = Row(job, job.members[0]).step_row()
    assert (row.time, row.next_time) == job.times[1:]
    assert row.latents is job.members[0].latents


def test_a_row_of_a_job_that_is_not_prepared_cannot_be_stepped(make_job):
    job = make_job()
    with pytest.raises(RuntimeError, match="before its job was prepared"):
        Row(job, job.members[0]).step_row()


def test_a_batch_names_each_of_its_jobs_once_and_in_order(make_query):
    jobs = [Job(name, make_query(size=2), get_schedule(1, SHIFT)) for name in "ba"]
    rows = tuple(Row(job, member) for job in jobs for member in job.members)
    assert StepBatch(rows, 0.0).jobs == tuple(jobs)


@pytest.mark.parametrize(
    ("seconds", "step_s", "steps"),
    [(1.04, 0.3, 2), (1.06, 0.3, 3), (1.0, 0.05, 10), (0.1, 0.3, 1), (-1.0, 0.3, 1), (1.0, 0.0, 10)],
)
def test_as_many_steps_are_planned_as_fit_with_half_a_step_to_spare_and_at_least_one(seconds, step_s, steps):
    assert affordable_steps(seconds, step_s, 10) == steps


def test_the_later_of_two_deadlines_may_be_never():
    assert later_deadline(1.0, 2.0) == 2.0
    assert later_deadline(1.0, None) is None
    assert later_deadline(None, 1.0) is None


def test_a_job_without_a_deadline_is_due_when_patience_ends(make_job):
    assert due_s(make_job(received_s=3.0), 10.0) == 13.0
    assert due_s(make_job(received_s=3.0, deadline_s=4.0), 10.0) == 4.0


def test_only_the_priority_makes_a_job_bulk(make_job):
    assert is_bulk(make_job(priority=Priority.BULK))
    assert not is_bulk(make_job(size=64))


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_share_has_its_pairs_whatever_the_ensemble_grows_to(make_job, index):
    job = make_job(size=6, share=Share(index, 3))
    assert [member.index for member in job.members] == [2 * index, 2 * index + 1]
    assert job.is_top_up == (index > 0)
    job.grow(9)
    assert len(job.members) == 2 + (2, 1, 0)[index]
    assert job.num_pending_rows == 2 * len(job.members)


def test_jobs_share_forwards_until_one_of_them_cost_an_engine(make_job):
    one, other, suspect = make_job(), make_job(), make_job(deaths=Deaths(num=1))
    assert can_share(one, other)
    assert can_share(suspect, suspect)
    assert not can_share(one, suspect)
    assert not can_share(suspect, one)
