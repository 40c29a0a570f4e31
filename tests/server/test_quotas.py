import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreframe_server.budgets import Budgets
from foreframe_server.errors import QuotaExceeded
from foreframe_server.keys import Quota
from foreframe_server.quotas import Quotas

QUOTA = Quota(step_ms_per_s=100, burst_step_ms=200)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def refusal(quotas, key="robot", quota=QUOTA):
    try:
        quotas.check(key, quota)
    except QuotaExceeded as error:
        return error
    return None


def test_a_key_uses_its_burst_then_waits_for_what_it_owes(clock):
    quotas = Quotas(clock)
    assert refusal(quotas) is None
    quotas.charge("robot", 0.1999)
    assert refusal(quotas) is None
    quotas.charge("robot", 0.1)

    refused = refusal(quotas)
    assert (refused.code, refused.status, refused.is_retryable) == ("quota_exceeded", 429, True)
    assert 999 <= refused.retry_after_ms <= 1001
    clock.now = refused.retry_after_ms / 1000
    assert refusal(quotas) is None


def test_keys_have_accounts_of_their_own_and_without_a_quota_none(clock):
    quotas = Quotas(clock)
    refusal(quotas)
    for key in ("robot", "other", "free"):
        quotas.charge(key, 100)

    assert refusal(quotas) is not None
    assert refusal(quotas, "other") is None
    assert refusal(quotas, "free", None) is None


def test_a_quota_that_is_changed_counts_at_once(clock):
    quotas = Quotas(clock)
    refusal(quotas)
    quotas.charge("robot", 1.0)
    assert refusal(quotas).retry_after_ms > 7000
    assert refusal(quotas, quota=Quota(10_000, 200)).retry_after_ms < 100


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 0.5)), min_size=1, max_size=50))
def test_over_time_a_key_uses_its_rate_its_burst_and_one_last_piece(steps):
    clock = Clock()
    quotas, used_ms = Quotas(clock), 0.0
    for wait_s, work_s in steps:
        clock.now += wait_s
        if refusal(quotas) is None:
            assert used_ms <= QUOTA.burst_step_ms + QUOTA.step_ms_per_s * clock.now + 1e-6
            quotas.charge("robot", work_s)
            used_ms += 1000 * work_s


def test_charges_of_many_threads_all_count(clock):
    quotas = Quotas(clock)
    refusal(quotas)
    threads = [threading.Thread(target=lambda: [quotas.charge("robot", 0.001) for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refusal(quotas).retry_after_ms == pytest.approx(18_000, abs=2)


@pytest.mark.parametrize("rate", [None, 1.0])
def test_budgets_tell_of_all_that_they_book(rate):
    told = []
    Budgets(rate, on_charge=lambda key, seconds: told.append((key, seconds))).charge("robot", 0.5)
    assert told == [("robot", 0.5)]
