import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreframe_server.budgets import Budgets


def test_without_a_rate_nothing_is_ever_spent():
    budgets = Budgets()
    budgets.charge("a", 1e9)
    assert not budgets.is_spent("a")


def test_a_key_is_spent_when_it_used_what_it_had():
    budgets = Budgets(rate=0.5, burst_s=2.0)
    budgets.charge("a", 1.5)
    assert not budgets.is_spent("a")
    budgets.charge("a", 0.5)
    assert budgets.is_spent("a")


def test_keys_do_not_pay_for_each_other():
    budgets = Budgets(rate=0.5, burst_s=2.0)
    budgets.charge("a", 2.0)
    assert not budgets.is_spent("b")


def test_a_bucket_refills_with_time():
    budgets = Budgets(rate=0.5, burst_s=2.0)
    budgets.refill(10.0)
    budgets.charge("a", 3.0)
    budgets.refill(11.9)
    assert budgets.is_spent("a")
    budgets.refill(12.1)
    assert not budgets.is_spent("a")


def test_a_bucket_holds_no_more_than_a_burst_however_long_it_refills():
    budgets = Budgets(rate=0.5, burst_s=2.0)
    budgets.charge("a", 0.1)
    budgets.refill(1000.0)
    budgets.charge("a", 2.0)
    assert budgets.is_spent("a")


def test_what_was_run_on_an_idle_device_is_soon_forgotten():
    budgets = Budgets(rate=0.5, burst_s=2.0)
    for second in range(3600):
        budgets.refill(float(second))
        budgets.charge("a", 1.0)
    budgets.refill(3600.0 + 2.0 / 0.5)
    assert not budgets.is_spent("a")


def test_only_keys_that_owe_something_are_remembered():
    budgets = Budgets(rate=1.0, burst_s=1.0)
    for key in range(1000):
        budgets.refill(float(key))
        budgets.charge(str(key), 0.5)
    assert len(budgets._balances) == 1


@given(
    events=st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), min_size=1, max_size=20),
    rate=st.floats(0.05, 2),
    burst_s=st.floats(0.1, 5),
)
def test_whatever_a_key_ran_it_waits_no_longer_than_its_burst_takes_to_refill(events, rate, burst_s):
    budgets, now = Budgets(rate, burst_s), 0.0
    for pause_s, seconds in events:
        now += pause_s
        budgets.refill(now)
        budgets.charge("a", seconds)
    budgets.refill(now + 1.001 * burst_s / rate)
    assert not budgets.is_spent("a")


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_key_that_runs_whenever_it_may_runs_at_its_rate(share):
    budgets, used_s = Budgets(rate=share, burst_s=1.0), 0.0
    for tick in range(10_000):
        budgets.refill(tick / 10)
        if not budgets.is_spent("a"):
            budgets.charge("a", 0.1)
            used_s += 0.1
    assert used_s == pytest.approx(share * 1000, rel=0.01)
