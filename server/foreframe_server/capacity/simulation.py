"""A fleet's questions on devices that are the worker's own code on a simulated clock.

What is simulated is the engine and the time; admission, scheduling, deadlines and decoding are what serves. One
question goes to the device with the least predicted work, as in a pool of workers. Of the service, only its time is.
"""

import asyncio
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from foreframe_engines import Contract, EnsembleSpec, OnDeadline, Priority, Query, Sampling, Strategy
from foreframe_server.calls import Call
from foreframe_server.capacity.costs import Costs
from foreframe_server.capacity.paced_engine import PacedEngine, VirtualClock
from foreframe_server.cost_model import CostModel
from foreframe_server.errors import ServiceError
from foreframe_server.load.records import OK, Record, Reply
from foreframe_server.load.traces import Arrival
from foreframe_server.metrics import Metrics
from foreframe_server.scheduler import Scheduler
from foreframe_server.service import reserved_s
from foreframe_server.tickets import Ticket, WorkerResult
from foreframe_server.worker import EngineWorker

_ARRIVES, _TURNS = 0, 1


@dataclass(frozen=True, slots=True)
class Rules:
    """How the devices schedule. num_frames: how many frames each question wants decoded."""

    num_frames: int
    max_pending_s: float = 30.0
    max_rows: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Simulated:
    """What became of every question, and the share of the time that devices worked."""

    records: Sequence[Record]
    busy_ratio: float


@dataclass(slots=True, eq=False)
class _Waiting:
    arrival: Arrival
    ticket: Ticket


class _Device(EngineWorker):
    """A worker without a thread: it takes a turn when it is told to."""

    def __init__(self, contract: Contract, costs: Costs, rules: Rules, rng: np.random.Generator) -> None:
        self.virtual = VirtualClock()
        self.engine = PacedEngine(contract, costs, self.virtual, rng)
        cost = CostModel(contract.buckets, max_rows=rules.max_rows or max(costs.steps))
        scheduler = Scheduler(cost, max_pending_s=rules.max_pending_s)
        super().__init__(self.engine, scheduler, Metrics(), self.virtual)
        cost.fit({rows: seconds.high for rows, seconds in costs.steps.items()})
        cost.observe_prepare(costs.prepare.high)
        cost.observe_decode(1, costs.frame.high)
        self._queue = scheduler
        self.waiting: list[_Waiting] = []
        self.is_awake = False

    @property
    def is_ready(self) -> bool:
        """Always: nothing has to be started."""
        return True

    @property
    def pending_s(self) -> float:
        """Predicted seconds of the work that waits."""
        return self._queue.pending_s

    def take(self, arrival: Arrival, query: Query, call: Call, now: float) -> None:
        """Admit a question at a time that may lie within the turn that is being taken. Raises what `admit` raises."""
        busy_until_s, self.virtual.now = self.virtual.now, now
        try:
            self.waiting.append(_Waiting(arrival, self.admit(query, call)))
        finally:
            self.virtual.now = max(busy_until_s, now)

    def take_done(self) -> list[_Waiting]:
        """Hand out the questions that ended."""
        done = [each for each in self.waiting if each.ticket.future.done()]
        self.waiting = [each for each in self.waiting if not each.ticket.future.done()]
        return done


@dataclass(slots=True, eq=False)
class _Run:
    contract: Contract
    costs: Costs
    rules: Rules
    devices: list[_Device]
    records: list[Record] = field(default_factory=list)
    events: list[tuple[float, int, int, Arrival | _Device]] = field(default_factory=list)
    num_events: int = 0

    def push(self, at_s: float, kind: int, what: Arrival | _Device) -> None:
        """Let something happen at a time; of one time arrivals come first, then what was pushed first."""
        self.num_events += 1
        heapq.heappush(self.events, (at_s, kind, self.num_events, what))


