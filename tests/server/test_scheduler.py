from functools import cache

import numpy as np
import pytest

from foreframe_engines import EnsembleSpec, OnDeadline, Priority, Query, Sampling, Strategy
from foreframe_engines.schedule import get_schedule
from foreframe_engines.types import Conditioning
from foreframe_server.budgets import Budgets
from foreframe_server.cost_model import CostModel
from foreframe_server.errors import DeadlineUnmeetable, LoadedDeadline, Overloaded, TooExpensive
from foreframe_server.jobs import Ending, Job, Share
from foreframe_server.quarantine import Deaths
from foreframe_server.scheduler import Scheduler, milder

LATENTS = np.zeros((1, 1, 1, 1), np.float32)
CONDITIONING = Conditioning(LATENTS, {})
BUCKETS = (1, 2, 4, 8)


@cache
def build_query(size, steps, priority, stream_id):
    return Query(
        model="toy",
        context=np.zeros((1, 2, 2, 3), np.uint8),
        states=np.zeros((2, 1), np.float32),
        frame_indices=(1,),
        sampling=Sampling(Strategy.SAMPLE, steps, 0),
        ensemble=EnsembleSpec(size),
        priority=priority,
        stream_id=stream_id,
    )


def make_job(name, *, size=1, steps=1, priority=Priority.CONTROLLER, stream_id=None, **facts):
    return Job(name, build_query(size, steps, priority, stream_id), get_schedule(steps, 5.0), **facts)


def make_bulk(name, **facts):
    return make_job(name, priority=Priority.BULK, **facts)


def make_scheduler(max_rows=4, *, row_s=None, max_pending_s=100.0, **options):
    """A scheduler with forwards of so many rows; a forward of n rows takes n times `row_s`."""
    cost = CostModel(BUCKETS, max_rows=max_rows)
    if row_s is not None:
        cost.fit({rows: rows * row_s for rows in BUCKETS})
    return Scheduler(cost, max_pending_s=max_pending_s, **options)


def names(batch):
    return [(row.job.id, row.member.index, row.member.step) for row in batch.rows]


def jobs_of(batch):
    return [row.job.id for row in batch.rows]


def run_once(scheduler, now=0.0, step_s=0.0):
    batch = scheduler.schedule(now)
    scheduler.settle(batch, [LATENTS] * len(batch.rows), now + step_s)
    return batch


def run_dry(scheduler, now=0.0):
    while (batch := scheduler.schedule(now)) is not None:
        scheduler.settle(batch, [LATENTS] * len(batch.rows), now)


def endings(scheduler):
    return {outcome.job.id: outcome.ending for outcome in scheduler.take_outcomes()}


def test_rows_of_different_jobs_steps_and_classes_share_a_forward():
    scheduler = make_scheduler()
    scheduler.add(make_job("a", steps=3), 0.0)
    run_once(scheduler)
    scheduler.add(make_job("b", steps=2), 0.0)
    scheduler.add(make_bulk("c", steps=5), 0.0)
    assert sorted(names(scheduler.schedule(0.0))) == [("a", 0, 1), ("b", 0, 0), ("c", 0, 0)]


def test_a_forward_has_no_more_rows_than_are_worth_waiting_for():
    scheduler = make_scheduler(max_rows=2)
    scheduler.add(make_job("a", size=6), 0.0)
    assert len(scheduler.schedule(0.0).rows) == 2


def make_two_lanes(step_s=0.015):
    """A scheduler that learns by itself that two rows take as long as one."""
    cost = CostModel(BUCKETS)
    cost.fit({1: step_s, 2: step_s, 4: 2 * step_s})
    return Scheduler(cost, max_pending_s=100.0)


def test_forwards_are_longer_where_nobody_waits_for_their_end():
    scheduler = make_two_lanes()
    scheduler.add(make_job("long", size=8), 0.0)
    assert len(scheduler.schedule(0.0).rows) == 4
    scheduler.add(make_job("other", size=8), 0.0)
    assert len(scheduler.schedule(0.0).rows) == 4


@pytest.mark.parametrize(
    "facts",
    [{"size": 8, "deadline_s": 9.0, "on_deadline": OnDeadline.PARTIAL}, {"size": 1}, {"size": 3}],
    ids=["a deadline", "a short job", "the end of a job"],
)
def test_somebody_who_waits_for_a_forwards_end_keeps_it_short(facts):
    scheduler = make_two_lanes()
    scheduler.add(make_job("long", size=8), 0.0)
    scheduler.add(make_job("other", **facts), 0.0)
    assert len(scheduler.schedule(0.0).rows) == 2


def test_an_idle_scheduler_has_nothing_to_run():
    scheduler = make_scheduler()
    assert not scheduler.has_work
    assert scheduler.schedule(0.0) is None


def test_the_earliest_deadline_is_first_then_the_earliest_arrival():
    scheduler = make_scheduler(max_rows=8, patience_s=10.0)
    scheduler.add(make_job("endless", received_s=-4.0), 0.0)
    scheduler.add(make_job("late", deadline_s=9.0), 0.0)
    scheduler.add(make_job("soon", deadline_s=2.0), 0.0)
    scheduler.add(make_job("soon too", deadline_s=2.0), 0.0)
    assert jobs_of(scheduler.schedule(0.0)) == ["soon", "soon too", "endless", "late"]


def test_a_more_urgent_job_preempts_at_the_next_step_border():
    scheduler = make_scheduler(max_rows=1)
    scheduler.add(make_job("slow", steps=3, deadline_s=9.0), 0.0)
    run_once(scheduler)
    scheduler.add(make_job("urgent", deadline_s=1.0), 0.0)
    run_once(scheduler)
    assert endings(scheduler) == {"urgent": Ending.FINISHED}


