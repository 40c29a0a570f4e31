"""Traces are the same each time, have the rate they say, and ask about something new each time."""

import numpy as np
import pytest

from foreframe_server.load.traces import Ask, at_once, constant, in_turn, merge, planners, poisson, robots

ASK = Ask(members=2)


def dues(trace):
    return [arrival.due_s for arrival in trace]


def test_a_constant_rate_is_even_and_starts_at_once():
    assert dues(constant(4, 1.5, ASK)) == [0, 0.25, 0.5, 0.75, 1.0, 1.25]


@pytest.mark.parametrize(
    "make", [lambda seed: poisson(5, 60, ASK, seed=seed), lambda seed: robots(3, 2, 9, ASK, seed=seed)]
)
def test_equal_seeds_give_equal_traces_and_others_others(make):
    assert make(3) == make(3)
    assert dues(make(3)) != dues(make(4))


def test_poisson_arrivals_have_the_rate_and_the_spacing_of_chance():
    trace = poisson(20, 500, ASK, seed=0)
    gaps = np.diff(dues(trace))
    assert len(trace) == 20 * 500
    assert 0 <= trace[0].due_s < trace[-1].due_s < 500
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.01)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # exponential gaps; even ones have no deviation
    assert (gaps > 2 * gaps.mean()).mean() == pytest.approx(np.exp(-2), rel=0.1)


def test_every_robot_keeps_its_period_its_stream_and_its_deadline():
    trace = robots(3, 2, 5, ASK, seed=1)
    streams = {arrival.ask.stream_id for arrival in trace}
    assert len(streams) == 3
    assert {arrival.ask.deadline_ms for arrival in trace} == {500}
    for stream in streams:
        own = [arrival.due_s for arrival in trace if arrival.ask.stream_id == stream]
        assert len(own) == 10
        np.testing.assert_allclose(np.diff(own), 0.5)
        assert 0 <= own[0] < 0.5
    assert dues(trace) == sorted(dues(trace))


def test_a_robots_own_deadline_is_kept():
    assert robots(1, 2, 1, Ask(deadline_ms=100), seed=0)[0].ask.deadline_ms == 100


def test_planners_are_bulk_and_start_half_an_interval_late():
    trace = planners(0.5, 8, ASK)
    assert dues(trace) == [1, 3, 5, 7]
    assert {arrival.ask.priority for arrival in trace} == {"bulk"}


def test_merged_traces_keep_time_and_groups_and_never_ask_the_same_twice():
    trace = merge([constant(1, 3, ASK, group="a"), poisson(4, 3, ASK, seed=0, group="b")])
    assert dues(trace) == sorted(dues(trace))
    assert [arrival.content for arrival in trace] == list(range(15))
    assert sum(arrival.group == "a" for arrival in trace) == 3


def test_parts_follow_each_other():
    trace = in_turn([(constant(1, 2, ASK), 2.0), (constant(2, 1, ASK), 1.0), (constant(1, 1, ASK), 1.0)])
    assert dues(trace) == [0, 1, 2, 2.5, 3]
    assert len({arrival.content for arrival in trace}) == 5


def test_a_burst_keeps_the_order():
    trace = constant(1, 3, ASK)
    assert dues(at_once(trace)) == [0, 0, 0]
    assert [arrival.content for arrival in at_once(trace)] == [0, 1, 2]
