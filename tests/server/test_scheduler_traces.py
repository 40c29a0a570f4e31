"""Random arrivals on a simulated device with a clock of its own, and the rules that every such trace must keep."""

import math
from collections import Counter, defaultdict, deque
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreframe_engines import EnsembleSpec, OnDeadline, Priority, Query, Sampling, Strategy
from foreframe_engines.schedule import get_schedule
from foreframe_engines.types import Conditioning
from foreframe_server.budgets import Budgets
from foreframe_server.cost_model import CostModel
from foreframe_server.errors import ServiceError
from foreframe_server.jobs import Ending, Job, due_s
from foreframe_server.scheduler import Scheduler

LATENTS = np.zeros((1, 1, 1, 1), np.float32)
CONDITIONING = Conditioning(LATENTS, {})
BUCKETS = (1, 2, 4, 8)
FORWARD_S, ROW_S = 0.02, 0.01
PREPARE_S = 0.005
OPTIMISM = 0.7
STEP_MARGIN, RESERVED_SHARE = 1.5, 0.25
ROUNDING_S = 1e-9
STALL = 8.0
LONGEST = 1.5 * STALL
BULK_SHARE = 0.1
PATIENCE_S = 1.0
NUM_TRACES, NUM_CHUNKS = 40_000, 10


@dataclass(frozen=True, slots=True)
class Ask:
    """One arrival, and at most one change to it. Times are seconds after the start, budgets after the arrival."""

    at_s: float
    size: int = 1
    steps: int = 1
    first_member: int = 0
    budget_s: float | None = None
    on_deadline: OnDeadline = OnDeadline.DEGRADE
    priority: Priority = Priority.CONTROLLER
    stream_id: str | None = None
    key: str = ""
    decode_s: float = 0.0
    is_shortened: bool = False
    change: str = "none"
    change_after_s: float = 0.0


@cache
def build_query(size, steps, priority, stream_id):
    return Query(
        model="toy",
        context=np.zeros((1, 2, 2, 3), np.uint8),
        states=np.zeros((2, 1), np.float32),
        frame_indices=(1,),
        sampling=Sampling(Strategy.SAMPLE, steps, 0),
        ensemble=EnsembleSpec(size),
        priority=priority,
        stream_id=stream_id,
    )


@cache
def schedule_of(steps):
    return get_schedule(steps, 5.0)


def build_job(number, ask):
    return Job(
        str(number),
        build_query(ask.first_member + ask.size, ask.steps, ask.priority, ask.stream_id),
        schedule_of(ask.steps),
        deadline_s=None if ask.budget_s is None else ask.at_s + ask.budget_s,
        on_deadline=ask.on_deadline,
        received_s=ask.at_s,
        first_member=ask.first_member,
        key=ask.key,
        decode_s=ask.decode_s,
    )


class Device:
    """Takes a random time around a line in the rows, and sometimes far more."""

    factors = np.random.default_rng(0).uniform(0.7, 1.5, 4099)
    factors[np.random.default_rng(1).random(4099) < 0.02] *= STALL

    def __init__(self, seed=0):
        self.factors = np.roll(self.factors, seed).tolist() if seed else self.factors.tolist()
        self.num_runs = 0

    def seconds(self, num_rows):
        self.num_runs += 1
        return (FORWARD_S + ROW_S * num_rows) * self.factors[self.num_runs % len(self.factors)]


