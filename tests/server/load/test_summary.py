"""What is counted from records made by hand; a late generator must be caught."""

import pytest

from foreframe_server.load.summary import Percentiles, by_second, check_schedule, latency_p99, summarise, within


def test_percentiles_are_measured_values_of_the_nearest_rank():
    found = Percentiles.of(range(100, 0, -1))
    assert (found.p50, found.p90, found.p95, found.p99, found.max) == (50, 90, 95, 99, 100)
    assert found.mean == 50.5


def test_of_few_values_the_tail_is_the_largest():
    found = Percentiles.of([3.0, 1.0, 2.0])
    assert (found.p50, found.p95, found.p99) == (2, 3, 3)


def test_nothing_has_no_percentiles():
    assert Percentiles.of([]) is None
    assert latency_p99([]) is None


def test_kinds_of_replies_are_told_apart(record):
    records = [
        record(0, 10),
        record(0, 2, "overloaded"),
        record(0, 4, "quota_exceeded"),
        record(0, 5, "superseded"),
        record(0, 5, "model_fault"),
        record(0, 5, "unreachable"),
    ]
    found = summarise(records, 1.0)
    assert (found.sent, found.ok, found.shed, found.superseded, found.failed) == (6, 1, 2, 1, 2)
    assert found.latency_ms.max == pytest.approx(10)
    assert found.shed_ms.max == pytest.approx(4)
    assert found.codes["overloaded"] == 1


def test_goodput_counts_answers_within_the_objective_of_when_they_were_due(record):
    records = [record(0, 40), record(0.5, 60), record(1, 10, "overloaded"), record(1.5, 50)]
    assert summarise(records, 2.0, slo_ms=50.5).goodput_per_s == 1.0
    assert summarise(records, 2.0).goodput_per_s == 1.5
    assert summarise(records, 2.0, slo_ms=50.5).throughput_per_s == 1.5


def test_a_deadline_is_missed_by_late_answers_and_by_errors_only(record):
    records = [
        record(0, 99, deadline_ms=100),
        record(0, 101, deadline_ms=100),
        record(0, 5, "overloaded", deadline_ms=100),
        record(0, 5, "superseded", deadline_ms=100),
        record(0, 900),
    ]
    found = summarise(records, 1.0)
    assert (found.with_deadline, found.deadline_misses, found.deadline_miss_ratio) == (4, 3, 0.75)
    assert found.late_ms.max == pytest.approx(1)
    assert found.late_ms.p50 == 0


def test_answers_tell_members_rows_and_how_many_are_degraded(record):
    records = [
        record(0, 9, members=4, rows_per_step=2.0, server_ms=6.0),
        record(0, 9, members=1, rows_per_step=1.0, server_ms=5.0, is_degraded=True, says_late=True),
        record(0, 9, members=4, rows_per_step=0.0, server_ms=9.0),
        record(0, 9, "overloaded"),
    ]
    found = summarise(records, 1.0)
    assert (found.members, found.rows_per_step, found.says_late) == (3, 1.5, 1)
    assert found.degraded_ratio == pytest.approx(1 / 3, abs=1e-3)
    assert found.overhead_ms.max == pytest.approx(4)


def test_nothing_answered_is_counted_without_a_number_made_up(record):
    found = summarise([record(0, 5, "overloaded")], 1.0)
    assert (found.latency_ms, found.members, found.rows_per_step, found.goodput_per_s) == (None, None, None, 0)


def test_the_course_goes_by_when_questions_were_due(record):
    records = [record(0.1, 5000, members=2), record(0.9, 10, members=4), record(2.5, 1, "overloaded")]
    first, last = by_second(records, slo_ms=100)
    assert (first.second, first.sent, first.ok, first.good, first.members) == (0, 2, 2, 1, 3)
    assert first.max_ms == pytest.approx(5000)
    assert (last.second, last.shed, last.ok, last.p50_ms) == (2, 1, 0, None)


def test_a_part_is_cut_by_when_questions_were_due(record):
    records = [record(second, 10_000) for second in range(5)]
    assert [each.arrival.due_s for each in within(records, 1, 3)] == [1, 2]


def test_a_punctual_generator_is_on_schedule(record):
    schedule = check_schedule([record(0, 50, lag_ms=1.0) for _ in range(100)], 10.0)
    assert schedule.is_on_schedule
    assert schedule.lag_p99_ms == pytest.approx(1)


def test_a_generator_that_is_late_is_caught(record):
    records = [record(0, 50, lag_ms=1.0) for _ in range(97)] + [record(0, 50, lag_ms=30.0) for _ in range(3)]
    schedule = check_schedule(records, 10.0)
    assert not schedule.is_on_schedule
    assert schedule.lag_max_ms == pytest.approx(30)


def test_one_late_question_in_a_hundred_is_let_pass(record):
    records = [record(0, 50) for _ in range(99)] + [record(0, 50, lag_ms=30.0)]
    assert check_schedule(records, 10.0).is_on_schedule
