from __future__ import annotations

import pytest

from foreframe_client._errors import ConnectionFailed, InvalidRequest, Overloaded, Problem, TimedOut, WorkerCrashed
from foreframe_client._retry import MIN_DEADLINE_MS, Deadline, RetryBudget, RetryPolicy, pause_before_retry

POLICY = RetryPolicy(max_retries=10, first_pause_s=0.1, max_pause_s=5.0)


def pause(error, *, retries_done=0, uniform=1.0, left_ms=None, policy=POLICY):
    return pause_before_retry(policy, error, retries_done=retries_done, uniform=uniform, left_ms=left_ms)


def overloaded(retry_after_ms):
    return Overloaded("full", Problem("overloaded", 503, is_retryable=True, retry_after_ms=retry_after_ms))


@pytest.mark.parametrize("error", [ConnectionFailed(""), Overloaded("")])
def test_errors_that_may_pass_are_tried_again(error):
    assert pause(error) is not None


@pytest.mark.parametrize("error", [InvalidRequest(""), TimedOut(""), WorkerCrashed("")])
def test_errors_that_stay_are_not_tried_again(error):
    assert pause(error) is None


def test_the_servers_word_on_one_error_beats_its_codes_default():
    assert pause(Overloaded("", Problem("overloaded", 503, is_retryable=False))) is None


def test_pauses_double_up_to_the_longest():
    assert [pause(Overloaded(""), retries_done=n) for n in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_jitter_is_full():
    assert pause(Overloaded(""), retries_done=3, uniform=0.0) == 0.0
    assert pause(Overloaded(""), retries_done=3, uniform=0.5) == pytest.approx(0.4)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0])
def test_a_pause_is_never_shorter_than_the_server_asks(uniform):
    assert pause(overloaded(2000), uniform=uniform) >= 2.0


def test_a_server_that_asks_for_too_long_is_not_waited_for():
    assert pause(overloaded(5000), uniform=0.0) == 5.0
    assert pause(overloaded(5001), uniform=0.0) is None


def test_retries_end():
    policy = RetryPolicy(max_retries=2)
    assert [pause(Overloaded(""), retries_done=n, policy=policy) is None for n in range(4)] == [
        False,
        False,
        True,
        True,
    ]


def test_no_pause_reaches_the_deadline():
    assert pause(overloaded(100), uniform=0.0, left_ms=100 + MIN_DEADLINE_MS) == 0.1
    assert pause(overloaded(100), uniform=0.0, left_ms=99 + MIN_DEADLINE_MS) is None
    assert pause(Overloaded(""), uniform=0.0, left_ms=0) is None


def test_a_budget_lets_one_call_in_ten_try_again():
    budget = RetryBudget(capacity=10.0, earned_per_call=0.1)
    burst = sum(budget.spend() for _ in range(100))
    retries = 0
    for _ in range(1000):
        budget.earn()
        retries += budget.spend()
    assert burst == 10
    assert 95 <= retries <= 100


def test_a_budget_saves_no_more_than_it_holds():
    budget = RetryBudget(capacity=2.0, earned_per_call=1.0)
    for _ in range(50):
        budget.earn()
    assert sum(budget.spend() for _ in range(50)) == 2


def test_a_deadline_counts_down():
    deadline = Deadline.after(250, now_s=10.0)
    assert [deadline.left_ms(now) for now in (10.0, 10.1, 10.25, 10.5)] == [250, 150, 0, -250]
    assert Deadline.after(None, now_s=10.0).left_ms(99.0) is None