class Ledger:
    """Knows by its own books what lives, and checks all that a scheduler says and does against them.

    Only what a forward and preparing are predicted to take is the scheduler's; what is to be run is counted here.
    """

    def __init__(self, cost, *, wait_bound_s=math.inf, checks_turns=True):
        self.cost = cost
        self.max_rows = cost.max_rows
        self.wait_bound_s = wait_bound_s
        self.checks_turns = checks_turns
        self.live = {}
        self.endings = {}
        self.cancelled = set()
        self.deadlines = {}
        self.terms = {}
        self.prepared = set()
        self.num_given_up = 0
        self.num_steps = {}
        self.num_waiting = {}
        self.num_whole = Counter()
        self.steps_run = Counter()
        self.newest = {}
        self.is_contended = False
        self.shared = Counter()
        self.num_rows = Counter()

    def admit(self, job):
        self.live[job.id] = job
        self.deadlines[job.id] = job.deadline_s
        self.terms[job.id] = job.on_deadline
        self.num_steps[job.id] = job.num_steps
        self.num_waiting[job.id] = len(job.members)
        stream = (job.key, job.query.stream_id)
        newest = self.newest.get(stream)
        if newest is None or newest.received_s <= job.received_s:
            self.newest[stream] = job

    def check_refusal(self, error):
        assert not error.is_retryable or error.retry_after_ms >= 1, "a refusal does not say when to come back"

    def check_streams(self):
        streams = Counter((job.key, job.query.stream_id) for job in self.live.values() if job.query.stream_id)
        assert max(streams.values(), default=0) <= 1, "a stream has more than its newest job"

    def check_pick(self, rows, now):
        waiting = Counter()
        for name, job in self.live.items():
            waiting[job.query.priority] += self.num_waiting[name]
        self.is_contended = min(waiting[kind] for kind in Priority) >= self.max_rows
        assert len(rows) == min(self.max_rows, waiting.total()), "rows are left idle"
        assert len({(row.job.id, row.member.index) for row in rows}) == len(rows), "a member runs twice at once"
        self.check_rows(rows, now)
        if self.checks_turns:
            self.check_order(rows)

    def check_rows(self, rows, now):
        for row in rows:
            name = row.job.id
            assert name not in self.cancelled, "a row runs after it was cancelled"
            assert name in self.live, "a row runs after its job has ended"
            assert self.deadlines[name] is None or now < self.deadlines[name], "a row runs after its deadline"
            assert row.member.step == self.steps_run[name, row.member.index], "a step is skipped or repeated"
            assert not self.is_surely_hopeless(row.job, now), "a row runs in vain: its job is hopeless"

    def check_order(self, rows):
        """Of what a class needs, nothing that is due later runs before what is due sooner."""
        picked = {(row.job.id, row.member.index) for row in rows}
        latest, soonest = defaultdict(lambda: -math.inf), defaultdict(lambda: math.inf)
        for name, job in self.live.items():
            kind, due = job.query.priority, due_s(job, PATIENCE_S)
            for member in job.members:
                if not job.is_needed(member) or self.steps_run[name, member.index] == self.num_steps[name]:
                    continue
                if (name, member.index) in picked:
                    latest[kind] = max(latest[kind], due)
                else:
                    soonest[kind] = min(soonest[kind], due)
        assert all(latest[kind] <= soonest[kind] for kind in Priority), "a later deadline goes first"

    def book(self, rows, whole):
        """Count what a forward did, before its outcomes are taken."""
        if self.checks_turns:
            self.check_shares(rows)
        expected = []
        for row in rows:
            name = row.job.id
            if name not in self.live:
                continue
            self.steps_run[name, row.member.index] += 1
            if self.steps_run[name, row.member.index] == self.num_steps[name]:
                expected.append((name, row.member.index))
                assert row.member.index == row.job.first_member + self.num_whole[name], "a member overtakes another"
                self.num_whole[name] += 1
                self.num_waiting[name] -= 1
        assert [(row.job.id, row.member.index) for row in whole] == expected, "whole members are not told"

    def check_shares(self, rows):
        """While both classes could fill every forward, each has its share, give or take a row of the lighter one."""
        kinds = Counter(row.job.query.priority for row in rows)
        self.num_rows += kinds
        self.shared = self.shared + kinds if self.is_contended else Counter()
        fair = BULK_SHARE * self.shared.total()
        assert abs(self.shared[Priority.BULK] - fair) <= 2, "a class has more or less than its share"

    def end(self, outcome, now):
        job, name = outcome.job, outcome.job.id
        assert name in self.live, "a job that does not live ends"
        del self.live[name]
        self.endings[name] = outcome.ending
        indices = [member.index for member in job.whole_members]
        assert indices == list(range(job.first_member, job.first_member + self.num_whole[name])), "whole ones have gaps"
        assert self.is_justified(outcome, now), f"{outcome.ending} without a reason"
        if job.deadline_s is None:
            assert now - job.received_s <= self.wait_bound_s, "a job without a deadline starves"

    def is_justified(self, outcome, now):
        job, name = outcome.job, outcome.job.id
        match outcome.ending:
            case Ending.FINISHED:
                return self.num_waiting[name] == 0
            case Ending.EXPIRED:
                return self.may_expire(job, self.deadlines[name] - now)
            case Ending.CANCELLED:
                return name in self.cancelled
            case Ending.SUPERSEDED:
                return self.newest[job.key, job.query.stream_id] is not job
            case _:
                return False

    def may_expire(self, job, left_s):
        """At its deadline; with an answer when a step and its decoding would be late; without one when hopeless."""
        if left_s <= 0:
            return True
        if self.has_answer(job):
            budget_s = self.deadlines[job.id] - job.received_s
            return left_s <= min(self.reserve_s(job), RESERVED_SHARE * budget_s) + ROUNDING_S
        if self.terms[job.id] is OnDeadline.DEGRADE:
            return False
        self.num_given_up += 1
        lacking = self.lacking_steps(job)
        prepare_s = 0.0 if job.id in self.prepared else self.cost.prepare_s
        full_s = prepare_s + sum(lacking) * self.cost.row_s + len(lacking) * job.decode_s
        return left_s < OPTIMISM * max(full_s, self.chain_s(job, lacking)) + ROUNDING_S

    def is_surely_hopeless(self, job, now):
        """Whether a job that must be whole will not be, even if it were prepared and had one member to decode."""
        deadline_s = self.deadlines[job.id]
        if deadline_s is None or self.has_answer(job) or self.terms[job.id] is OnDeadline.DEGRADE:
            return False
        lacking = self.lacking_steps(job)
        least_s = max(self.chain_s(job, lacking), sum(lacking) * self.cost.row_s + job.decode_s)
        return deadline_s - now < OPTIMISM * least_s - ROUNDING_S

    def chain_s(self, job, lacking):
        return max(lacking) * self.cost.step_s(1) + job.decode_s

    def reserve_s(self, job):
        """What the next forward may take, with the decoding of the members that it may make whole."""
        left = self.waiting_steps(job)[: self.max_rows]
        return STEP_MARGIN * self.cost.step_s(self.max_rows) + job.decode_s * max(1, left.count(1))

    def has_answer(self, job):
        if job.first_member > 0 or self.num_whole[job.id] > 0:
            return self.terms[job.id] is not OnDeadline.FAIL
        return self.terms[job.id] is OnDeadline.DEGRADE and self.steps_run[job.id, 0] > 0

    def lacking_steps(self, job):
        """Count the steps before each of the members without which a job has no answer."""
        waiting = self.waiting_steps(job)
        return waiting if self.terms[job.id] is OnDeadline.FAIL else waiting[:1]

    def waiting_steps(self, job):
        first = job.first_member + self.num_whole[job.id]
        indices = range(first, first + self.num_waiting[job.id])
        return [self.num_steps[job.id] - self.steps_run[job.id, index] for index in indices]


