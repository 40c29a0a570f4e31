"""The fewest devices with which a fleet is served, found by simulating more and more of them.

Up to a cell's size devices are simulated together; a larger fleet is so many cells, each with its share of the robots,
as robots stay with the cell that a router gave them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from foreframe_engines import Contract
from foreframe_server.capacity.costs import Costs
from foreframe_server.capacity.simulation import Rules, Simulated, misses, simulate
from foreframe_server.load.summary import Percentiles, summarise
from foreframe_server.load.traces import Ask, robots

CELL_DEVICES = 8


class Unservable(ValueError):
    """No number of devices serves even one robot so."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """How many robots ask what how often, and what counts as served.

    The deadline of `ask`, by default one period, may be missed by a share `max_misses` of the questions, and answers
    have `min_members` members on average.
    """

    robots: int
    rate_hz: float
    ask: Ask
    min_members: float = 1.0
    max_misses: float = 0.01


@dataclass(frozen=True, slots=True)
class Plan:
    """What serves a fleet. The numbers are of one simulated cell of `devices_per_cell` with `robots_per_cell`."""

    robots: int
    devices: int
    devices_per_cell: int
    robots_per_cell: int
    misses: float
    members: float
    latency_ms: Percentiles | None
    busy_ratio: float


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans for one kind of device. duration_s: of the simulated trace, of which the first quarter is not counted."""

    contract: Contract
    costs: Costs
    rules: Rules
    duration_s: float = 20.0
    seed: int = 0

    def plan(self, fleet: Fleet) -> Plan:
        """Return the fewest devices that serve a fleet. Raises Unservable."""
        for devices in _growing(CELL_DEVICES):
            if self._is_served(fleet, fleet.robots, devices):
                fewest = self._fewest(fleet, devices)
                return self._measure(fleet, fleet.robots, fewest, devices=fewest)
        per_cell = self._most_robots(fleet)
        return self._measure(fleet, per_cell, CELL_DEVICES, devices=CELL_DEVICES * math.ceil(fleet.robots / per_cell))

    def simulate(self, fleet: Fleet, num_robots: int, devices: int) -> Simulated:
        """Let so many robots of a fleet ask so many devices; the time in which queues fill is left out."""
        trace = robots(num_robots, fleet.rate_hz, self.duration_s, fleet.ask, seed=self.seed)
        played = simulate(trace, self.contract, self.costs, self.rules, num_devices=devices, seed=self.seed)
        settled = [record for record in played.records if record.arrival.due_s >= self.duration_s / 4]
        return Simulated(settled, played.busy_ratio)

    def _fewest(self, fleet: Fleet, enough: int) -> int:
        """Halve the gap between too few and enough devices."""
        too_few = enough // 2
        while enough - too_few > 1:
            middle = (enough + too_few) // 2
            if self._is_served(fleet, fleet.robots, middle):
                enough = middle
            else:
                too_few = middle
        return enough

    def _most_robots(self, fleet: Fleet) -> int:
        """Find how many robots a full cell serves, within a fiftieth. Raises Unservable."""
        served, too_many = 0, 1
        while self._is_served(fleet, too_many, CELL_DEVICES):
            served, too_many = too_many, 2 * too_many
        while too_many - served > max(1, served // 50):
            middle = (served + too_many) // 2
            if self._is_served(fleet, middle, CELL_DEVICES):
                served = middle
            else:
                too_many = middle
        if served == 0:
            raise Unservable("not even one robot is served: ask for fewer members, or give more time")
        return served

    def _is_served(self, fleet: Fleet, num_robots: int, devices: int) -> bool:
        if num_robots * fleet.rate_hz * self._least_s(fleet) > devices:
            return False  # more work than time, whatever the order
        played = self.simulate(fleet, num_robots, devices)
        return misses(played) <= fleet.max_misses and _members(played) >= fleet.min_members

    def _least_s(self, fleet: Fleet) -> float:
        """Return the device's seconds for the least that serves one question."""
        per_row_s = min(seconds.mean / rows for rows, seconds in self.costs.steps.items())
        steps = fleet.ask.steps or self.contract.sampler.steps
        member_s = steps * per_row_s + self.rules.num_frames * self.costs.frame.mean
        is_whole = fleet.min_members > 1
        return self.costs.prepare.mean + (fleet.min_members * member_s if is_whole else 0.0)

    def _measure(self, fleet: Fleet, num_robots: int, cell: int, *, devices: int) -> Plan:
        played = self.simulate(fleet, num_robots, cell)
        latency_ms = summarise(played.records, self.duration_s).latency_ms
        return Plan(
            fleet.robots,
            devices,
            cell,
            num_robots,
            round(misses(played), 4),
            round(_members(played), 2),
            latency_ms,
            round(played.busy_ratio, 3),
        )


def _members(played: Simulated) -> float:
    answered = [record.reply.members for record in played.records if record.reply.is_ok]
    return sum(answered) / len(answered) if answered else 0.0


def _growing(most: int) -> Iterator[int]:
    devices = 1
    while devices <= most:
        yield devices
        devices *= 2