def test_lower_members_are_finished_before_higher_ones_start():
    scheduler = make_scheduler(max_rows=2)
    scheduler.add(make_job("a", size=4, steps=2), 0.0)
    seen = [names(run_once(scheduler)) for _ in range(4)]
    assert [[index for _, index, _ in batch] for batch in seen] == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_settle_tells_which_members_became_whole():
    scheduler = make_scheduler(max_rows=2)
    scheduler.add(make_job("a", size=2, steps=2), 0.0)
    batch = scheduler.schedule(0.0)
    assert scheduler.settle(batch, [LATENTS] * 2, 0.0) == []
    batch = scheduler.schedule(0.0)
    scheduler.add(make_job("b"), 0.0)
    assert [row.member.index for row in scheduler.settle(batch, [LATENTS] * 2, 0.0)] == [0, 1]


def test_rows_of_a_job_that_ended_in_a_forward_are_not_booked():
    scheduler = make_scheduler()
    job = make_job("a")
    scheduler.add(job, 0.0)
    batch = scheduler.schedule(0.0)
    scheduler.cancel("a")
    assert scheduler.settle(batch, [LATENTS], 0.0) == []
    assert job.members[0].step == 0
    assert endings(scheduler) == {"a": Ending.CANCELLED}


# Needed members and spare ones


def test_spare_members_run_while_every_job_is_still_on_time():
    scheduler = make_scheduler(max_rows=4, row_s=0.1)
    scheduler.add(make_job("soon", size=9, deadline_s=5.0), 0.0)
    scheduler.add(make_job("late", size=9, deadline_s=9.0), 0.0)
    assert jobs_of(scheduler.schedule(0.0)) == ["soon"] * 4


def test_needed_members_run_before_spare_ones_when_time_is_short():
    scheduler = make_scheduler(max_rows=4, row_s=0.1)
    scheduler.add(make_job("soon", size=9, deadline_s=1.0), 0.0)
    scheduler.add(make_job("late", size=2, deadline_s=1.1, on_deadline=OnDeadline.FAIL), 0.0)
    assert jobs_of(scheduler.schedule(0.0)) == ["soon"] * 4
    assert names(scheduler.schedule(0.65)) == [("soon", 0, 0), ("late", 0, 0), ("late", 1, 0), ("soon", 1, 0)]


def test_spare_members_fill_what_needed_ones_leave():
    scheduler = make_scheduler(max_rows=4, row_s=0.5)
    scheduler.add(make_job("a", size=9, deadline_s=0.9), 0.0)
    assert names(scheduler.schedule(0.8)) == [("a", member, 0) for member in range(4)]


def test_spare_members_give_way_to_a_member_whose_steps_come_one_after_another():
    scheduler = make_scheduler(max_rows=2, row_s=0.1)
    scheduler.add(make_job("soon", size=9, deadline_s=1.9), 0.0)
    scheduler.add(make_job("chain", steps=8, deadline_s=2.0), 0.0)
    # Two rows a forward make 0.8 s of its 8 steps, and yet one member takes 1.6 s.
    assert jobs_of(scheduler.schedule(0.2)) == ["soon", "soon"]
    assert jobs_of(scheduler.schedule(0.4)) == ["soon", "chain"]


def test_spare_members_give_way_when_decoding_leaves_no_time():
    scheduler = make_scheduler(max_rows=2, row_s=0.1)
    scheduler.add(make_job("soon", size=9, deadline_s=0.9), 0.0)
    scheduler.add(make_job("late", deadline_s=1.2, decode_s=0.75), 0.0)
    assert jobs_of(scheduler.schedule(0.1)) == ["soon", "soon"]
    assert jobs_of(scheduler.schedule(0.2)) == ["soon", "late"]


def test_a_spare_member_that_is_to_be_decoded_next_takes_that_time_too():
    scheduler = make_scheduler(max_rows=2, row_s=0.1)
    scheduler.add(make_job("soon", size=9, deadline_s=1.0, decode_s=0.3), 0.0)
    scheduler.add(make_job("late", deadline_s=1.1), 0.0)
    assert jobs_of(scheduler.schedule(0.05)) == ["soon", "soon"]
    assert jobs_of(scheduler.schedule(0.15)) == ["soon", "late"]


def test_known_members_make_all_others_spare():
    scheduler = make_scheduler(max_rows=2, row_s=0.4)
    scheduler.add(make_job("known", size=9, first_member=4, deadline_s=0.8), 0.0)
    scheduler.add(make_job("unknown", size=2, deadline_s=0.9), 0.0)
    assert names(scheduler.schedule(0.4)) == [("unknown", 0, 0), ("known", 4, 0)]


# Classes


def count_rows(scheduler, num_forwards, refill):
    """Run forwards and keep both classes' work topped up by `refill`; return rows of the class bulk and of all."""
    rows = []
    for number in range(num_forwards):
        refill(number)
        rows += run_once(scheduler).rows
        scheduler.take_outcomes()
    return sum(row.job.query.priority is Priority.BULK for row in rows), len(rows)


@pytest.mark.parametrize("max_rows", [1, 2, 8])
@pytest.mark.parametrize("bulk_share", [0.1, 0.5])
def test_bulk_work_keeps_its_share_while_controllers_wait_and_no_more(max_rows, bulk_share):
    scheduler = make_scheduler(max_rows, bulk_share=bulk_share)
    scheduler.add(make_bulk("bulk", size=4000), 0.0)
    num_bulk, num_rows = count_rows(
        scheduler, 400, lambda number: scheduler.add(make_job(f"{number}", size=max_rows, deadline_s=1.0), 0.0)
    )
    assert num_bulk == pytest.approx(bulk_share * num_rows, abs=2)


