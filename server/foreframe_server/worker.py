"""The one thread that owns the device. Its life is turns: schedule, step and settle, or decode what became whole.

It knows engines, jobs and clocks, and nothing of caches or wires. Jobs come in through the scheduler, which one lock
guards and which is never held during an engine call; members go back to the event loop that asked as they are done.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

import numpy as np
import structlog
from jaxtyping import UInt8

from foreframe_engines import OnDeadline, Query, RolloutEngine
from foreframe_engines.schedule import get_schedule, num_steps
from foreframe_engines.selftest import measure_determinism, weaker
from foreframe_engines.types import Latents, StepState
from foreframe_server.calls import Call, Timings
from foreframe_server.decodings import Decoding, Decodings
from foreframe_server.device import DeviceThread
from foreframe_server.errors import ModelFault, NotReady
from foreframe_server.jobs import Ending, Job, Outcome, Row, StepBatch, affordable_steps, is_bulk
from foreframe_server.metrics import Metrics
from foreframe_server.scheduler import Scheduler
from foreframe_server.stages import JobStages
from foreframe_server.tickets import Listener, Ticket, WorkerResult, answer, ending_error, post, reject

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Ended:
    ticket: Ticket
    outcome: Outcome


class EngineWorker(DeviceThread):
    """Runs jobs on one engine in one thread.

    `start`, then `warm_up`, then any number of `submit`, then `stop`, which drains, joins and closes the engine.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        scheduler: Scheduler,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_context_bytes: int = 64 * 2**20,
    ) -> None:
        super().__init__(metrics, clock)
        self._engine = engine
        self._scheduler = scheduler
        self._cost = scheduler.cost
        self._stages = JobStages(engine, self._cost, clock, max_context_bytes=max_context_bytes)
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
        return self._is_warm and not self._is_draining and super().is_ready

    @property
    def num_jobs(self) -> int:
        """How many admitted jobs have not ended."""
        return len(self._tickets)

    async def warm_up(self) -> None:
        """Run every stage, and a step of every bucket, once; from then on the worker is ready.

        Called again it learns anew what the engine's work takes. Sets `determinism` from what equal rows gave in
        changing company. Raises what the engine raises.
        """
        seconds = await self.run(self._measure_costs)
        with self.wake:
            self._cost.fit(seconds)
        self.determinism = weaker(self._engine.determinism, await self.run(self._measure_determinism))
        self._is_warm = True

    async def submit(self, query: Query, call: Call) -> WorkerResult:
        """Compute a query's members; the job is dropped when the waiting task is cancelled.

        Raises what `admit` raises, DeadlineExceeded, Superseded or ModelFault.
        """
        return await self.wait(self.admit(query, call))

    def admit(self, query: Query, call: Call, *, first_member: int = 0, listener: Listener | None = None) -> Ticket:
        """Put a query into the queue, to be waited for with `wait`; members before `first_member` are not computed.

        Raises NotReady, Overloaded, TooExpensive, DeadlineUnmeetable or LoadedDeadline at once.
        """
        if not self.is_ready:
            raise NotReady("The server is starting or stopping.", retry_after_ms=1000)
        job = self._new_job(query, call, first_member)
        ticket = Ticket(job, asyncio.get_running_loop().create_future(), self.clock(), listener)
        with self.wake:
            self._scheduler.add(job, self.clock())
            self._tickets[job.id] = ticket
            ended = self._take_ended()
            self.wake.notify()
        self._deliver(ended)
        return ticket

    async def wait(self, ticket: Ticket) -> WorkerResult:
        """Wait for a job's result; cancelling the wait cancels the job at the next step border."""
        try:
            return await ticket.future
        except asyncio.CancelledError:
            self._end([ticket], Ending.CANCELLED)
            raise

    def extend(self, ticket: Ticket, deadline_s: float | None, on_deadline: OnDeadline) -> None:
        """Let a job live for a second caller: until the later deadline, ending in the milder way."""
        with self.wake:
            self._scheduler.extend(ticket.job.id, deadline_s, on_deadline)

    def grow(self, ticket: Ticket, size: int) -> bool:
        """Ask for more members of a job; False when it has ended."""
        with self.wake:
            return self._scheduler.grow(ticket.job.id, size)

    def timings(self, ticket: Ticket) -> Timings:
        """Return how long a job's stages have taken so far."""
        batch_rows = ticket.batch_rows or [0]
        denoise_ms = 1000 * (self.clock() - ticket.prepared_s) if ticket.prepared_s else 0.0
        return replace(
            ticket.timings,
            denoise=max(0.0, denoise_ms - ticket.timings.latent_decode),
            step_batch_mean=sum(batch_rows) / len(batch_rows),
        )

    async def estimate(self, ticket: Ticket) -> WorkerResult | None:
        """Decode where a job's first member is heading, at the next step border; None before its first step."""
        return await self.run(partial(self._estimate_or_fault, ticket))

    async def encode(self, context: UInt8[np.ndarray, "t h w 3"]) -> Latents:
        """Encode context frames (RGB 0..255), or find them encoded. Raises NotReady or ModelFault."""
        if not self.is_ready:
            raise NotReady("The server is starting or stopping.", retry_after_ms=1000)
        return await self.run(partial(self._encode_or_fault, context))

    async def stop(self, drain_s: float) -> None:
        """Take no more jobs, give the admitted ones so long, fail the rest, join the thread, close the engine."""
        self._is_draining = True
        waiting = [ticket.future for ticket in self._tickets.values()]
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

    def _new_job(self, query: Query, call: Call, first_member: int) -> Job:
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
                answer(each.ticket.future, partial(self._finish_or_fault, each.ticket))

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
            self.metrics.observe_queue(self._scheduler.pending_s, self._cost.error_ratio)
            ended = self._take_ended()
        self._deliver(ended)
        return batch

    def _prepare(self, batch: StepBatch) -> None:
        for job in batch.jobs:
            ticket = self._tickets.get(job.id)
            if ticket is not None and job.conditioning is None:
                self._condition(ticket)
        for row in batch.rows:
            if row.member.latents is None and row.job.conditioning is not None:
                row.member.latents = self._stages.draw(row.job, row.member.index)

    def _condition(self, ticket: Ticket) -> None:
        ticket.timings.queue = 1000 * (self.clock() - ticket.admitted_s)
        try:
            self._stages.condition(ticket.job, ticket.timings)
        except Exception as error:  # noqa: BLE001 - an engine may raise anything, and only this job may fail
            self._fault(ticket.job, error)
        ticket.prepared_s = self.clock()
        self._shorten(ticket.job)

    def _shorten(self, job: Job) -> None:
        """Take fewer steps where a whole member would not be ready in time: one step is the posterior mean."""
        if job.deadline_s is None or job.on_deadline is not OnDeadline.DEGRADE or job.first_member > 0:
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
        try:
            results = self._forward(batch.rows)
        except Exception as error:  # noqa: BLE001 - as in `_condition`
            self._step_apart(batch, error)
        else:
            self._settle(batch, results)

    def _step_apart(self, batch: StepBatch, error: Exception) -> None:
        # One job's numbers may break a forward for all its neighbours: each runs alone before it is blamed.
        if len(batch.jobs) == 1:
            self._fault(batch.jobs[0], error)
            return
        for job in batch.jobs:
            alone = StepBatch(tuple(row for row in batch.rows if row.job is job), batch.started_s)
            confirmed = self._confirm(alone)
            if confirmed is not None:
                self._step(confirmed)

    def _forward(self, rows: Sequence[Row]) -> list[StepState]:
        self.metrics.observe_batch(len(rows))
        results = self._engine.step([row.step_row() for row in rows])
        if len(results) != len(rows):
            raise RuntimeError(f"the engine returned {len(results)} latents for {len(rows)} rows")
        return results

    def _settle(self, batch: StepBatch, results: Sequence[StepState]) -> None:
        tickets = {job.id: self._tickets[job.id] for job in batch.jobs if job.id in self._tickets}
        for ticket in tickets.values():
            ticket.batch_rows.append(len(batch.rows))
        with self.wake:
            whole = self._scheduler.settle(batch, results, self.clock())
            ended = self._take_ended()
        unanswered = {each.ticket.job.id for each in ended if not each.outcome.has_answer}
        for job_id, ticket in tickets.items():
            members = [row.member for row in whole if row.job.id == job_id]
            if members and job_id not in unanswered:
                self._decodings.put(ticket, members, self._turn_members(ticket.job))
            elif any(row.member is ticket.job.members[0] for row in batch.rows):
                self._post_estimate(ticket)
        self._deliver(ended)

    def _turn_members(self, job: Job) -> int:
        """Return how many members to decode before others have a turn: what a forward would take as long as."""
        return max(1, int(self._cost.step_s(self._cost.max_rows) / job.decode_s)) if job.decode_s > 0 else 1

    def _decode(self, decoding: Decoding) -> None:
        ticket = decoding.ticket
        if not ticket.future.done():
            try:
                self._decode_members(decoding)
            except Exception as error:  # noqa: BLE001 - as in `_condition`
                self._decodings.drop(ticket)
                # Whatever the job's end brings later finds a future that is done.
                reject(ticket.future, ending_error(Ending.FAULTED))
                self._fault(ticket.job, error)
        if ticket.job.id in self._undecoded and not self._decodings.holds(ticket):
            ended = self._undecoded.pop(ticket.job.id)
            answer(ticket.future, partial(self._finish_or_fault, ended.ticket))

    def _decode_members(self, decoding: Decoding) -> None:
        ticket = decoding.ticket
        latents = [member.latents for member in decoding.members if member.latents is not None]
        ticket.members += list(self._stages.decode(ticket.job, latents, ticket.timings))
        # Told together, because half an antithetic pair is a worse mean than none of it.
        if ticket.listener is not None and not self._decodings.holds(ticket):
            news = ticket.members[ticket.num_told :]
            ticket.num_told = len(ticket.members)
            post(ticket.future, partial(ticket.listener.on_members, news))

    def _post_estimate(self, ticket: Ticket) -> None:
        """Tell who listens what the very first step says of the mean."""
        job, listener = ticket.job, ticket.listener
        if listener is None or not listener.wants_estimate or job.first_member > 0 or job.members[0].step != 1:
            return
        with contextlib.suppress(ModelFault):  # the job itself will tell
            estimate = self._estimate_or_fault(ticket)
            if estimate is not None:
                post(ticket.future, partial(listener.on_estimate, estimate.members[0]))

    def _fault(self, job: Job, error: Exception) -> None:
        _log.error("worker.engine_failed", job=job.id, exc_info=error)
        ticket = self._tickets.get(job.id)
        if ticket is not None:
            self._end([ticket], Ending.FAULTED)

    def _encode_or_fault(self, context: UInt8[np.ndarray, "t h w 3"]) -> Latents:
        try:
            return self._stages.encode(context)
        except Exception as error:
            _log.exception("worker.engine_failed")
            raise ending_error(Ending.FAULTED) from error

    def _finish_or_fault(self, ticket: Ticket) -> WorkerResult:
        if ticket.members or ticket.job.first_member > 0:
            return self._result(ticket)
        estimate = self._estimate_or_fault(ticket)
        if estimate is None:
            raise RuntimeError("a job without a step was said to have an answer")
        return estimate

    def _estimate_or_fault(self, ticket: Ticket) -> WorkerResult | None:
        member = ticket.job.members[0]
        if member.step == 0:
            return None
        try:
            latents = self._stages.denoise(ticket.job, member)
            frames = self._stages.decode(ticket.job, [latents], ticket.timings)
        except Exception as error:
            _log.exception("worker.engine_failed", job=ticket.job.id)
            raise ending_error(Ending.FAULTED) from error
        return replace(
            self._result(ticket), members=(frames[0],), latents=(latents,), steps=member.step, is_estimate=True
        )

    def _result(self, ticket: Ticket) -> WorkerResult:
        timings = self.timings(ticket)
        latents = tuple(member.latents for member in ticket.job.whole_members if member.latents is not None)
        return WorkerResult(tuple(ticket.members), latents, timings, ticket.job.num_steps)