class Simulation:
    """Plays arrivals on a scheduler and a simulated device, as a worker would."""

    def __init__(self, scheduler, asks, *, device=None, wait_bound_s=math.inf, checks_turns=True):
        self.scheduler = scheduler
        self.asks = asks
        self.device = device or Device()
        self.ledger = Ledger(scheduler.cost, wait_bound_s=wait_bound_s, checks_turns=checks_turns)
        self.now = 0.0
        self.num_refused = 0
        arrivals = [(ask.at_s, 0, number) for number, ask in enumerate(asks)]
        changes = [
            (ask.at_s + ask.change_after_s, 1, number) for number, ask in enumerate(asks) if ask.change != "none"
        ]
        self.events = sorted(arrivals + changes, reverse=True)

    def run(self, until_s=math.inf):
        while (self.events or self.scheduler.has_work) and self.now < until_s:
            self.deliver(self.now)
            if not self.scheduler.has_work:
                self.now = max(self.now, self.events[-1][0]) if self.events else self.now
                continue
            self.turn()
        if until_s == math.inf:
            assert not self.ledger.live, "a job has no outcome"
        return self.ledger

    def turn(self):
        batch = self.scheduler.schedule(self.now)
        self.collect()
        self.ledger.check_pick(batch.rows if batch else (), self.now)
        if batch is None:
            assert not self.scheduler.has_work, "work waits and nothing runs"
            return
        self.prepare(batch)
        batch = self.scheduler.confirm(batch, self.now)
        self.collect()
        if batch is not None:
            self.step(batch)

    def prepare(self, batch):
        for job in batch.jobs:
            if job.conditioning is None:
                job.conditioning = CONDITIONING
                self.ledger.prepared.add(job.id)
                self.scheduler.cost.observe_prepare(PREPARE_S)
                self.now += PREPARE_S
                self.shorten(job)
        self.deliver(self.now)

    def shorten(self, job):
        if self.asks[int(job.id)].is_shortened and job.id in self.ledger.live:
            job.shorten(schedule_of(1))
            self.ledger.num_steps[job.id] = 1

    def step(self, batch):
        self.ledger.check_rows(batch.rows, self.now)
        ready_s = self.now + self.device.seconds(len(batch.rows))
        self.deliver(ready_s)
        self.now = ready_s
        whole = self.scheduler.settle(batch, [LATENTS] * len(batch.rows), self.now)
        self.ledger.book(batch.rows, whole)
        self.collect()
        self.deliver(self.now + sum(row.job.decode_s for row in whole))

    def deliver(self, until_s):
        while self.events and self.events[-1][0] <= until_s:
            self.now, is_change, number = self.events.pop()
            if is_change:
                self.change(number)
            else:
                self.add(number)
        self.now = max(self.now, until_s) if until_s < math.inf else self.now

    def add(self, number):
        job = build_job(number, self.asks[number])
        try:
            self.scheduler.add(job, self.now)
        except ServiceError as error:
            self.num_refused += 1
            self.ledger.check_refusal(error)
            return
        self.ledger.admit(job)
        self.collect()
        self.ledger.check_streams()

    def change(self, number):
        name, ledger = str(number), self.ledger
        ask, is_live = self.asks[number], name in ledger.live
        if ask.change == "cancel":
            self.scheduler.cancel(name)
            if is_live:
                ledger.cancelled.add(name)
            self.collect()
        elif ask.change == "grow" and self.scheduler.grow(name, ask.first_member + ask.size + 2):
            assert is_live, "a job that has ended grows"
            ledger.num_waiting[name] += 2
        elif ask.change == "extend":
            self.scheduler.extend(name, self.now + 0.3, OnDeadline.PARTIAL)
            if is_live and ledger.terms[name] is OnDeadline.FAIL:
                ledger.terms[name] = OnDeadline.PARTIAL
            if is_live and ledger.deadlines[name] is not None:
                ledger.deadlines[name] = max(ledger.deadlines[name], self.now + 0.3)

    def collect(self):
        for outcome in self.scheduler.take_outcomes():
            self.ledger.end(outcome, self.now)