def test_bulk_work_has_what_controllers_leave():
    scheduler = make_scheduler(max_rows=4)
    scheduler.add(make_bulk("bulk", size=9), 0.0)
    scheduler.add(make_job("controller"), 0.0)
    assert jobs_of(scheduler.schedule(0.0)) == ["controller", "bulk", "bulk", "bulk"]


def fill_both_classes(scheduler):
    scheduler.add(make_bulk("bulk", size=500), 0.0)
    scheduler.add(make_job("controller", size=500), 0.0)
    return count_rows(scheduler, 50, lambda number: None)


def test_bulk_work_gets_no_credit_for_the_time_it_was_absent():
    scheduler = make_scheduler(max_rows=4)
    scheduler.add(make_job("before", size=1000), 0.0)
    run_dry(scheduler)
    assert fill_both_classes(scheduler)[0] == pytest.approx(20, abs=2)


def test_controllers_get_no_credit_for_the_time_they_were_absent():
    scheduler = make_scheduler(max_rows=4)
    scheduler.add(make_bulk("before", size=1000), 0.0)
    run_dry(scheduler)
    assert fill_both_classes(scheduler)[0] == pytest.approx(20, abs=2)


def test_controllers_get_no_credit_for_lanes_that_they_could_not_use():
    scheduler = make_scheduler(max_rows=4)
    scheduler.add(make_bulk("before", size=1000), 0.0)
    scheduler.add(make_job("one lane", steps=300), 0.0)
    run_dry(scheduler)
    assert fill_both_classes(scheduler)[0] == pytest.approx(20, abs=2)


# Budgets


def test_a_key_that_spent_its_budget_is_served_after_others_of_its_class():
    scheduler = make_scheduler(max_rows=1, budgets=Budgets(rate=0.1, burst_s=0.5))
    scheduler.add(make_job("greedy", size=3, key="a", deadline_s=20.0), 0.0)
    scheduler.add(make_job("modest", key="b", deadline_s=30.0), 0.0)
    scheduler.add(make_bulk("bulk", key="b"), 0.0)
    assert jobs_of(run_once(scheduler, 0.0, step_s=0.6)) == ["greedy"]
    assert jobs_of(run_once(scheduler, 0.6)) == ["bulk"]
    assert jobs_of(run_once(scheduler, 0.6)) == ["modest"]
    assert jobs_of(run_once(scheduler, 0.6)) == ["greedy"]


def test_a_key_that_spent_its_budget_is_neither_refused_nor_kept_from_an_idle_device():
    scheduler = make_scheduler(max_rows=1, budgets=Budgets(rate=0.1, burst_s=0.5))
    scheduler.add(make_job("first", key="a"), 0.0)
    run_once(scheduler, 0.0, step_s=5.0)
    scheduler.add(make_job("second", key="a"), 5.0)
    assert jobs_of(scheduler.schedule(5.0)) == ["second"]


def test_a_key_that_spent_its_budget_has_its_turn_again_in_time():
    scheduler = make_scheduler(max_rows=1, budgets=Budgets(rate=0.1, burst_s=0.5))
    scheduler.add(make_job("greedy", size=3, key="a", deadline_s=20.0), 0.0)
    scheduler.add(make_job("modest", size=9, key="b", deadline_s=30.0), 0.0)
    run_once(scheduler, 0.0, step_s=0.6)
    assert jobs_of(scheduler.schedule(0.9)) == ["modest"]
    assert jobs_of(scheduler.schedule(1.1)) == ["greedy"]


def test_a_forward_is_paid_for_by_its_rows():
    scheduler = make_scheduler(max_rows=4, budgets=Budgets(rate=0.01, burst_s=0.5))
    scheduler.add(make_job("a", size=3, key="a", deadline_s=1.0), 0.0)
    scheduler.add(make_job("b", size=1, key="b", deadline_s=2.0), 0.0)
    run_once(scheduler, 0.0, step_s=0.8)
    scheduler.add(make_job("a again", key="a", deadline_s=3.0), 0.8)
    scheduler.add(make_job("b again", key="b", deadline_s=4.0), 0.8)
    assert jobs_of(scheduler.schedule(0.8)) == ["b again", "a again"]


# Streams


def test_a_newer_job_of_a_stream_supersedes_the_older_one_even_in_a_forward():
    scheduler = make_scheduler()
    scheduler.add(make_job("old", steps=2, stream_id="arm"), 0.0)
    scheduler.add(make_job("other", stream_id="leg"), 0.0)
    batch = scheduler.schedule(0.0)
    scheduler.add(make_job("new", stream_id="arm"), 0.0)
    scheduler.settle(batch, [LATENTS] * len(batch.rows), 0.0)
    assert endings(scheduler) == {"old": Ending.SUPERSEDED, "other": Ending.FINISHED}
    run_dry(scheduler)
    assert endings(scheduler) == {"new": Ending.FINISHED}


def test_the_newest_of_a_stream_is_the_one_asked_last_not_the_one_that_came_last():
    scheduler = make_scheduler()
    scheduler.add(make_job("new", stream_id="arm", received_s=2.0), 3.0)
    scheduler.add(make_job("old but slow", stream_id="arm", received_s=1.0), 3.0)
    assert endings(scheduler) == {"old but slow": Ending.SUPERSEDED}
    run_dry(scheduler, 3.0)
    assert endings(scheduler) == {"new": Ending.FINISHED}