def simulate(
    trace: Sequence[Arrival], contract: Contract, costs: Costs, rules: Rules, *, num_devices: int, seed: int
) -> Simulated:
    """Play a trace against so many devices."""
    seeds = np.random.SeedSequence(seed).spawn(num_devices)
    return asyncio.run(_simulate(trace, contract, costs, rules, [np.random.default_rng(each) for each in seeds]))


async def _simulate(
    trace: Sequence[Arrival], contract: Contract, costs: Costs, rules: Rules, rngs: Sequence[np.random.Generator]
) -> Simulated:
    run = _Run(contract, costs, rules, [_Device(contract, costs, rules, rng) for rng in rngs])
    for arrival in trace:
        run.push(arrival.due_s + costs.before_s, _ARRIVES, arrival)
    end_s = 0.0
    while run.events:
        now, _, _, what = heapq.heappop(run.events)
        if isinstance(what, Arrival):
            _arrive(run, what, now)
        else:
            await _turn(run, what, now)
            end_s = max(end_s, what.virtual.now)
    busy_s = sum(device.engine.busy_s for device in run.devices)
    return Simulated(run.records, busy_s / (len(run.devices) * end_s) if end_s else 0.0)


def _arrive(run: _Run, arrival: Arrival, now: float) -> None:
    device = min(run.devices, key=lambda each: (each.pending_s, max(0.0, each.virtual.now - now)))
    try:
        device.take(arrival, _query(arrival, run), _call(arrival, run.costs), now)
    except ServiceError as error:
        run.records.append(Record(arrival, arrival.due_s, now + run.costs.after_s, Reply(error.code)))
    _collect(run, device, now)
    if not device.is_awake:
        device.is_awake = True
        run.push(device.virtual.now, _TURNS, device)


async def _turn(run: _Run, device: _Device, now: float) -> None:
    device.virtual.now = max(device.virtual.now, now)
    device.turn()
    await asyncio.sleep(0)  # answers are handed over by the event loop
    _collect(run, device, device.virtual.now)
    device.is_awake = device.has_work()
    if device.is_awake:
        run.push(device.virtual.now, _TURNS, device)


def _collect(run: _Run, device: _Device, now: float) -> None:
    for each in device.take_done():
        reply = _reply(each.ticket.future, each.arrival)
        run.records.append(Record(each.arrival, each.arrival.due_s, now + run.costs.after_s, reply))


def _reply(future: "asyncio.Future[WorkerResult]", arrival: Arrival) -> Reply:
    error = future.exception()
    if error is not None:
        return Reply(error.code if isinstance(error, ServiceError) else "failed")
    result = future.result()
    is_degraded = result.is_estimate or len(result.members) < arrival.ask.members
    return Reply(
        OK, len(result.members), rows_per_step=result.timings.step_batch_mean, is_degraded=is_degraded, cache="miss"
    )


def _query(arrival: Arrival, run: _Run) -> Query:
    ask, contract = arrival.ask, run.contract
    return Query(
        model=contract.model,
        context=np.zeros((1, 1, 1, 3), np.uint8),
        states=np.zeros((1, 1), np.float32),
        frame_indices=tuple(range(1, run.rules.num_frames + 1)),
        sampling=Sampling(Strategy(ask.strategy), ask.steps or contract.sampler.steps, arrival.content),
        ensemble=EnsembleSpec(ask.members),
        priority=Priority(ask.priority),
        stream_id=ask.stream_id,
    )


def _call(arrival: Arrival, costs: Costs) -> Call:
    ask = arrival.ask
    deadline_s = None
    if ask.deadline_ms is not None:
        budget_s = ask.deadline_ms / 1000
        deadline_s = arrival.due_s + budget_s - reserved_s(costs.after_s, budget_s)
    return Call(str(arrival.content), arrival.due_s, deadline_s, OnDeadline(ask.on_deadline))


def misses(simulated: Simulated) -> float:
    """Return the share of questions with a deadline that got no answer in time."""
    timed = [record for record in simulated.records if record.arrival.ask.deadline_ms is not None]
    return sum(record.is_miss for record in timed) / len(timed) if timed else math.nan
