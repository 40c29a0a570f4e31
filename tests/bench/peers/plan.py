"""What every server is asked: one plan, and the traces that follow from it. Pure; knows no server and no clock."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, count

from foreframe_server.load.traces import Arrival, Ask, merge, poisson, robots

ROBOT, PLANNER = "all", "planner"
ALONE = 5
MAIN_LOAD = 0.9
_ROBOTS_LOAD = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """Durations, sizes and limits. answer_s: what a robot's answer takes in process; it sizes the traces.

    seconds: of the mixed trace at each load. loads: of the device, robots and planners together. max_batch, wait_ms:
    of the peers' dynamic batching; two questions of eight members are what fits into a robot's deadline on two cores.
    """

    answer_s: float
    arrangement: str
    seconds: float = 20.0
    deadline_ms: int = 500
    members: int = 8
    bulk_members: int = 32
    quality_members: int = 20
    clips: int = 8
    loads: tuple[float, ...] = (0.6, MAIN_LOAD, 1.2)
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
    def saturation_s(self) -> float:
        """How long askers never pause."""
        return 0.8 * self.seconds

    @property
    def stub_s(self) -> float:
        """How long the stub is asked, each way."""
        return self.seconds / 4

    def planner_hz(self, load: float) -> float:
        """How often planners ask so that both together are a load; at least a fifth of it is theirs."""
        robots_load = self.num_robots * self.rate_hz * self.answer_s
        share = max(load - robots_load, load / 5)
        return share / (self.answer_s * self.bulk_members / self.members)

    def record(self) -> Mapping[str, object]:
        """Return it as one JSON object. offered: what the traces really ask for, of what the engine does in process."""
        offered = {f"{load:g}": round(offered_load(self, mixed_trace(self, load)), 3) for load in self.loads}
        return {**asdict(self), "rate_hz": self.rate_hz, "num_robots": self.num_robots, "offered": offered}


@dataclass(frozen=True, slots=True)
class Contents:
    """Where the numbers of each part's questions begin. No two parts share one, so every context is a new one.

    saturated: the last, for nobody knows how many questions it takes.
    """

    answers: int
    alone: int
    quality: int
    mixed: tuple[int, ...]
    saturated: int

    @classmethod
    def of(cls, plan: Plan) -> "Contents":
        """Lay out the numbers; 0 is for asking whether a server is there."""
        alone = 1 + plan.clips + 1
        quality = alone + 2 * ALONE
        first = quality + 1 + plan.clips
        starts = list(accumulate((len(mixed_trace(plan, load)) for load in plan.loads), initial=first))
        return cls(1, alone, quality, tuple(starts[:-1]), starts[-1])


def mixed_trace(plan: Plan, load: float, first: int = 0) -> list[Arrival]:
    """Lay out robots that ask at their rate, and planners' bulk work at random times, the same for every server.

    first: the number of the first question.
    """
    robot = Ask(members=plan.members, deadline_ms=plan.deadline_ms, cache="bypass")
    planner = Ask(members=plan.bulk_members, priority="bulk", cache="bypass")
    trace = merge(
        [
            robots(plan.num_robots, plan.rate_hz, plan.seconds, robot, seed=plan.seed),
            poisson(plan.planner_hz(load), plan.seconds, planner, seed=plan.seed, group=PLANNER),
        ]
    )
    return [replace(arrival, content=content) for arrival, content in zip(trace, count(first))]


def offered_load(plan: Plan, trace: list[Arrival]) -> float:
    """Return what a trace asks for, as a share of what the engine does in process in its seconds."""
    members = sum(arrival.ask.members for arrival in trace)
    return members / plan.members * plan.answer_s / plan.seconds


def known_questions(plan: Plan) -> list[tuple[int, int]]:
    """Return content and members of all questions that are surely asked, and of about as many as will saturate."""
    contents = Contents.of(plan)
    saturating = round(plan.saturation_s / plan.answer_s)
    usual = [0, *range(contents.answers, contents.quality), *range(contents.saturated, contents.saturated + saturating)]
    bulk = contents.answers + plan.clips
    quality = range(contents.quality, contents.quality + 1 + plan.clips)
    traces = (mixed_trace(plan, load, first) for load, first in zip(plan.loads, contents.mixed, strict=True))
    return [
        *((content, plan.members) for content in usual if content != bulk),
        (bulk, plan.bulk_members),
        *((content, plan.quality_members) for content in quality),
        *((arrival.content, arrival.ask.members) for trace in traces for arrival in trace),
    ]
