"""Questions on simulated devices: times that can be told beforehand come out, and the rules of serving hold."""

import pytest

from foreframe_server.capacity.simulation import Rules, misses, simulate
from foreframe_server.load.traces import Arrival, Ask, constant, robots

FRAMES = 8


def play(trace, contract, costs, num_devices=1, **rules):
    return simulate(trace, contract, costs, Rules(FRAMES, **rules), num_devices=num_devices, seed=0)


def latencies(played):
    return [round(record.latency_ms, 6) for record in sorted(played.records, key=lambda each: each.arrival.due_s)]


def test_one_question_takes_the_sum_of_its_parts(contract, costs):
    played = play([Arrival(0.0, Ask(members=1, steps=4), 0)], contract, costs)

    # wire in, prepare, four steps, eight frames, wire out
    assert latencies(played) == [2 + 5 + 40 + 8 + 3]
    assert played.records[0].reply.members == 1


def test_the_second_of_two_waits_for_what_it_cannot_share(contract, costs):
    apart = play([Arrival(0.0, Ask(steps=4), 0), Arrival(1.0, Ask(steps=4), 1)], contract, costs)
    together = play([Arrival(0.0, Ask(steps=4), 0), Arrival(0.0, Ask(steps=4), 1)], contract, costs)

    assert latencies(apart) == [58.0, 58.0]
    assert max(latencies(together)) == pytest.approx(58 + 5 + 8)  # steps are shared, preparing and decoding are not


def test_two_devices_do_not_wait_for_each_other(contract, costs):
    played = play([Arrival(0.0, Ask(steps=4), 0), Arrival(0.0, Ask(steps=4), 1)], contract, costs, num_devices=2)

    assert latencies(played) == [58.0, 58.0]


def test_a_deadline_makes_ensembles_smaller_and_never_late(contract, costs):
    trace = robots(3, 2.0, 10.0, Ask(members=32, steps=4), seed=0)

    played = play(trace, contract, costs)

    assert len(played.records) == len(trace)
    assert misses(played) == 0
    assert 2 < sum(record.reply.members for record in played.records) / len(trace) < 10
    assert played.busy_ratio > 0.9


def test_more_than_a_device_can_do_is_refused_or_missed(contract, costs):
    trace = constant(100.0, 5.0, Ask(steps=4, deadline_ms=100, on_deadline="fail"))

    played = play(trace, contract, costs)

    assert misses(played) > 0.5
    assert {record.reply.code for record in played.records} >= {"ok", "deadline_unmeetable"}
    assert misses(play(trace, contract, costs, num_devices=8)) == 0


def test_a_full_queue_refuses(contract, costs):
    played = play([Arrival(0.0, Ask(steps=4), each) for each in range(100)], contract, costs, max_pending_s=1.0)

    codes = [record.reply.code for record in played.records]
    assert 0 < codes.count("overloaded") < 100
    assert codes.count("overloaded") + codes.count("ok") == 100


def test_equal_seeds_give_equal_runs(contract, costs):
    trace = robots(4, 5.0, 4.0, Ask(members=4, steps=4), seed=1)

    assert latencies(play(trace, contract, costs, 2)) == latencies(play(trace, contract, costs, 2))
