"""The one thread that owns the device. Its whole life is schedule, step, settle.

It knows engines, jobs and clocks, and nothing of caches or wires. Jobs come in through the scheduler, which one lock
guards and which is never held during an engine call; results go back to the event loop that asked.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import TypeVar

import numpy as np
import structlog
from jaxtyping import UInt8

from foreframe_engines import OnDeadline, Prediction, Query, RolloutEngine
from foreframe_engines.schedule import get_schedule, num_steps
from foreframe_engines.types import Latents
from foreframe_server.calls import Call, Degraded, Timings
from foreframe_server.errors import DeadlineExceeded, ModelFault, NotReady, ServiceError, Superseded
from foreframe_server.metrics import Metrics
from foreframe_server.scheduler import Ending, Job, Outcome, Row, Scheduler, StepBatch
from foreframe_server.stages import JobStages

_IDLE_TURN_S = 1.0
_MAX_DECODE_SHARE = 0.25

_log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class WorkerResult:
    """What the device made of a query; timings are of `queue` to `reduce`, latents those of each whole member."""

    prediction: Prediction
    timings: Timings
    degraded: Degraded | None
    latents: tuple[Latents, ...]


@dataclass(slots=True, eq=False)
class Ticket:
    """A job that was admitted, and the future that its caller waits on."""

    job: Job
    future: asyncio.Future[WorkerResult]
    admitted_s: float
    prepared_s: float = 0.0
    timings: Timings = field(default_factory=Timings)
    batch_rows: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class _Ended:
    ticket: Ticket
    outcome: Outcome


class EngineWorker:
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
        self._engine = engine
        self._scheduler = scheduler
        self._metrics = metrics
        self._clock = clock
        self._stages = JobStages(engine, clock, max_context_bytes=max_context_bytes)
        self._tickets: dict[str, Ticket] = {}
        self._commands: deque[Callable[[], None]] = deque()
        self._job_ids = count()
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="foreframe-device", daemon=True)
        self._is_warm = False
        self._is_draining = False
        self._is_stopped = False

    @property
    def is_ready(self) -> bool:
        """Whether jobs are taken: warm, alive and not draining."""
        return self._is_warm and not self._is_draining and self._thread.is_alive()

    @property
    def num_jobs(self) -> int:
        """How many admitted jobs have not ended."""
        return len(self._tickets)

    def start(self) -> None:
        """Start the thread that owns the device."""
        self._thread.start()

    async def warm_up(self) -> None:
        """Run every stage, and a step of every bucket, once; from then on the worker is ready.

        Raises what the engine raises.
        """
        step_s = await self.run(self._stages.run_all)
        with self._wake:
            self._scheduler.record_step(step_s)
        self._is_warm = True

    async def submit(self, query: Query, call: Call) -> WorkerResult:
        """Compute a prediction; the job is dropped when the waiting task is cancelled.

        Raises NotReady, Overloaded, TooExpensive, DeadlineExceeded, Superseded or ModelFault.
        """
        return await self.wait(self.admit(query, call))

    def admit(self, query: Query, call: Call) -> Ticket:
        """Put a query into the queue, to be waited for with `wait`.

        Raises NotReady, Overloaded or TooExpensive at once.
        """
        if not self.is_ready:
            raise NotReady("The server is starting or stopping.", retry_after_ms=1000)
        job = self._new_job(query, call)
        ticket = Ticket(job, asyncio.get_running_loop().create_future(), self._clock())
        with self._wake:
            self._scheduler.add(job)
            self._tickets[job.id] = ticket
            ended = self._take_ended()
            self._wake.notify()
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
        with self._wake:
            self._scheduler.extend(ticket.job.id, deadline_s, on_deadline)

    async def snapshot(self, ticket: Ticket) -> WorkerResult | None:
        """Take what a job has at the next step border, and let it go on; None while no member is whole."""
        return await self.run(partial(self._snapshot, ticket))

    async def run(self, action: Callable[[], T]) -> T:
        """Run an action on the device's thread at the next step border, and return or raise what it does.

        Raises NotReady when the thread has not been started or has stopped.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        with self._wake:
            if self._is_stopped or not self._thread.is_alive():
                raise NotReady("The worker is not running.", retry_after_ms=1000)
            self._commands.append(partial(_answer, future, action))
            self._wake.notify()
        return await future

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
        with self._wake:
            self._is_stopped = True
            self._wake.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def _new_job(self, query: Query, call: Call) -> Job:
        times = get_schedule(num_steps(query.sampling), self._engine.contract.sampler.shift)
        job = Job(str(next(self._job_ids)), query, times, call.deadline_s, call.on_deadline, call.received_s)
        if call.deadline_s is not None:
            # A share of the budget at most, or one slow decode would refuse every later job without a try.
            budget_s = max(0.0, call.deadline_s - self._clock())
            job.member_decode_s = min(self._stages.member_decode_s, _MAX_DECODE_SHARE * budget_s)
        return job

    def _end(self, tickets: Sequence[Ticket], ending: Ending) -> None:
        with self._wake:
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
            if each.outcome.members:
                _answer(each.ticket.future, partial(self._finish_or_fault, each.ticket))
            else:
                _reject(each.ticket.future, _ending_error(each.outcome.ending))

    def _count_ending(self, outcome: Outcome) -> None:
        if outcome.ending is Ending.SUPERSEDED:
            self._metrics.count_superseded()
        elif outcome.ending is Ending.CANCELLED:
            self._metrics.count_cancelled("queue" if outcome.job.conditioning is None else "denoise")

    def _serve(self) -> None:
        while self._wait_for_work():
            started_s = self._clock()
            try:
                self._turn()
            except Exception:  # noqa: BLE001 - the border of the worker: it logs, answers and lives on
                _log.exception("worker.turn_failed")
                self._end(list(self._tickets.values()), Ending.FAULTED)
            self._metrics.observe_device(self._clock() - started_s, is_busy=True)
        self._run_commands()
        self._engine.close()

    def _wait_for_work(self) -> bool:
        with self._wake:
            while not (self._is_stopped or self._commands or self._scheduler.has_work):
                started_s = self._clock()
                self._wake.wait(_IDLE_TURN_S)
                self._metrics.observe_device(self._clock() - started_s, is_busy=False)
            return not self._is_stopped

    def _turn(self) -> None:
        self._run_commands()
        batch = self._schedule()
        if batch is None:
            return
        self._prepare(batch)
        confirmed = self._confirm(batch)
        if confirmed is not None:
            self._step(confirmed)

    def _run_commands(self) -> None:
        # Only those that wait now: whoever asks again at once must not keep steps from running.
        for _ in range(len(self._commands)):
            self._commands.popleft()()

    def _schedule(self) -> StepBatch | None:
        with self._wake:
            batch = self._scheduler.schedule(self._clock())
            self._metrics.observe_queue(self._scheduler.pending_s)
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
        ticket.timings.queue = 1000 * (self._clock() - ticket.admitted_s)
        try:
            self._stages.condition(ticket.job, ticket.timings)
        except Exception as error:  # noqa: BLE001 - an engine may raise anything, and only this job may fail
            self._fault(ticket.job, error)
        ticket.prepared_s = self._clock()

    def _confirm(self, batch: StepBatch) -> StepBatch | None:
        with self._wake:
            confirmed = self._scheduler.confirm(batch, self._clock())
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

    def _forward(self, rows: Sequence[Row]) -> list[Latents]:
        self._metrics.observe_batch(len(rows))
        results = self._engine.step([row.step_row() for row in rows])
        if len(results) != len(rows):
            raise RuntimeError(f"the engine returned {len(results)} latents for {len(rows)} rows")
        return results

    def _settle(self, batch: StepBatch, results: Sequence[Latents]) -> None:
        for job in batch.jobs:
            ticket = self._tickets.get(job.id)
            if ticket is not None:
                ticket.batch_rows.append(len(batch.rows))
        with self._wake:
            self._scheduler.settle(batch, results, self._clock())
            ended = self._take_ended()
        self._deliver(ended)

    def _fault(self, job: Job, error: Exception) -> None:
        _log.error("worker.engine_failed", job=job.id, exc_info=error)
        ticket = self._tickets.get(job.id)
        if ticket is not None:
            self._end([ticket], Ending.FAULTED)

    def _snapshot(self, ticket: Ticket) -> WorkerResult | None:
        return self._finish_or_fault(ticket) if ticket.job.finished_members else None

    def _encode_or_fault(self, context: UInt8[np.ndarray, "t h w 3"]) -> Latents:
        try:
            return self._stages.encode(context)
        except Exception as error:
            _log.exception("worker.engine_failed")
            raise _ending_error(Ending.FAULTED) from error

    def _finish_or_fault(self, ticket: Ticket) -> WorkerResult:
        try:
            return self._finish(ticket)
        except Exception as error:
            _log.exception("worker.engine_failed", job=ticket.job.id)
            raise _ending_error(Ending.FAULTED) from error

    def _finish(self, ticket: Ticket) -> WorkerResult:
        timings = replace(
            ticket.timings,
            denoise=1000 * (self._clock() - ticket.prepared_s),
            step_batch_mean=sum(ticket.batch_rows) / len(ticket.batch_rows),
        )
        prediction = self._stages.finish(ticket.job, timings)
        return WorkerResult(prediction, timings, _degraded(prediction), ticket.job.finished_latents)