def test_streams_of_different_keys_do_not_meet():
    scheduler = make_scheduler()
    scheduler.add(make_job("mine", stream_id="arm", key="a"), 0.0)
    scheduler.add(make_job("theirs", stream_id="arm", key="b"), 0.0)
    run_dry(scheduler)
    assert endings(scheduler) == {"mine": Ending.FINISHED, "theirs": Ending.FINISHED}


def test_a_refused_job_supersedes_nothing():
    scheduler = make_scheduler(row_s=1.0, max_pending_s=8.0)
    scheduler.add(make_job("old", stream_id="arm"), 0.0)
    scheduler.add(make_job("other", size=7), 0.0)
    with pytest.raises(Overloaded):
        scheduler.add(make_job("new", size=2, stream_id="arm"), 0.0)
    run_dry(scheduler)
    assert endings(scheduler) == {"old": Ending.FINISHED, "other": Ending.FINISHED}


def test_a_newer_job_may_take_the_room_of_those_it_supersedes():
    scheduler = make_scheduler(row_s=1.0, max_pending_s=8.0)
    scheduler.add(make_job("old", size=8, stream_id="arm"), 0.0)
    scheduler.add(make_job("new", size=8, stream_id="arm"), 0.0)
    assert endings(scheduler) == {"old": Ending.SUPERSEDED}


def test_a_part_of_a_job_ends_nothing_and_may_take_the_room_of_what_it_will_replace():
    scheduler = make_scheduler(row_s=1.0, max_pending_s=8.0)
    scheduler.add(make_job("old", size=8, stream_id="arm"), 0.0)
    scheduler.add(make_job("part", size=8, stream_id="arm", share=Share(0, 2)), 0.0)
    assert endings(scheduler) == {}


# Admission


def test_a_job_that_could_never_fit_is_too_expensive():
    scheduler = make_scheduler(row_s=1.0, max_pending_s=8.0)
    with pytest.raises(TooExpensive):
        scheduler.add(make_job("a", size=3, steps=3), 0.0)
    scheduler.add(make_job("b", size=2, steps=4), 0.0)


def test_before_anything_is_known_of_its_cost_everything_is_taken():
    scheduler = make_scheduler(max_pending_s=0.0)
    scheduler.add(make_job("a", size=1000, deadline_s=0.0), 0.0)
    assert scheduler.pending_s == 0.0


def test_a_full_queue_says_when_to_come_back():
    scheduler = make_scheduler(max_rows=4, row_s=0.025, max_pending_s=0.5)
    scheduler.add(make_job("a", size=4, steps=4), 0.0)
    with pytest.raises(Overloaded) as refusal:
        scheduler.add(make_job("b", size=5), 0.0)
    assert refusal.value.retry_after_ms == pytest.approx(400, abs=1)
    scheduler.add(make_job("c", size=4), 0.0)
    assert scheduler.num_pending_rows == 20
    assert scheduler.pending_s == pytest.approx(0.5)


def test_bulk_work_never_keeps_a_controller_out():
    scheduler = make_scheduler(row_s=1.0, max_pending_s=8.0)
    scheduler.add(make_bulk("bulk", size=8), 0.0)
    scheduler.add(make_job("controller", size=8, deadline_s=9.0), 0.0)
    with pytest.raises(Overloaded):
        scheduler.add(make_bulk("more bulk"), 0.0)


def test_a_deadline_no_idle_server_could_meet_is_refused_for_good():
    scheduler = make_scheduler(max_rows=2, row_s=0.1)
    with pytest.raises(DeadlineUnmeetable) as refusal:
        scheduler.add(make_job("a", steps=10, deadline_s=0.5, on_deadline=OnDeadline.PARTIAL), 0.0)
    assert refusal.value.status == 422
    scheduler.add(make_job("b", steps=10, deadline_s=0.5, on_deadline=OnDeadline.DEGRADE), 0.0)


@pytest.mark.parametrize(
    ("on_deadline", "least_s"),
    [(OnDeadline.DEGRADE, 0.1 + 0.05), (OnDeadline.PARTIAL, 0.4 + 0.05), (OnDeadline.FAIL, 1.6 + 0.2)],
)
def test_the_least_answer_is_a_step_or_a_member_or_everything_with_its_decoding(on_deadline, least_s):
    scheduler = make_scheduler(max_rows=2, row_s=0.1)
    facts = {"size": 4, "steps": 4, "on_deadline": on_deadline, "decode_s": 0.05}
    with pytest.raises(DeadlineUnmeetable):
        scheduler.add(make_job("too soon", deadline_s=0.69 * least_s, **facts), 0.0)
    # A prediction errs: only what is hopeless even at 0.7 of it is refused.
    scheduler.add(make_job("hopeful", deadline_s=0.71 * least_s, **facts), 0.0)


def test_a_lone_member_is_not_thought_to_use_every_lane():
    scheduler = make_scheduler(max_rows=4)
    scheduler.cost.fit({1: 0.1, 4: 0.1})
    with pytest.raises(DeadlineUnmeetable):
        scheduler.add(make_job("a", steps=10, deadline_s=0.5, on_deadline=OnDeadline.FAIL), 0.0)


def test_preparing_counts_towards_the_least_answer():
    scheduler = make_scheduler(row_s=0.01)
    scheduler.cost.observe_prepare(1.0)
    with pytest.raises(DeadlineUnmeetable):
        scheduler.add(make_job("a", deadline_s=0.5), 0.0)