def build_scheduler(kind=Scheduler, *, max_rows=2, max_pending_s=2.0, is_cost_known=True, budgets=None):
    cost = CostModel(BUCKETS, max_rows=max_rows)
    if is_cost_known:
        cost.fit({rows: FORWARD_S + ROW_S * rows for rows in BUCKETS})
    return kind(cost, max_pending_s=max_pending_s, bulk_share=BULK_SHARE, patience_s=PATIENCE_S, budgets=budgets)


def bound_wait_s(scheduler, share):
    """Return how long a job without a deadline may wait at most.

    Once it is overdue, only work of its class that had been admitted goes first, `max_pending_s` of predicted time.
    The class runs `share` of the rows, and at worst one row a forward, because steps of a member follow each other.
    """
    num_rows = scheduler.max_pending_s / (0.5 * scheduler.cost.row_s)
    num_forwards = num_rows / min(1, share * scheduler.cost.max_rows) + 1 / share
    mean_s = scheduler.cost.step_s(scheduler.cost.max_rows) * (1.1 + 0.02 * 1.1 * STALL)
    return PATIENCE_S + mean_s * num_forwards + LONGEST * scheduler.cost.step_s(scheduler.cost.max_rows)


def choose(options, share):
    return options[int(share * len(options))]


def draw_asks(rng):
    """Draw a short trace of arrivals in a fifth of a second: more than the device can do, and all kinds of changes."""
    return [
        Ask(
            at_s=0.2 * row[0],
            size=choose((1, 1, 2, 3, 4), row[1]),
            steps=choose((1, 1, 2, 3), row[2]),
            first_member=choose((0, 0, 0, 2), row[3]),
            budget_s=choose((None, 0.0, 0.05, 0.1, 0.2, 0.4), row[4]),
            on_deadline=choose(tuple(OnDeadline), row[5]),
            priority=choose((Priority.CONTROLLER, Priority.CONTROLLER, Priority.BULK), row[6]),
            stream_id=choose((None, None, "arm"), row[7]),
            key=choose(("", "", "other"), row[8]),
            is_shortened=row[9] < 0.1,
            change=choose(("none", "none", "cancel", "grow", "extend"), row[10]),
            change_after_s=0.2 * row[11],
            decode_s=choose((0.0, 0.0, 0.005, 0.03), row[12]),
        )
        for row in rng.random((rng.integers(1, 7), 13)).tolist()
    ]


