"""The fewest devices: as many as the arithmetic of simple fleets says, and never fewer than serve."""

from dataclasses import replace

import pytest

from foreframe_server.capacity.plans import CELL_DEVICES, Fleet, Planner, Unservable
from foreframe_server.capacity.simulation import Rules, misses
from foreframe_server.load.traces import Ask

FLEET = Fleet(1, 2.0, Ask(members=4, steps=4), min_members=4.0)


@pytest.fixture
def planner(contract, costs):
    return Planner(contract, costs, Rules(8), duration_s=4.0)


def test_the_plan_is_served_and_one_device_less_is_not(planner):
    fleet = replace(FLEET, robots=24)

    plan = planner.plan(fleet)

    assert 1 < plan.devices <= CELL_DEVICES
    assert plan.misses <= 0.01
    assert plan.members >= 4
    fewer = planner.simulate(fleet, 24, plan.devices - 1)
    answered = [record.reply.members for record in fewer.records if record.reply.is_ok]
    assert misses(fewer) > 0.01 or sum(answered) / len(answered) < 4


def test_more_robots_never_need_fewer_devices(planner):
    devices = [planner.plan(replace(FLEET, robots=robots)).devices for robots in (1, 5, 20, 40)]

    assert devices == sorted(devices)
    assert devices[0] == 1


def test_a_large_fleet_is_so_many_full_cells(planner):
    plan = planner.plan(replace(FLEET, robots=10_000))

    assert plan.devices == CELL_DEVICES * -(-10_000 // plan.robots_per_cell)
    # A member takes 4 steps of which two share a forward, and 8 frames; a question 5 ms more.
    most = CELL_DEVICES / (2.0 * (0.005 + 4 * (4 * 0.005 + 0.008)))
    assert 0.75 * most <= plan.robots_per_cell <= most


def test_a_faster_device_serves_more(planner):
    fast = replace(planner, costs=planner.costs.sped_up(4))
    fleet = replace(FLEET, robots=24)

    assert fast.plan(fleet).devices < 0.4 * planner.plan(fleet).devices


def test_what_no_device_can_do_is_said(planner):
    with pytest.raises(Unservable):
        planner.plan(replace(FLEET, rate_hz=40.0, min_members=4.0))