def test_known_members_are_an_answer_that_takes_no_time():
    scheduler = make_scheduler(row_s=1.0)
    scheduler.add(make_job("a", size=8, first_member=2, deadline_s=0.01), 0.0)
    with pytest.raises(DeadlineUnmeetable):
        scheduler.add(make_job("b", size=8, first_member=2, deadline_s=0.01, on_deadline=OnDeadline.FAIL), 0.0)


def test_a_deadline_that_only_load_makes_impossible_may_be_asked_again_later():
    scheduler = make_scheduler(max_rows=1, row_s=0.1)
    scheduler.add(make_job("ahead", size=10, deadline_s=2.0, on_deadline=OnDeadline.FAIL), 0.0)
    facts = {"size": 5, "steps": 2, "on_deadline": OnDeadline.FAIL}
    with pytest.raises(LoadedDeadline) as refusal:
        scheduler.add(make_job("a", deadline_s=2.29, **facts), 0.0)
    assert (refusal.value.status, refusal.value.code) == (503, DeadlineUnmeetable.code)
    assert refusal.value.retry_after_ms == pytest.approx(1000, abs=1)
    # Beside others a prediction must hold even where it is 1.15 times too low.
    scheduler.add(make_job("a", deadline_s=2.31, **facts), 0.0)


def test_a_deadline_is_refused_for_load_only_where_something_must_run_before_it():
    scheduler = make_scheduler(max_rows=1, row_s=0.1)
    scheduler.add(make_job("answered", size=9, first_member=1, deadline_s=0.5), 0.0)
    scheduler.add(make_job("later", size=9, deadline_s=5.0), 0.0)
    scheduler.add(make_job("hopeful", steps=5, deadline_s=0.5, on_deadline=OnDeadline.PARTIAL), 0.1)
    with pytest.raises(LoadedDeadline):
        scheduler.add(make_job("beside", deadline_s=0.6), 0.1)


def test_of_a_job_ahead_that_may_degrade_only_one_step_must_run():
    scheduler = make_scheduler(max_rows=1, row_s=0.1)
    scheduler.add(make_job("may degrade", steps=10, deadline_s=1.1, decode_s=0.1), 0.0)
    least_s = 1.15 * (0.1 + 0.1 + 0.5)
    facts = {"steps": 5, "on_deadline": OnDeadline.PARTIAL}
    with pytest.raises(LoadedDeadline) as refusal:
        scheduler.add(make_job("a", deadline_s=1.2, **facts), 1.21 - least_s)
    assert refusal.value.retry_after_ms == pytest.approx(200, abs=1)
    scheduler.add(make_job("a", deadline_s=1.2, **facts), 1.19 - least_s)


def test_a_job_ahead_that_must_be_whole_counts_with_all_its_steps():
    scheduler = make_scheduler(max_rows=1, row_s=0.1)
    scheduler.add(make_job("whole", steps=10, deadline_s=1.1, decode_s=0.1, on_deadline=OnDeadline.PARTIAL), 0.0)
    with pytest.raises(LoadedDeadline) as refusal:
        scheduler.add(make_job("a", deadline_s=1.2), 0.0)
    assert refusal.value.retry_after_ms == pytest.approx(1100, abs=1)


def test_a_job_ahead_that_has_its_step_stands_in_nobodys_way():
    scheduler = make_scheduler(max_rows=1, row_s=0.1)
    scheduler.add(make_job("may degrade", steps=10, deadline_s=1.2), 0.0)
    facts = {"steps": 7, "on_deadline": OnDeadline.PARTIAL, "deadline_s": 1.25}
    with pytest.raises(LoadedDeadline):
        scheduler.add(make_job("a", **facts), 0.4)
    run_once(scheduler, 0.0, step_s=0.1)
    scheduler.add(make_job("a", **facts), 0.4)


def test_preparing_and_decoding_count_as_work_that_waits():
    scheduler = make_scheduler(max_rows=2, row_s=0.1, max_pending_s=2.0)
    scheduler.cost.observe_prepare(0.5)
    job = make_job("a", size=3, steps=2, decode_s=0.2)
    scheduler.add(job, 0.0)
    assert scheduler.pending_s == pytest.approx(0.5 + 6 * 0.1 + 3 * 0.2)
    with pytest.raises(Overloaded) as refusal:
        scheduler.add(make_job("b"), 0.0)
    assert refusal.value.retry_after_ms == pytest.approx(1700, abs=1)
    job.conditioning = CONDITIONING
    assert scheduler.pending_s == pytest.approx(6 * 0.1 + 3 * 0.2)
    with pytest.raises(TooExpensive):
        scheduler.add(make_job("c", decode_s=1.5), 0.0)


def test_what_is_whole_is_to_be_decoded_no_more():
    scheduler = make_scheduler(max_rows=1, row_s=0.1)
    scheduler.add(make_job("a", size=3, steps=2, decode_s=0.2), 0.0)
    run_once(scheduler, step_s=0.1)
    assert scheduler.pending_s == pytest.approx(5 * 0.1 + 3 * 0.2, rel=0.05)
    run_once(scheduler, step_s=0.1)
    assert scheduler.pending_s == pytest.approx(4 * 0.1 + 2 * 0.2, rel=0.05)


def test_work_that_is_due_later_makes_no_deadline_impossible():
    scheduler = make_scheduler(max_rows=1, row_s=0.1, patience_s=10.0)
    scheduler.add(make_job("later", size=50, deadline_s=9.0, on_deadline=OnDeadline.FAIL), 0.0)
    scheduler.add(make_job("endless", size=50), 0.0)
    scheduler.add(make_job("now", deadline_s=0.2), 0.0)
    assert jobs_of(scheduler.schedule(0.0)) == ["now"]