def play_trace(seed, kind=Scheduler):
    rng = np.random.default_rng(seed)
    max_rows, max_pending_s = choose(BUCKETS, rng.random()), choose((0.2, 0.5, 100.0), rng.random())
    budgets = Budgets(0.3, 0.02) if rng.random() < 0.25 else None
    scheduler = build_scheduler(
        kind, max_rows=max_rows, max_pending_s=max_pending_s, is_cost_known=rng.random() < 0.8, budgets=budgets
    )
    simulation = Simulation(scheduler, draw_asks(rng), device=DEVICES[seed % 64], checks_turns=budgets is None)
    return simulation.run(), simulation.num_refused


ENGINES_DOING = {Ending.FAULTED, Ending.CRASHED, Ending.STRANDED}
DEVICES = [Device(seed) for seed in range(64)]


@pytest.mark.parametrize("chunk", range(NUM_CHUNKS))
def test_every_random_trace_keeps_the_rules(chunk):
    num_refused, num_given_up, endings = 0, 0, Counter()
    for seed in range(chunk, NUM_TRACES, NUM_CHUNKS):
        try:
            ledger, refused = play_trace(seed)
        except AssertionError as error:
            pytest.fail(f"trace {seed}: {error}")
        num_refused += refused
        num_given_up += ledger.num_given_up
        endings.update(ledger.endings.values())
    # The traces are worth something only while everything happens in them, and often.
    assert min(num_refused, num_given_up) > 100
    assert all(endings[ending] > 100 for ending in set(Ending) - ENGINES_DOING)


