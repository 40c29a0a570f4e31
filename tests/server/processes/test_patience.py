from foreframe_server.processes.limits import ProcessLimits
from foreframe_server.processes.patience import Patience

LIMITS = ProcessLimits(hang_s=2.0, hang_factor=5.0, start_s=600.0)


def warm(patience, kind="step", size=1, first=0.0, then=0.0):
    patience.observe(kind, size, first)
    patience.observe(kind, size, then)


def test_a_kind_that_was_never_seen_has_the_time_of_a_start():
    patience = Patience(LIMITS)
    warm(patience, "encode")
    assert patience.limit_s("step", 1) == 600


def test_short_calls_have_the_least_time():
    patience = Patience(LIMITS)
    warm(patience, then=0.01)
    assert patience.limit_s("step", 1) == 2


def test_long_calls_have_a_multiple_of_what_they_took():
    patience = Patience(LIMITS)
    warm(patience, size=8, first=9.0, then=3.0)
    assert patience.limit_s("step", 8) == 15


def test_a_size_that_was_not_met_has_time_in_proportion_and_that_of_first_calls():
    patience = Patience(LIMITS)
    warm(patience, size=1, first=1.0, then=1.0)
    assert patience.limit_s("step", 15) >= 5 * 8
    assert patience.limit_s("step", 2**20) >= 5 * 2**19


def test_a_smaller_size_has_no_less_than_the_larger_one():
    patience = Patience(LIMITS)
    warm(patience, size=16, first=4.0, then=4.0)
    assert patience.limit_s("step", 1) >= 20


def test_a_new_life_has_the_time_that_first_calls_took_before():
    patience = Patience(LIMITS)
    warm(patience, first=6.0, then=0.1)
    assert patience.limit_s("step", 1) == 2
    patience.renew()
    assert not patience.has_seen("step")
    assert patience.limit_s("step", 1) == 30
    assert patience.limit_s("decode", 1) == 600


def test_one_slow_call_does_not_stretch_the_limit_for_long():
    patience = Patience(LIMITS)
    warm(patience, then=0.01)
    patience.observe("step", 1, 10.0)
    for _ in range(30):
        patience.observe("step", 1, 0.01)
    assert patience.limit_s("step", 1) == 2
