"""The judge finds every fault that is planted in a ledger, and none in an honest one."""

import pytest
from harness.ledger import Ledger, Outcome, judge, outcome_of, percentile, recovery_s


@pytest.fixture
def ledger():
    kept = Ledger()
    for number in range(10):
        entry = kept.open(due_s=number, sent_s=number, deadline_ms=500)
        kept.close(entry, Outcome.OK, number + 0.1)
    return kept


def lose(ledger):
    ledger.entries[3].outcome = Outcome.LOST


def answer_wrong(ledger):
    ledger.entries[3].outcome = Outcome.WRONG


def answer_late(ledger):
    ledger.entries[3].done_s = 3 + 0.5 + 0.3


def answer_twice(ledger):
    ledger.close(ledger.entries[3], Outcome.OK, 4.0)


def forget(ledger):
    ledger.open(11, 11)


FAULTS = {"lost": lose, "wrong": answer_wrong, "late": answer_late, "closed twice": answer_twice, "open": forget}


def test_an_honest_ledger_is_clean(ledger):
    assert judge(ledger).violations == {}
    assert ledger.counts()["ok"] == 10


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(ledger, fault):
    FAULTS[fault](ledger)
    assert judge(ledger).violations[fault] == 1


def test_refusals_in_time_are_no_violations(ledger):
    for status in (404, 422, 429, 500, 503, 504):
        ledger.close(ledger.open(20, 20), outcome_of(status, ""), 21, str(status))
    counts = ledger.counts()
    assert judge(ledger).violations == {}
    assert (counts["refused"], counts["shed"], counts["failed"], counts["expired"]) == (2, 2, 1, 1)
    assert ledger.codes()["503"] == 1


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (1.0, 100)])
def test_percentile_is_a_value_that_was_there(share, value):
    assert percentile(range(100, 0, -1), share) == value


def test_recovery_lasts_until_the_middle_call_is_as_fast_as_usual():
    ledger = Ledger()
    for number in range(100):
        due_s = number / 10
        entry = ledger.open(due_s, due_s)
        is_slow, is_odd = 3 <= due_s < 4.9 or 8 <= due_s < 8.4, number % 7 == 0
        ledger.close(entry, Outcome.FAILED if is_slow else Outcome.OK, due_s + (2.0 if is_odd else 0.05))
    assert recovery_s(ledger.entries, [3.0, 8.0], usual_ms=100) == 2.0
    assert recovery_s(ledger.entries, [3.0], usual_ms=100) == 5.5
    assert recovery_s(ledger.entries, [5.0], usual_ms=2000) == 3.5
    assert recovery_s(ledger.entries[:30], [0.5], usual_ms=100) == 0