def _degraded(prediction: Prediction) -> Degraded | None:
    if prediction.num_members == prediction.ensemble.size:
        return None
    return Degraded(prediction.num_members, num_steps(prediction.sampling), "deadline")


def _ending_error(ending: Ending) -> ServiceError:
    match ending:
        case Ending.EXPIRED:
            return DeadlineExceeded("The deadline passed before there was anything to return.")
        case Ending.SUPERSEDED:
            return Superseded("A newer request of the same stream replaced this one.")
        case Ending.CANCELLED:
            return NotReady("The server stopped before the answer was ready.", retry_after_ms=1000)
        case _:
            return ModelFault("The model failed on this request.")


def _answer(future: asyncio.Future[T], action: Callable[[], T]) -> None:
    try:
        result = action()
    except Exception as error:  # noqa: BLE001 - whoever waits gets it, whatever it is
        _reject(future, error)
    else:
        _post(future, partial(_set_result, future, result))


def _reject(future: asyncio.Future[T], error: Exception) -> None:
    _post(future, partial(_set_error, future, error))


def _post(future: asyncio.Future[T], settle: Callable[[], None]) -> None:
    # A loop that is closed has nobody left who waits.
    with contextlib.suppress(RuntimeError):
        future.get_loop().call_soon_threadsafe(settle)


def _set_result(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _set_error(future: asyncio.Future[T], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