TENTHS = st.integers(0, 12).map(lambda number: number / 50)
ASKS = st.builds(
    Ask,
    at_s=TENTHS,
    size=st.integers(1, 4),
    steps=st.integers(1, 3),
    first_member=st.sampled_from([0, 2]),
    budget_s=st.none() | TENTHS,
    on_deadline=st.sampled_from(OnDeadline),
    priority=st.sampled_from(Priority),
    stream_id=st.sampled_from([None, "arm"]),
    decode_s=st.sampled_from([0.0, 0.03]),
    is_shortened=st.booleans(),
    change=st.sampled_from(["none", "cancel", "grow", "extend"]),
    change_after_s=TENTHS,
)


@settings(max_examples=150, deadline=None)
@given(asks=st.lists(ASKS, max_size=12), max_rows=st.sampled_from(BUCKETS))
def test_any_trace_keeps_the_rules(asks, max_rows):
    Simulation(build_scheduler(max_rows=max_rows), asks).run()


# Long loads


def controllers_without_end(seconds):
    """Draw jobs with deadlines, four times as much work as two rows a forward can do."""
    rng = np.random.default_rng(7)
    num_jobs = int(4 * seconds * 2 / (FORWARD_S + 2 * ROW_S) / 6)
    times = np.sort(rng.uniform(0, seconds, num_jobs)).tolist()
    return [Ask(at_s, size=3, steps=2, budget_s=0.8, on_deadline=OnDeadline.FAIL) for at_s in times]


def play_load(kind, extra, *, share, seconds=60.0):
    """Run one more job among endless controllers for as long as it may wait; only the wait itself is checked."""
    scheduler = build_scheduler(kind, max_rows=2, max_pending_s=1.0)
    bound_s = bound_wait_s(scheduler, share)
    assert bound_s < seconds - 5, "the load must outlast the bound"
    asks = [extra, *controllers_without_end(seconds)]
    simulation = Simulation(scheduler, asks, wait_bound_s=bound_s, checks_turns=False)
    ledger = simulation.run(until_s=bound_s)
    assert simulation.num_refused > 100, "the load must be more than the device can do"
    assert "0" in ledger.endings, "a job without a deadline starves"
    return ledger


ENDLESS = Ask(0.0, size=4, steps=4)
BULK = Ask(0.0, size=20, steps=2, priority=Priority.BULK)


def test_a_controller_without_a_deadline_ends_however_many_deadlines_come():
    assert play_load(Scheduler, ENDLESS, share=1 - BULK_SHARE).endings["0"] is Ending.FINISHED


def test_bulk_work_ends_however_many_controllers_come():
    assert play_load(Scheduler, BULK, share=BULK_SHARE).endings["0"] is Ending.FINISHED


@pytest.mark.parametrize("max_rows", BUCKETS)
def test_both_classes_have_their_shares_while_both_could_fill_the_device(max_rows):
    bulk = [Ask(0.0, size=300, steps=2, priority=Priority.BULK)]
    controllers = [Ask(0.001 * number, size=8, steps=3) for number in range(100)]
    scheduler = build_scheduler(max_rows=max_rows, max_pending_s=1e9)
    ledger = Simulation(scheduler, bulk + controllers).run()
    assert ledger.num_rows == {Priority.BULK: 600, Priority.CONTROLLER: 2400}


# Planted faults, which the same checks must catch


class IgnoresDeadlines(Scheduler):
    def _is_late(self, job, now):
        return self._is_hopeless(job, now)


class ReservesTooMuch(Scheduler):
    def _is_late(self, job, now):
        step_s = 2 * self.cost.step_s(self.cost.max_rows)
        return job.is_expired(now, step_s, self.cost.max_rows) or self._is_hopeless(job, now)


class NeverGivesUp(Scheduler):
    def _is_hopeless(self, job, now):
        return False


class GivesUpTooEarly(Scheduler):
    def _is_hopeless(self, job, now):
        return super()._is_hopeless(job, now + 0.01)