def test_spare_members_of_others_make_no_deadline_impossible():
    scheduler = make_scheduler(max_rows=1, row_s=0.1)
    scheduler.add(make_job("spare", size=50, deadline_s=0.4), 0.0)
    scheduler.add(make_job("a", deadline_s=0.5), 0.0)


# Deadlines


def test_an_expired_job_leaves_its_whole_members():
    scheduler = make_scheduler(max_rows=2)
    scheduler.add(make_job("a", size=4, steps=2, deadline_s=1.0), 0.0)
    for now in (0.0, 0.1, 0.2):
        run_once(scheduler, now)
    assert scheduler.schedule(1.0) is None
    (outcome,) = scheduler.take_outcomes()
    assert outcome.ending is Ending.EXPIRED
    assert outcome.has_answer
    assert [member.index for member in outcome.job.whole_members] == [0, 1]


@pytest.mark.parametrize(
    ("on_deadline", "num_steps_run", "has_answer"),
    [
        (OnDeadline.DEGRADE, 0, False),
        (OnDeadline.DEGRADE, 1, True),
        (OnDeadline.PARTIAL, 1, False),
        (OnDeadline.PARTIAL, 2, True),
        (OnDeadline.FAIL, 3, False),
    ],
)
def test_what_an_expired_job_may_answer_with(on_deadline, num_steps_run, has_answer):
    scheduler = make_scheduler(max_rows=1)
    scheduler.add(make_job("a", size=2, steps=2, deadline_s=1.0, on_deadline=on_deadline), 0.0)
    for _ in range(num_steps_run):
        run_once(scheduler)
    assert scheduler.schedule(1.0) is None
    (outcome,) = scheduler.take_outcomes()
    assert (outcome.ending, outcome.has_answer) == (Ending.EXPIRED, has_answer)


def test_a_job_that_has_an_answer_ends_before_a_step_and_a_decode_would_be_late():
    scheduler = make_scheduler(max_rows=1, row_s=0.1)
    scheduler.add(make_job("a", size=9, deadline_s=1.0, decode_s=0.05), 0.0)
    run_once(scheduler, 0.0, step_s=0.1)
    assert jobs_of(scheduler.schedule(0.79)) == ["a"]
    assert scheduler.schedule(0.81) is None
    assert endings(scheduler) == {"a": Ending.EXPIRED}


def test_every_member_that_the_next_forward_makes_whole_has_its_decode_reserved():
    scheduler = make_scheduler(max_rows=2, row_s=0.05)
    scheduler.add(make_job("a", size=9, deadline_s=2.0, decode_s=0.1), 0.0)
    run_once(scheduler, 0.0, step_s=0.1)
    assert jobs_of(scheduler.schedule(1.64)) == ["a", "a"]
    assert scheduler.schedule(1.66) is None


def test_a_job_that_may_degrade_runs_up_to_its_deadline_without_an_answer():
    scheduler = make_scheduler(max_rows=1, row_s=0.1)
    scheduler.add(make_job("a", steps=3, deadline_s=1.0), 0.0)
    assert jobs_of(scheduler.schedule(0.99)) == ["a"]
    assert scheduler.schedule(1.0) is None


@pytest.mark.parametrize("on_deadline", [OnDeadline.DEGRADE, OnDeadline.PARTIAL])
def test_the_reserve_is_at_most_a_quarter_of_what_a_job_has(on_deadline):
    scheduler = make_scheduler(max_rows=1, row_s=0.1, max_pending_s=1000.0)
    facts = {"decode_s": 60.0, "first_member": 1, "on_deadline": on_deadline}
    scheduler.add(make_job("a", size=9, received_s=10.0, deadline_s=12.0, **facts), 10.0)
    assert jobs_of(scheduler.schedule(11.49)) == ["a"]
    assert scheduler.schedule(11.51) is None


def given_up_s(scheduler, until_s):
    """Return when the only job is given up while nothing of it runs, in hundredths; None when it never is."""
    times = (number / 100 for number in range(round(100 * until_s)))
    return next((now for now in times if scheduler.schedule(now) is None), None)


@pytest.mark.parametrize(
    ("facts", "needed_s"),
    [
        ({"size": 4, "on_deadline": OnDeadline.FAIL}, 8 * 0.05 + 4 * 0.02),
        ({"size": 4, "on_deadline": OnDeadline.FAIL, "first_member": 2}, 4 * 0.05 + 2 * 0.02),
        ({"size": 1, "on_deadline": OnDeadline.FAIL}, 2 * 0.1 + 0.02),
        ({"size": 4, "on_deadline": OnDeadline.PARTIAL}, 2 * 0.1 + 0.02),
    ],
)
def test_a_job_that_must_be_whole_is_given_up_once_it_cannot_be(facts, needed_s):
    scheduler = make_scheduler(max_rows=2)
    scheduler.cost.fit(dict.fromkeys(BUCKETS, 0.1))
    scheduler.add(make_job("a", steps=2, deadline_s=1.0, decode_s=0.02, **facts), 0.0)
    assert given_up_s(scheduler, 1.0) == pytest.approx(1.0 - 0.7 * needed_s, abs=0.011)
    assert endings(scheduler) == {"a": Ending.EXPIRED}


