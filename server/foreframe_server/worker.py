"""The one thread that owns the device. Its life is turns: schedule, step and settle, or decode what became whole.

It knows engines, jobs and clocks, and nothing of caches or wires. Jobs come in through the scheduler, which one lock
guards and which is never held during an engine call; members go back to the event loop that asked as they are done.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np
import structlog
from jaxtyping import UInt8

from foreframe_engines import EngineLost, OnDeadline, Query, RolloutEngine
from foreframe_engines.schedule import get_schedule, num_steps
from foreframe_engines.selftest import measure_determinism, weaker
from foreframe_engines.types import Latents, StepState
from foreframe_server.calls import Call, Timings
from foreframe_server.cost_model import SlowQuantile
from foreframe_server.decodings import Decoding, Decodings
from foreframe_server.device import DeviceThread
from foreframe_server.errors import not_ready
from foreframe_server.finishing import Finisher
from foreframe_server.jobs import WHOLE, Ending, Job, Member, Outcome, Share, StepBatch, affordable_steps, is_bulk
from foreframe_server.metrics import Metrics
from foreframe_server.quarantine import Quarantine
from foreframe_server.rescue import Rescue, patiently, refusal
from foreframe_server.scheduler import Scheduler
from foreframe_server.stages import JobStages
from foreframe_server.tickets import (
    Admitted,
    Listener,
    Ticket,
    WorkerResult,
    answer,
    ending_error,
    ending_of,
    own,
    reject,
)

_log = structlog.get_logger(__name__)


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True, eq=False)
class _Ended:
    ticket: Ticket
    outcome: Outcome


class EngineWorker(DeviceThread):
    """Runs jobs on one engine in one thread.

    `start`, then `warm_up`, then any number of `submit`, then `stop`, which drains, joins and closes the engine.
    quarantine: what engines died of, shared by those who may run the same requests. is_engine_up: whether the engine
    can be expected to answer.
    """

    def __init__(  # noqa: PLR0913 - the parts it joins, each once
        self,
        engine: RolloutEngine,
        scheduler: Scheduler,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        *,
        quarantine: Quarantine | None = None,
        is_engine_up: Callable[[], bool] = _always,
        max_context_bytes: int = 64 * 2**20,
    ) -> None:
        super().__init__(metrics, clock)
        self._engine = engine
        self._scheduler = scheduler
        self._cost = scheduler.cost
        rescue = Rescue(metrics, quarantine, clock)
        self._stages = JobStages(engine, self._cost, rescue, clock, max_context_bytes=max_context_bytes)
        self._finisher = Finisher(self._stages, rescue, clock)
        self._is_engine_up = is_engine_up
        self._tickets: dict[str, Ticket] = {}
        self._decodings = Decodings()
        self._undecoded: dict[str, _Ended] = {}
        self._job_ids = count()
        self.determinism = engine.determinism
        self._is_warm = False
        self._is_draining = False

    @property
    def is_ready(self) -> bool:
        """Whether jobs are taken: warm, alive and not draining."""
        return self._is_warm and not self._is_draining and super().is_ready and self._is_engine_up()

    @property
    def num_jobs(self) -> int:
        """How many admitted jobs have not ended."""
        return len(self._tickets)

    def known_costs(self) -> Iterator[tuple[str, int, SlowQuantile]]:
        """Tell each kind of work, with its rows, and what it takes, as `CostModel.known` does."""
        return self._cost.known()

    @property
    def pending_s(self) -> float:
        """Predicted seconds of the work that waits."""
        with self.wake:
            return self._scheduler.pending_s

    def predict_wave_s(self, query: Query) -> float:
        """Predict the seconds from encoding to the first members of a query that a full forward makes whole."""
        return self._cost.wave_s(query.ensemble.size, num_steps(query.sampling), len(query.frame_indices))

    async def warm_up(self) -> None:
        """Run every stage, and a step of every bucket, once; from then on the worker is ready.

        Called again it learns anew what the engine's work takes. Sets `determinism` from what equal rows gave in
        changing company. Raises what the engine raises.
        """
        seconds = await self.run(partial(patiently, self._measure_costs))
        with self.wake:
            self._cost.fit(seconds, num_lanes=self._engine.num_lanes)
        self.determinism = weaker(
            self._engine.determinism, await self.run(partial(patiently, self._measure_determinism))
        )
        self._is_warm = True

    async def submit(self, query: Query, call: Call) -> WorkerResult:
        """Compute a query's members; the job is dropped when the waiting task is cancelled.

        Raises what `admit` raises, DeadlineExceeded, Superseded or ModelFault.
        """
        return await self.wait(self.admit(query, call))

    def admit(
        self,
        query: Query,
        call: Call,
        *,
        first_member: int = 0,
        listener: Listener | None = None,
        share: Share = WHOLE,
    ) -> Ticket:
        """Put a query into the queue, to be waited for with `wait`; members before `first_member` are not computed.

        share: which of the others are, where other workers compute the rest.
        Raises NotReady, Overloaded, TooExpensive, DeadlineUnmeetable or LoadedDeadline at once.
        """
        if not self.is_ready:
            raise not_ready()
        job = self._new_job(query, call, first_member, share)
        ticket = Ticket(job, asyncio.get_running_loop().create_future(), self.clock(), listener)
        with self.wake:
            self._scheduler.add(job, self.clock())
            self._tickets[job.id] = ticket
            ended = self._take_ended()
            self.wake.notify()
        self._deliver(ended)
        return ticket

    async def wait(self, ticket: Admitted) -> WorkerResult:
        """Wait for a job's result; cancelling the wait cancels the job at the next step border."""
        mine = own(ticket)
        try:
            return await mine.future
        except asyncio.CancelledError:
            self.end(mine, Ending.CANCELLED)
            raise

    def end(self, ticket: Admitted, ending: Ending) -> None:
        """End a job at the next step border; one that has ended stays as it is."""
        self._end([own(ticket)], ending)

    def extend(self, ticket: Admitted, deadline_s: float | None, on_deadline: OnDeadline) -> None:
        """Let a job live for a second caller: until the later deadline, ending in the milder way."""
        with self.wake:
            self._scheduler.extend(own(ticket).job.id, deadline_s, on_deadline)

    def grow(self, ticket: Admitted, size: int) -> bool:
        """Ask for more members of a job; False when it has ended."""
        with self.wake:
            return self._scheduler.grow(own(ticket).job.id, size)

    def timings(self, ticket: Admitted) -> Timings:
        """Return how long a job's stages have taken so far."""
        return own(ticket).timings_at(self.clock())

    async def estimate(self, ticket: Admitted) -> WorkerResult | None:
        """Decode where a job's first member is heading, at the next step border; None before its first step."""
        return await self.run(partial(self._finisher.estimate, own(ticket)))

    async def encode(self, context: UInt8[np.ndarray, "t h w 3"], call: Call | None = None) -> Latents:
        """Encode context frames (RGB 0..255), or find them encoded, until a call's deadline if the engine is lost.

        Raises NotReady, DeadlineExceeded, WorkerCrashed or ModelFault.
        """
        if not self.is_ready:
            raise not_ready()
        return await self.run(partial(self._encode_or_fault, context, call))

    async def stop(self, drain_s: float) -> None:
        """Take no more jobs, give the admitted ones so long, fail the rest, join the thread, close the engine."""
        self._is_draining = True
        waiting = [ticket.future for ticket in list(self._tickets.values())]  # the device's thread takes some out
        if waiting:
            await asyncio.wait(waiting, timeout=drain_s)
        self._end(list(self._tickets.values()), Ending.CANCELLED)
        await self.join()

    def _measure_costs(self) -> dict[int, float]:
        self._cost.forget()
        return self._stages.run_all()

    def _measure_determinism(self) -> str:
        buckets = [bucket for bucket in self._engine.contract.buckets if bucket <= self._cost.max_rows]
        return measure_determinism(self._engine, buckets)

    def _new_job(self, query: Query, call: Call, first_member: int, share: Share) -> Job:
        return Job(
            id=str(next(self._job_ids)),
            query=query,
            times=self._times(num_steps(query.sampling)),
            deadline_s=call.deadline_s,
            on_deadline=call.on_deadline,
            received_s=call.received_s,
            first_member=first_member,
            decode_s=self._cost.decode_s(len(query.frame_indices)),
            key=call.key,
            share=share,
            deaths=call.deaths,
            context_digest=call.context_digest,
        )

    def _times(self, steps: int) -> tuple[float, ...]:
        return get_schedule(steps, self._engine.contract.sampler.shift)

    def _end(self, tickets: Sequence[Ticket], ending: Ending) -> None:
        with self.wake:
            for ticket in tickets:
                self._scheduler.cancel(ticket.job.id, ending)
            ended = self._take_ended()
        self._deliver(ended)

    def _take_ended(self) -> list[_Ended]:
        # Under the lock that ended the jobs, so that the event loop never takes over a job that is still to be decoded.
        return [_Ended(self._tickets.pop(outcome.job.id), outcome) for outcome in self._scheduler.take_outcomes()]

    def _deliver(self, ended: Sequence[_Ended]) -> None:
        for each in ended:
            self._count_ending(each.outcome)
            if not each.outcome.has_answer:
                reject(each.ticket.future, ending_error(each.outcome.ending))
            elif self._decodings.holds(each.ticket):
                self._undecoded[each.outcome.job.id] = each
            else:
                answer(each.ticket.future, partial(self._finisher.finish, each.ticket))

    def _count_ending(self, outcome: Outcome) -> None:
        if outcome.ending is Ending.SUPERSEDED:
            self.metrics.count_superseded()
        elif outcome.ending is Ending.CANCELLED:
            self.metrics.count_cancelled("queue" if outcome.job.conditioning is None else "denoise")

    def has_work(self) -> bool:
        """Whether anything waits to be stepped or decoded."""
        return bool(self._decodings) or self._scheduler.has_work

    def turn(self) -> None:
        """Decode a few members, or step those that are next."""
        batch = self._schedule()
        has_controllers = batch is not None and not all(is_bulk(job) for job in batch.jobs)
        decoding = self._decodings.take(is_controller_waiting=has_controllers)
        if decoding is not None:
            self._decode(decoding)
        elif batch is not None:
            self._prepare(batch)
            confirmed = self._confirm(batch)
            if confirmed is not None:
                self._step(confirmed)

    def fault(self) -> None:
        """Fail every job."""
        for each in self._undecoded.values():
            reject(each.ticket.future, ending_error(Ending.FAULTED))
        self._undecoded.clear()
        self._end(list(self._tickets.values()), Ending.FAULTED)

    def finish(self) -> None:
        """Decode what is whole, and close the engine."""
        while decoding := self._decodings.take(is_controller_waiting=False):
            self._decode(decoding)
        self._engine.close()

    def _schedule(self) -> StepBatch | None:
        with self.wake:
            batch = self._scheduler.schedule(self.clock())
            self.metrics.observe_queue(self._scheduler.pending_s, self._cost.error_ratio, id(self))
            ended = self._take_ended()
        self._deliver(ended)
        return batch

    def _prepare(self, batch: StepBatch) -> None:
        for job in batch.jobs:
            ticket = self._tickets.get(job.id)
            if ticket is not None and job.conditioning is None:
                self._condition(ticket)
            if job.conditioning is not None:
                self._draw(job, [row.member for row in batch.rows if row.job is job and row.member.latents is None])

    def _draw(self, job: Job, members: Sequence[Member]) -> None:
        try:
            self._stages.draw(job, members)
        except Exception as error:  # noqa: BLE001 - as in `_condition`
            self._fault(job, error)

    def _condition(self, ticket: Ticket) -> None:
        ticket.timings.queue = 1000 * (self.clock() - ticket.admitted_s)
        try:
            self._stages.condition(ticket.job, ticket.timings)
        except Exception as error:  # noqa: BLE001 - an engine may raise anything, and only this job may fail
            self._fault(ticket.job, error)
            return
        ticket.prepared_s = self.clock()
        self._shorten(ticket.job)

    def _shorten(self, job: Job) -> None:
        """Take fewer steps where a whole member would not be ready in time: one step is the posterior mean."""
        if job.deadline_s is None or job.on_deadline is not OnDeadline.DEGRADE or job.is_top_up:
            return
        with self.wake:
            decode_s = job.decode_s * min(self._cost.max_rows, len(job.members))
            left_s = job.deadline_s - self.clock() - decode_s - self._scheduler.ahead_s(job)
            steps = affordable_steps(left_s, self._cost.step_s(self._cost.max_rows), job.num_steps)
            if steps < job.num_steps:
                job.shorten(self._times(steps))

    def _confirm(self, batch: StepBatch) -> StepBatch | None:
        with self.wake:
            confirmed = self._scheduler.confirm(batch, self.clock())
            ended = self._take_ended()
        self._deliver(ended)
        return confirmed

    def _step(self, batch: StepBatch) -> None:
        self.metrics.observe_batch(len(batch.rows))
        try:
            results = self._stages.step(batch)
        except EngineLost:
            self._step_apart(batch)
        except Exception as error:  # noqa: BLE001 - as in `_condition`
            # One job's numbers may break a forward for all its neighbours: each runs alone before it is blamed.
            if len(batch.jobs) == 1:
                self._fault(batch.jobs[0], error)
            else:
                self._step_apart(batch)
        else:
            self._settle(batch, results)

    def _step_apart(self, batch: StepBatch) -> None:
        for job in batch.jobs:
            alone = StepBatch(tuple(row for row in batch.rows if row.job is job), batch.started_s)
            confirmed = self._confirm(alone)
            if confirmed is not None:
                self._step(confirmed)

    def _settle(self, batch: StepBatch, results: Sequence[StepState]) -> None:
        tickets = {job.id: ticket for job in batch.jobs if (ticket := self._tickets.get(job.id)) is not None}
        for ticket in tickets.values():
            ticket.batch_rows.append(len(batch.rows))
        with self.wake:
            whole = self._scheduler.settle(batch, results, self.clock())
            is_roomy = self._scheduler.is_roomy
            ended = self._take_ended()
        unanswered = {each.ticket.job.id for each in ended if not each.outcome.has_answer}
        for job_id, ticket in tickets.items():
            members = [row.member for row in whole if row.job.id == job_id]
            if members and job_id not in unanswered:
                frames = len(ticket.job.query.frame_indices)
                self._decodings.put(ticket, members, self._cost.turn_members(frames, is_roomy=is_roomy))
            elif any(row.member is ticket.job.members[0] for row in batch.rows):
                self._finisher.tell_estimate(ticket)
        self._deliver(ended)

    def _decode(self, decoding: Decoding) -> None:
        ticket = decoding.ticket
        if not ticket.future.done():
            try:
                self._finisher.decode(ticket, decoding.members, is_more_coming=self._decodings.holds(ticket))
            except Exception as error:  # noqa: BLE001 - as in `_condition`
                self._decodings.drop(ticket)
                # Whatever the job's end brings later finds a future that is done.
                reject(ticket.future, refusal(error))
                self._fault(ticket.job, error)
        if ticket.job.id in self._undecoded and not self._decodings.holds(ticket):
            ended = self._undecoded.pop(ticket.job.id)
            answer(ticket.future, partial(self._finisher.finish, ended.ticket))

    def _fault(self, job: Job, error: Exception) -> None:
        _log.error("worker.engine_failed", job=job.id, exc_info=error)
        ticket = self._tickets.get(job.id)
        if ticket is not None:
            self._end([ticket], ending_of(error))

    def _encode_or_fault(self, context: UInt8[np.ndarray, "t h w 3"], call: Call | None) -> Latents:
        try:
            if call is None:
                return self._stages.encode(context)
            return self._stages.encode(context, call.deaths, call.deadline_s)
        except Exception as error:
            _log.exception("worker.engine_failed")
            raise refusal(error) from error