class GivesUpWhatCouldDegrade(Scheduler):
    def _is_hopeless(self, job, now):
        is_tight = not job.has_answer and job.deadline_s is not None and now + self._needed_s(job) > job.deadline_s
        return is_tight or super()._is_hopeless(job, now)


class IgnoresCancels(Scheduler):
    def cancel(self, job_id, reason=Ending.CANCELLED):
        pass


class StarvesBulk(Scheduler):
    def _pick(self, now):
        rows = chain(self._rows(Priority.CONTROLLER, now), self._rows(Priority.BULK, now))
        return islice(rows, self.cost.max_rows)


class HoardsCredit(Scheduler):
    def _forget_credit(self):
        pass


class LosesOutcomes(Scheduler):
    def take_outcomes(self):
        return [outcome for outcome in super().take_outcomes() if outcome.ending is not Ending.FINISHED]


class RepeatsOutcomes(Scheduler):
    def take_outcomes(self):
        outcomes = super().take_outcomes()
        return outcomes * 2


class LeavesRowsIdle(Scheduler):
    def _pick(self, now):
        rows = tuple(super()._pick(now))
        return (row for row in rows if row.job is rows[0].job)


class RunsAMemberTwice(Scheduler):
    def _pick(self, now):
        rows = tuple(super()._pick(now))
        return (rows[0], *rows[:-1]) if rows else ()


class StartsWithTheLastMember(Scheduler):
    def _rows(self, kind, now):
        return iter(tuple(super()._rows(kind, now))[::-1])


class ServesTheLatestDeadline(Scheduler):
    def _urgency(self, job):
        return (False, -due_s(job, self._patience_s), job.arrival)


class HasNoPatience(Scheduler):
    def _urgency(self, job):
        return (False, math.inf if job.deadline_s is None else job.deadline_s, job.arrival)


class KeepsOldOfStream(Scheduler):
    def _same_stream(self, job):
        return []


class ForgetsWholeMembers(Scheduler):
    def settle(self, batch, results, now):
        return super().settle(batch, results, now)[:1]


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (IgnoresDeadlines, "after its deadline"),
        (ReservesTooMuch, "expired without a reason"),
        (NeverGivesUp, "hopeless"),
        (GivesUpTooEarly, "expired without a reason"),
        (GivesUpWhatCouldDegrade, "expired without a reason"),
        (IgnoresCancels, "after it was cancelled"),
        (LosesOutcomes, "no outcome|more than its newest"),
        (RepeatsOutcomes, "does not live"),
        (LeavesRowsIdle, "left idle"),
        (RunsAMemberTwice, "twice at once"),
        (StartsWithTheLastMember, "overtakes|goes first"),
        (ServesTheLatestDeadline, "goes first"),
        (KeepsOldOfStream, "more than its newest"),
        (ForgetsWholeMembers, "not told"),
    ],
)
def test_random_traces_catch_a_scheduler_that(kind, what):
    with pytest.raises(AssertionError, match=what):
        deque((play_trace(seed, kind) for seed in range(200)), maxlen=0)


def test_the_long_load_catches_a_scheduler_that_starves_bulk_work():
    with pytest.raises(AssertionError, match="starves"):
        play_load(StarvesBulk, BULK, share=BULK_SHARE)


def test_the_long_load_catches_a_scheduler_without_patience():
    with pytest.raises(AssertionError, match="starves"):
        play_load(HasNoPatience, ENDLESS, share=1 - BULK_SHARE)


def test_the_share_check_catches_a_class_that_hoards_credit():
    one_lane = Ask(0.0, steps=200)
    bulk = [Ask(0.0, size=400, priority=Priority.BULK), Ask(5.0, size=600, priority=Priority.BULK)]
    burst = Ask(5.0, size=600)
    asks = [one_lane, *bulk, burst]
    with pytest.raises(AssertionError, match="its share"):
        Simulation(build_scheduler(HoardsCredit, max_pending_s=1e9), asks).run()
    Simulation(build_scheduler(max_pending_s=1e9), asks).run()