@pytest.mark.parametrize(
    "facts",
    [
        {"on_deadline": OnDeadline.DEGRADE, "deadline_s": 1.0},
        {"on_deadline": OnDeadline.PARTIAL, "deadline_s": 1.0, "first_member": 1, "received_s": 1.0},
        {"on_deadline": OnDeadline.FAIL, "deadline_s": None},
    ],
)
def test_a_job_that_has_or_may_have_less_is_not_given_up(facts):
    scheduler = make_scheduler(max_rows=1, row_s=0.2)
    scheduler.add(make_job("a", size=3, steps=4, **facts), 0.0)
    assert given_up_s(scheduler, 1.0) is None


def test_preparing_counts_towards_what_is_hopeless_until_it_is_done():
    scheduler = make_scheduler(max_rows=1, row_s=0.1)
    scheduler.cost.observe_prepare(0.5)
    job = make_job("a", deadline_s=1.0, on_deadline=OnDeadline.PARTIAL)
    scheduler.add(job, 0.0)
    batch = scheduler.schedule(0.57)
    job.conditioning = CONDITIONING
    assert scheduler.confirm(batch, 0.92) is not None
    assert scheduler.confirm(batch, 0.94) is None


def test_a_partial_job_is_hopeless_no_more_once_a_member_is_whole():
    scheduler = make_scheduler(max_rows=1, row_s=0.1)
    scheduler.add(make_job("a", size=9, steps=2, deadline_s=1.0, on_deadline=OnDeadline.PARTIAL), 0.0)
    run_once(scheduler, 0.0, step_s=0.1)
    run_once(scheduler, 0.1, step_s=0.1)
    assert jobs_of(scheduler.schedule(0.8)) == ["a"]
    assert scheduler.schedule(0.9) is None
    assert [outcome.has_answer for outcome in scheduler.take_outcomes()] == [True]


def test_hopeless_work_is_given_up_and_makes_room():
    scheduler = make_scheduler(max_rows=1, row_s=0.1, max_pending_s=1.0)
    scheduler.add(make_job("hopeless", size=10, deadline_s=1.0, on_deadline=OnDeadline.FAIL), 0.0)
    assert jobs_of(scheduler.schedule(0.29)) == ["hopeless"]
    with pytest.raises(Overloaded):
        scheduler.add(make_job("a", deadline_s=1.1), 0.29)
    assert scheduler.schedule(0.31) is None
    assert endings(scheduler) == {"hopeless": Ending.EXPIRED}
    assert scheduler.pending_s == 0.0
    scheduler.add(make_job("a", size=9, deadline_s=1.1), 0.31)
    assert jobs_of(scheduler.schedule(0.31)) == ["a"]


@pytest.mark.parametrize("terms", [(2.0, OnDeadline.FAIL), (1.0, OnDeadline.PARTIAL)])
def test_a_job_that_is_given_more_time_or_may_have_less_is_hopeless_no_more(terms):
    scheduler = make_scheduler(max_rows=1, row_s=0.1)
    scheduler.add(make_job("a", size=10, deadline_s=1.0, on_deadline=OnDeadline.FAIL), 0.0)
    scheduler.extend("a", *terms)
    assert jobs_of(scheduler.schedule(0.5)) == ["a"]


def test_a_job_that_became_hopeless_in_a_forward_is_not_answered_with_what_it_made():
    scheduler = make_scheduler(max_rows=2, row_s=0.1)
    scheduler.add(make_job("a", size=6, deadline_s=1.0, on_deadline=OnDeadline.FAIL), 0.0)
    batch = scheduler.schedule(0.0)
    assert [row.member.index for row in scheduler.settle(batch, [LATENTS] * 2, 0.8)] == [0, 1]
    (outcome,) = scheduler.take_outcomes()
    assert (outcome.ending, outcome.has_answer) == (Ending.EXPIRED, False)


def test_a_job_that_finishes_in_a_step_across_its_deadline_is_finished():
    scheduler = make_scheduler()
    scheduler.add(make_job("a", deadline_s=1.0), 0.0)
    run_once(scheduler, 0.9, step_s=0.5)
    assert endings(scheduler) == {"a": Ending.FINISHED}


def test_confirm_drops_rows_that_ended_while_jobs_were_prepared():
    scheduler = make_scheduler()
    scheduler.add(make_job("late", deadline_s=1.0), 0.0)
    scheduler.add(make_job("gone", deadline_s=8.0), 0.0)
    scheduler.add(make_job("kept", deadline_s=9.0), 0.0)
    batch = scheduler.schedule(0.0)
    scheduler.cancel("gone")
    confirmed = scheduler.confirm(batch, 1.0)
    assert names(confirmed) == [("kept", 0, 0)]
    assert confirmed.started_s == 1.0
    scheduler.cancel("kept")
    assert scheduler.confirm(batch, 1.0) is None


# What is ahead of a job


def test_ahead_of_a_job_is_what_others_need_before_its_deadline():
    scheduler = make_scheduler(max_rows=2, row_s=0.1, patience_s=2.5)
    scheduler.cost.observe_prepare(0.5)
    job = make_job("a", size=5, steps=9, deadline_s=3.0)
    prepared = make_job("whole", size=3, steps=2, deadline_s=2.0, decode_s=0.01, on_deadline=OnDeadline.FAIL)
    prepared.conditioning = CONDITIONING
    others = [
        job,
        prepared,
        make_job("one member", size=3, steps=4, deadline_s=2.0, decode_s=0.02),
        make_job("impatient", size=2),
        make_job("answered", size=9, first_member=2, deadline_s=2.0),
        make_job("later", size=9, deadline_s=4.0),
        make_bulk("bulk", size=9, deadline_s=1.5),
    ]
    for other in others:
        scheduler.add(other, 0.0)
    whole_s, one_member_s, impatient_s = 6 * 0.1 + 3 * 0.01, 0.5 + 4 * 0.1 + 0.02, 0.5 + 2 * 0.1
    assert scheduler.ahead_s(job) == pytest.approx(whole_s + one_member_s + impatient_s)


