"""Flows are driven by hand here: no network, no clock, no sleep."""

from __future__ import annotations

import json

import pytest

from foreframe_client import ConnectionFailed, DeadlineExceeded, InvalidRequest, Overloaded, RetryPolicy, TimedOut
from foreframe_client import _calls as calls
from foreframe_client._msgpack import decode, encode
from foreframe_client._wire import Reply


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Drive:
    """Drives one flow; each exchange and each pause takes its time on the clock."""

    def __init__(self, script, *, exchange_s=0.0, retry=None):
        self.script = script
        self.clock = Clock()
        self.exchange_s = exchange_s
        self.session = calls.Session(retry=retry or RetryPolicy(), clock=self.clock, uniform=lambda: 1.0)
        self.sent, self.pauses = [], []

    def __call__(self, flow):
        outcome = None
        while True:
            try:
                step = flow.send(outcome)
            except StopIteration as end:
                return end.value
            outcome = self._take(step)

    def _take(self, step):
        if isinstance(step, calls.Pause):
            self.pauses.append(step.seconds)
            self.clock.now += step.seconds
            return None
        self.sent.append(step)
        self.clock.now += self.exchange_s
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def deadlines(self):
        return [decode(step.request.body).get("deadline_ms") for step in self.sent]


def refused(code="overloaded", status=503, *, retryable=True, retry_after_ms=None):
    body = {"code": code, "detail": "no", "retryable": retryable, "retry_after_ms": retry_after_ms}
    return Reply(status, {"content-type": "application/problem+json"}, json.dumps(body).encode())


@pytest.fixture
def granted(prediction):
    return Reply(200, {"content-type": "application/msgpack"}, encode(prediction))


def ask(drive, scene, **options):
    return drive(calls.predict(drive.session, *scene.arrays, camera="head", **options))


def test_a_refusal_that_may_pass_is_tried_again(scene, granted):
    drive = Drive([refused(), refused(), granted])
    assert ask(drive, scene).id == "p-1"
    assert drive.pauses == [0.1, 0.2]


def test_the_same_request_goes_out_again(scene, granted):
    drive = Drive([refused(), granted])
    ask(drive, scene)
    assert drive.sent[0].request == drive.sent[1].request


def test_a_server_that_is_not_reached_is_tried_again(scene, granted):
    drive = Drive([ConnectionFailed("x"), granted])
    assert ask(drive, scene).id == "p-1"


@pytest.mark.parametrize("outcome", [TimedOut("x"), refused("invalid_request", 422, retryable=False)])
def test_what_stays_is_tried_once(scene, granted, outcome):
    drive = Drive([outcome, granted])
    with pytest.raises((TimedOut, InvalidRequest)):
        ask(drive, scene)
    assert len(drive.sent) == 1


def test_the_last_error_is_raised_when_retries_are_used_up(scene):
    drive = Drive([ConnectionFailed("x"), ConnectionFailed("x"), refused()])
    with pytest.raises(Overloaded):
        ask(drive, scene)
    assert len(drive.sent) == 3


def test_no_retries_means_one_try(scene, granted):
    drive = Drive([refused(), granted], retry=RetryPolicy(max_retries=0))
    with pytest.raises(Overloaded):
        ask(drive, scene)
    assert drive.pauses == []


def test_each_try_is_sent_with_what_is_left_of_the_deadline(scene, granted):
    drive = Drive([refused(), refused(), granted], exchange_s=0.05)
    ask(drive, scene, deadline_ms=1000)
    assert drive.deadlines() == [1000, 850, 600]
    assert [step.read_timeout_s for step in drive.sent] == pytest.approx([2.0, 1.85, 1.6])


def test_without_a_deadline_none_is_sent(scene, granted):
    drive = Drive([granted])
    ask(drive, scene)
    assert drive.deadlines() == [None]
    assert drive.sent[0].read_timeout_s == 60.0


@pytest.mark.parametrize("deadline_ms", [5, 50, 120, 300, 1000, 2222])
def test_nothing_is_sent_or_waited_for_past_the_deadline(scene, deadline_ms):
    drive = Drive([refused()], exchange_s=0.04, retry=RetryPolicy(max_retries=50))
    started = drive.clock.now
    with pytest.raises(Overloaded):
        ask(drive, scene, deadline_ms=deadline_ms)
    last_exchange_began_s = drive.clock.now - 0.04 - started
    assert last_exchange_began_s * 1000 <= deadline_ms
    assert min(drive.deadlines()) >= 5


def test_learning_the_contract_counts_against_the_deadline(scene):
    model = {"id": "toy", "family": "toy", "revision": "r1", "cameras": [{"name": "head", "height": 4, "width": 5}]}
    model.update(context_frames=3, horizon=2, fps=10.0, state_schema="s", state_dim=25, capabilities=["predict"])
    listed = Reply(200, {"content-type": "application/json"}, json.dumps({"models": [model]}).encode())
    drive = Drive([listed], exchange_s=0.3)
    with pytest.raises(DeadlineExceeded):
        drive(calls.predict(drive.session, *scene.arrays, deadline_ms=200))
    assert [step.request.method for step in drive.sent] == ["GET"]


def test_the_servers_pause_is_kept(scene, granted):
    drive = Drive([refused(retry_after_ms=700), granted])
    ask(drive, scene)
    assert drive.pauses == [pytest.approx(0.8)]


def test_many_failing_calls_do_not_multiply_the_load(scene):
    drive = Drive([refused()])
    for _ in range(500):
        with pytest.raises(Overloaded):
            ask(drive, scene)
    assert len(drive.sent) <= 500 * 1.1 + 11


def test_without_a_budget_they_would(scene):
    """The positive control of the test above."""
    drive = Drive([refused()])
    for _ in range(500):
        drive.session.budget = calls.RetryBudget()
        with pytest.raises(Overloaded):
            ask(drive, scene)
    assert len(drive.sent) == 1500


def test_readiness_is_asked_once_a_call():
    drive = Drive([refused("not_ready")])
    assert drive(calls.ready(drive.session)) is False
    assert len(drive.sent) == 1
