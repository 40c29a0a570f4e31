"""What counts as a robot's answer."""

import json
from dataclasses import asdict

import pytest
from peers.goodput import count
from peers.plan import PLANNER, Plan, known_questions, mixed_trace, offered_load

from foreframe_server.load.records import OK, Record, Reply
from foreframe_server.load.traces import Arrival, Ask

ROBOT = Ask(members=8, deadline_ms=500)


def record(latency_ms, reply, ask=ROBOT, group="all"):
    return Record(Arrival(1.0, ask, 0, group), 1.0, 1.0 + latency_ms / 1000, reply)


def test_whole_degraded_late_and_missing_answers_are_told_apart():
    records = [
        record(400, Reply(OK, members=8)),
        record(400, Reply(OK, members=6)),
        record(400, Reply(OK, members=8, is_degraded=True)),
        record(600, Reply(OK, members=8)),
        record(10, Reply("overloaded")),
        record(9000, Reply(OK, members=32), Ask(members=32), PLANNER),
    ]
    found = count(records, 2.0)
    assert (found.whole, found.degraded, found.late, found.unanswered) == (1, 2, 1, 1)
    assert (found.goodput_per_s, found.with_degraded_per_s) == (0.5, 1.5)
    assert (found.robots_asked, found.planners_asked, found.planners_answered) == (5, 1, 1)
    assert found.degraded_members == 7
    assert found.refusals == {"overloaded": 1}
    assert json.loads(json.dumps(asdict(found)))["refusals"] == {"overloaded": 1}


@pytest.mark.parametrize("load", [0.6, 0.9, 1.2])
def test_every_server_gets_the_same_trace_of_the_load_that_was_asked_for(load):
    plan = Plan(answer_s=0.2, arrangement="lanes", seconds=200.0)
    trace = mixed_trace(plan, load)
    assert trace == mixed_trace(plan, load)
    assert offered_load(plan, trace) == pytest.approx(load, abs=0.05)
    assert {arrival.ask.cache for arrival in trace} == {"bypass"}


def test_a_slow_machine_gets_one_robot_and_some_bulk_work_and_the_real_load_is_said():
    plan = Plan(answer_s=0.45, arrangement="lanes", seconds=200.0)
    assert plan.num_robots == 1
    assert plan.planner_hz(0.9) > 0
    assert plan.record()["offered"]["0.9"] == pytest.approx(0.9 + 0.9 / 5, abs=0.02)


def test_no_two_questions_to_a_server_share_a_number():
    plan = Plan(answer_s=0.2, arrangement="lanes")
    contents = [content for content, _ in known_questions(plan)]
    assert len(set(contents)) == len(contents)
    assert sorted(contents) == list(range(len(contents)))