def test_controllers_are_ahead_of_bulk_work():
    scheduler = make_scheduler(max_rows=2, row_s=0.1)
    bulk = make_bulk("bulk", deadline_s=3.0)
    scheduler.add(bulk, 0.0)
    scheduler.add(make_job("controller", steps=4, deadline_s=2.0), 0.0)
    assert scheduler.ahead_s(bulk) == pytest.approx(0.4)


def test_nothing_is_ahead_of_a_job_alone():
    scheduler = make_scheduler(row_s=0.1)
    job = make_job("a", size=5, deadline_s=3.0)
    scheduler.add(job, 0.0)
    assert scheduler.ahead_s(job) == 0.0


# Changes to a job that waits or runs


def test_a_cancelled_job_ends_once():
    scheduler = make_scheduler()
    scheduler.add(make_job("a", steps=2), 0.0)
    run_once(scheduler)
    scheduler.cancel("a", Ending.FAULTED)
    scheduler.cancel("a")
    scheduler.cancel("never added")
    assert scheduler.schedule(0.0) is None
    assert endings(scheduler) == {"a": Ending.FAULTED}
    assert scheduler.take_outcomes() == []


def test_extend_keeps_the_later_deadline_and_the_milder_end():
    scheduler = make_scheduler()
    job = make_job("a", deadline_s=5.0, on_deadline=OnDeadline.FAIL)
    scheduler.add(job, 0.0)
    scheduler.extend("a", 3.0, OnDeadline.PARTIAL)
    assert (job.deadline_s, job.on_deadline) == (5.0, OnDeadline.PARTIAL)
    scheduler.extend("a", None, OnDeadline.FAIL)
    assert (job.deadline_s, job.on_deadline) == (None, OnDeadline.PARTIAL)
    scheduler.extend("never added", None, OnDeadline.FAIL)


def test_the_milder_end_is_the_one_that_returns_more():
    assert milder(OnDeadline.FAIL, OnDeadline.PARTIAL) is OnDeadline.PARTIAL
    assert milder(OnDeadline.DEGRADE, OnDeadline.PARTIAL) is OnDeadline.DEGRADE
    assert milder(OnDeadline.FAIL, OnDeadline.FAIL) is OnDeadline.FAIL


def test_a_job_grows_while_its_first_members_are_in_a_forward():
    scheduler = make_scheduler(max_rows=4)
    scheduler.add(make_job("a", size=2), 0.0)
    batch = scheduler.schedule(0.0)
    assert scheduler.grow("a", 3)
    scheduler.settle(batch, [LATENTS] * 2, 0.0)
    assert scheduler.has_work
    assert [row.member.index for row in run_once(scheduler).rows] == [2]
    assert endings(scheduler) == {"a": Ending.FINISHED}
    assert not scheduler.grow("a", 4)


def test_a_job_that_is_asked_for_fewer_members_stays_as_it_is():
    scheduler = make_scheduler()
    scheduler.add(make_job("a", size=3), 0.0)
    assert scheduler.grow("a", 2)
    assert scheduler.num_pending_rows == 3


def test_growth_that_finds_no_room_is_refused_and_changes_nothing():
    scheduler = make_scheduler(row_s=1.0, max_pending_s=8.0)
    scheduler.add(make_job("a", size=2, steps=2), 0.0)
    scheduler.add(make_bulk("bulk", size=4), 0.0)
    assert not scheduler.grow("a", 5)
    assert not scheduler.grow("bulk", 5)
    assert scheduler.num_pending_rows == 8
    assert scheduler.grow("a", 4)
    assert scheduler.num_pending_rows == 12


def test_growth_needs_room_for_decoding_too():
    scheduler = make_scheduler(row_s=1.0, max_pending_s=9.75)
    scheduler.add(make_job("a", size=2, steps=2, decode_s=0.5), 0.0)
    assert scheduler.grow("a", 3)
    assert scheduler.pending_s == pytest.approx(7.5)
    assert not scheduler.grow("a", 4)
    assert scheduler.num_pending_rows == 6


def test_a_shortened_job_takes_its_new_schedule():
    scheduler = make_scheduler(max_rows=2)
    job = make_job("a", size=2, steps=4)
    scheduler.add(job, 0.0)
    job.shorten(get_schedule(1, 5.0))
    assert scheduler.num_pending_rows == 2
    run_once(scheduler)
    assert endings(scheduler) == {"a": Ending.FINISHED}


def test_the_cost_of_a_forward_is_learned_from_its_time():
    scheduler = make_scheduler(max_rows=1)
    scheduler.add(make_job("a", size=3), 0.0)
    run_once(scheduler, 0.0, step_s=0.25)
    assert scheduler.pending_s == pytest.approx(0.5)


def test_a_job_that_cost_an_engine_shares_no_forward_and_waits_no_longer_than_its_turn():
    scheduler = make_scheduler(max_rows=4)
    for name in "abc":
        scheduler.add(make_job(name, size=2, deaths=Deaths(num=name == "b")), 0.0)
    shared, alone = [], []
    while batch := scheduler.schedule(0.0):
        (alone if any(job.deaths.num for job in batch.jobs) else shared).append(jobs_of(batch))
        scheduler.settle(batch, [LATENTS] * len(batch.rows), 0.0)
    assert [set(jobs) for jobs in alone] == [{"b"}]
    assert {job for jobs in shared for job in jobs} == {"a", "c"}
