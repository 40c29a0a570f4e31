"""What every server is asked: one plan, and the trace that follows from it. Pure; knows no server and no clock."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from foreframe_server.load.traces import Arrival, Ask, merge, poisson, robots

ROBOT, PLANNER = "all", "planner"
_ROBOTS_LOAD = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """Durations, sizes and limits. answer_s: what a robot's answer takes in process; it sizes the trace.

    load: of the device, robots and planners together. max_batch, wait_ms: of the peers' dynamic batching; two
    questions of eight members are what fits into a robot's deadline on two cores.
    """

    answer_s: float
    arrangement: str
    seconds: float = 40.0
    deadline_ms: int = 500
    members: int = 8
    bulk_members: int = 32
    quality_members: int = 20
    clips: int = 8
    load: float = 0.9
    askers: int = 4
    connections: int = 8
    max_lag_ms: float = 20.0
    max_batch: int = 2
    wait_ms: int = 5
    threads: int = 2
    stub_rounds: int = 1
    seed: int = 0

    @property
    def rate_hz(self) -> float:
        """A robot asks once a period, and its deadline is one period: twice a second unless told otherwise."""
        return 1000 / self.deadline_ms

    @property
    def num_robots(self) -> int:
        """As many as take half of the device, at least one."""
        return max(1, int(_ROBOTS_LOAD / (self.rate_hz * self.answer_s)))

    @property
    def planner_hz(self) -> float:
        """How often planners ask so that both together are the load; at least a fifth of it is theirs."""
        robots_load = self.num_robots * self.rate_hz * self.answer_s
        share = max(self.load - robots_load, self.load / 5)
        return share / (self.answer_s * self.bulk_members / self.members)

    @property
    def saturation_s(self) -> float:
        """How long askers never pause."""
        return self.seconds / 2

    @property
    def stub_s(self) -> float:
        """How long the stub is asked, each way."""
        return self.seconds / 8

    def record(self) -> Mapping[str, object]:
        """Return it as one JSON object."""
        return {
            **asdict(self),
            "rate_hz": self.rate_hz,
            "num_robots": self.num_robots,
            "planner_hz": round(self.planner_hz, 4),
        }


def mixed_trace(plan: Plan) -> list[Arrival]:
    """Lay out robots that ask at their rate, and planners' bulk work at random times, the same for every server."""
    robot = Ask(members=plan.members, deadline_ms=plan.deadline_ms, cache="bypass")
    planner = Ask(members=plan.bulk_members, priority="bulk", cache="bypass")
    return merge(
        [
            robots(plan.num_robots, plan.rate_hz, plan.seconds, robot, seed=plan.seed),
            poisson(plan.planner_hz, plan.seconds, planner, seed=plan.seed, group=PLANNER),
        ]
    )
