import pytest

from foreframe_engines import EngineLost
from foreframe_server.errors import DeadlineExceeded, ModelFault, NotReady, WorkerCrashed
from foreframe_server.metrics import Metrics
from foreframe_server.quarantine import Deaths, Quarantine
from foreframe_server.rescue import Errand, Rescue, patiently, refusal


class Dying:
    """An action that loses its engine so many times before it answers."""

    def __init__(self, num_deaths, *, has_run=True):
        self.num_left = num_deaths
        self.has_run = has_run
        self.num_calls = 0

    def __call__(self):
        self.num_calls += 1
        if self.num_left > 0:
            self.num_left -= 1
            raise EngineLost("gone", has_run=self.has_run)
        return "answer"


@pytest.fixture
def quarantine(fake_clock):
    return Quarantine(fake_clock)


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def rescue(metrics, quarantine, fake_clock):
    return Rescue(metrics, quarantine, fake_clock)


def errand(digest=b"a", deadline_s=None, deaths=None):
    return Errand(deaths or Deaths(), deadline_s, lambda: digest)


def count(metrics, outcome):
    return metrics.registry.get_sample_value("foreframe_rescues_total", {"outcome": outcome}) or 0.0


def test_a_call_is_repeated_once_after_a_death(rescue, metrics):
    action = Dying(1)
    assert rescue.run(errand(), action) == "answer"
    assert action.num_calls == 2
    assert count(metrics, "repeated") == 1


def test_two_deaths_end_a_request_and_block_all_that_equals_it(rescue, metrics, quarantine, fake_clock):
    for action, num_calls in ((Dying(9), 2), (Dying(0), 0)):
        with pytest.raises(WorkerCrashed) as caught:
            rescue.run(errand(), action)
        assert action.num_calls == num_calls
    assert not caught.value.is_retryable
    assert rescue.run(errand(b"other"), Dying(0)) == "answer"
    fake_clock.now += 61.0
    assert rescue.run(errand(), Dying(0)) == "answer"
    assert count(metrics, "refused") == 2


def test_deaths_add_up_over_requests_that_had_no_time_for_a_second_try(rescue, fake_clock):
    actions = [Dying(9) for _ in range(5)]
    for action, error in zip(actions, [DeadlineExceeded] * 2 + [WorkerCrashed] * 3, strict=True):
        with pytest.raises(error):
            rescue.run(errand(deadline_s=fake_clock.now), action)
    assert sum(action.num_calls for action in actions) == 2


def test_what_a_request_runs_shares_its_deaths(rescue):
    deaths, second = Deaths(), Dying(9)
    assert rescue.run(errand(b"a", deaths=deaths), Dying(1)) == "answer"
    with pytest.raises(WorkerCrashed):
        rescue.run(errand(b"b", deaths=deaths), second)
    assert second.num_calls == 1


def test_an_answered_request_leaves_nothing_behind(rescue, quarantine):
    asked = errand()
    rescue.run(asked, Dying(1))
    rescue.acquit(asked)
    assert quarantine.is_empty


def test_a_call_that_never_began_blames_nobody_and_is_given_up_after_a_while(rescue, metrics, quarantine):
    assert rescue.run(errand(), Dying(2, has_run=False)) == "answer"
    with pytest.raises(NotReady) as caught:
        rescue.run(errand(), Dying(9, has_run=False))
    assert caught.value.is_retryable
    assert quarantine.is_empty
    assert count(metrics, "given_up") == 1


def test_requests_that_share_a_call_are_all_suspected_and_then_share_none(rescue, quarantine):
    one, other = errand(b"one"), errand(b"other")
    with pytest.raises(EngineLost):
        rescue.attempt([one, other], Dying(1))
    assert (one.deaths.num, other.deaths.num) == (1, 1)
    action = Dying(0)
    with pytest.raises(EngineLost) as caught:
        rescue.attempt([one, errand(b"third")], action)
    assert action.num_calls == 0
    assert not caught.value.has_run
    assert rescue.run(other, action) == "answer"


def test_an_equal_request_inherits_a_death(rescue):
    first, second = errand(), errand()
    with pytest.raises(EngineLost):
        rescue.attempt([first], Dying(1))
    action = Dying(9)
    with pytest.raises(WorkerCrashed):
        rescue.run(second, action)
    assert action.num_calls == 1


def test_other_failures_are_nobodys_death(rescue, quarantine):
    def fail():
        raise FloatingPointError("poison")

    with pytest.raises(FloatingPointError):
        rescue.run(errand(), fail)
    assert quarantine.is_empty


def test_what_is_nobodys_request_is_tried_three_times():
    assert patiently(Dying(2)) == "answer"
    with pytest.raises(EngineLost):
        patiently(Dying(3))


def test_a_refusal_is_told_as_it_is_and_anything_else_as_the_models_fault():
    crashed = WorkerCrashed("twice")
    assert refusal(crashed) is crashed
    assert isinstance(refusal(FloatingPointError("0x7f")), ModelFault)
    assert "0x7f" not in refusal(FloatingPointError("0x7f")).detail
