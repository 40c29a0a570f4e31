import random

import pytest

from foreframe_server.processes.limits import ProcessLimits
from foreframe_server.processes.restarts import Restarts

LIMITS = ProcessLimits()


@pytest.fixture
def restarts():
    return Restarts(LIMITS, random.Random(0))


def test_the_pause_doubles_from_death_to_death_up_to_the_longest():
    restarts = Restarts(ProcessLimits(max_deaths=1000), random.Random(0))
    pauses = [restarts.died(0.0, was_useful=False) for _ in range(12)]
    for exponent, pause in enumerate(pauses):
        longest = min(10.0, 0.1 * 2**exponent)
        assert longest / 2 <= pause <= longest


def test_processes_that_died_together_do_not_start_together():
    pauses = {Restarts(LIMITS, random.Random(seed)).died(0.0, was_useful=False) for seed in range(8)}
    assert len(pauses) == 8


def test_a_crash_loop_starts_at_most_six_times_in_any_minute(restarts):
    now, starts = 0.0, [0.0]
    while now < 600:
        now = restarts.died(now, was_useful=False)  # it dies as soon as it is started
        starts.append(now)
    assert max(sum(0 <= start - first < 60 for start in starts) for first in starts) <= 6


def test_five_early_deaths_break_it_for_a_minute(restarts):
    until = [restarts.died(float(second), was_useful=False) for second in range(5)]
    assert until[-1] == 4 + 60
    assert restarts.is_broken(63.9)
    assert not restarts.is_broken(64)


def test_deaths_far_apart_never_break_it(restarts):
    for minute in range(20):
        restarts.died(16.0 * minute, was_useful=False)
        assert not restarts.is_broken(16.0 * minute)


def test_deaths_after_useful_work_are_no_crash_loop(restarts):
    for second in range(100):
        assert restarts.died(float(second), was_useful=True) <= second + LIMITS.delay_s
        assert not restarts.is_broken(float(second))
