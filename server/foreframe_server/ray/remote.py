"""A replica as a worker: jobs cross as messages, and what comes of them crosses back as it becomes whole. Knows no Ray.

A job whose replica dies is run again on another: members depend on their seed and number alone, so the bytes are equal.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

import numpy as np
import structlog
from jaxtyping import UInt8

from foreframe_engines import EngineError, EngineLost, OnDeadline, Query
from foreframe_engines.schedule import num_steps
from foreframe_engines.types import Latents
from foreframe_server.calls import Call, Timings
from foreframe_server.cost_model import CostModel, SlowQuantile
from foreframe_server.device import DeviceThread
from foreframe_server.errors import DeadlineExceeded, NotReady, ServiceError, WorkerCrashed, not_ready
from foreframe_server.jobs import WHOLE, Ending, Share, later_deadline
from foreframe_server.metrics import Metrics
from foreframe_server.processes.frames import CorruptFrame
from foreframe_server.processes.messages import Arrays, Failure
from foreframe_server.processes.parcels import Parcel
from foreframe_server.quarantine import MAX_DEATHS
from foreframe_server.quotas import Charge
from foreframe_server.ray.envelopes import Letter, read_letter, write_letter
from foreframe_server.ray.messages import Body, ContextCall, Estimate, Extend, Glance, Lost, Members, Refusal, Result
from foreframe_server.ray.replicas import Method, ReplicaLost, Replicas
from foreframe_server.ray.translation import Order, read_error, read_result, write_job
from foreframe_server.rescue import refusal
from foreframe_server.tickets import Admitted, Frames, Listener, WorkerResult, ending_error

_GRACE_S: Final = 2.0
"""A replica that says nothing for so long after a deadline is not waited for."""
_PATIENCE_S: Final = 10.0
"""How long a job waits for a replica to be there."""

_log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class RemoteTicket:
    """A job on a replica, and the future that its caller waits on. `size`: of the ensemble, which may grow."""

    id: str
    order: Order
    future: asyncio.Future[WorkerResult]
    admitted_s: float
    num_steps: int
    size: int
    listener: Listener | None = None
    place: str = ""
    num_told: int = 0
    predicted_s: float = 0.0
    timings: Timings | None = None
    task: asyncio.Task[None] | None = field(default=None)

    @property
    def deadline_s(self) -> float | None:
        """When the answer is due."""
        return self.order.call.deadline_s


class RemoteWorker(DeviceThread):
    """Runs jobs on the replica of one place; see `Workers`. Its thread calls the replica's likelihood engine.

    buckets: of the model's contract. charge: hears for which key a replica worked, as long as was predicted.
    """

    def __init__(
        self,
        replicas: Replicas,
        place: int,
        buckets: tuple[int, ...],
        metrics: Metrics,
        charge: Charge,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(metrics, clock)
        self._replicas = replicas
        self._place = place
        self._buckets = buckets
        self._charge = charge
        self._tickets: dict[str, RemoteTicket] = {}
        self._asides: set[asyncio.Task[None]] = set()
        self._is_draining = False

    @property
    def determinism(self) -> str:
        """What equal queries may count on, wherever they run."""
        return self._replicas.determinism

    @property
    def is_ready(self) -> bool:
        """Whether a replica stands here and takes jobs."""
        return not self._is_draining and super().is_ready and self._replicas.at(self._place) is not None

    @property
    def num_jobs(self) -> int:
        """How many admitted jobs have not ended."""
        return len(self._tickets)

    @property
    def pending_s(self) -> float:
        """Predicted seconds of the work that waits: what the replica said, or what it got from here since."""
        standing = self._replicas.at(self._place)
        told_s = 0.0 if standing is None else standing.pending_s
        return max(told_s, sum(ticket.predicted_s for ticket in self._tickets.values()))

    def known_costs(self) -> Iterator[tuple[str, int, SlowQuantile]]:
        """Tell each kind of work, with its rows, and what it takes on the replica."""
        return self._cost().known()

    def predict_wave_s(self, query: Query) -> float:
        """Predict the seconds from encoding to the first members of a query that a full forward makes whole."""
        return self._cost().wave_s(query.ensemble.size, num_steps(query.sampling), len(query.frame_indices))

    async def warm_up(self) -> None:
        """Do nothing: replicas are warm before they are heard of."""

    async def submit(self, query: Query, call: Call) -> WorkerResult:
        """Compute a query's members; the job is dropped when the waiting task is cancelled."""
        return await self.wait(self.admit(query, call))

    def admit(
        self,
        query: Query,
        call: Call,
        *,
        first_member: int = 0,
        listener: Listener | None = None,
        share: Share = WHOLE,
    ) -> RemoteTicket:
        """Send a job on its way; members before `first_member` are not computed.

        share: which of the others are. Raises NotReady at once; what else a replica refuses is raised by `wait`.
        """
        if not self.is_ready:
            raise not_ready()
        order = Order(query, call, first_member, share)
        future: asyncio.Future[WorkerResult] = asyncio.get_running_loop().create_future()
        steps = num_steps(query.sampling)
        ticket = RemoteTicket(uuid.uuid4().hex, order, future, self.clock(), steps, query.ensemble.size, listener)
        ticket.predicted_s = self.predict_wave_s(query)
        self._tickets[ticket.id] = ticket
        ticket.task = asyncio.create_task(self._serve_ticket(ticket))
        return ticket

    async def wait(self, ticket: Admitted) -> WorkerResult:
        """Wait for a job's result; cancelling the wait cancels the job.

        Raises what a replica refuses, DeadlineExceeded, Superseded, WorkerCrashed, NotReady or ModelFault.
        """
        mine = _own(ticket)
        try:
            return await mine.future
        except asyncio.CancelledError:
            self.end(mine, Ending.CANCELLED)
            raise

    def end(self, ticket: Admitted, ending: Ending) -> None:
        """End a job; one that has ended stays as it is."""
        mine = _own(ticket)
        if mine.task is not None:
            mine.task.cancel()
        if not mine.future.done():
            mine.future.set_exception(ending_error(ending))
            mine.future.exception()  # whoever waits hears it; nobody needs to

    def extend(self, ticket: Admitted, deadline_s: float | None, on_deadline: OnDeadline) -> None:
        """Let a job live until the later deadline, ending in the milder way."""
        mine = _own(ticket)
        call = mine.order.call
        later_s = later_deadline(call.deadline_s, deadline_s)
        mine.order = replace(mine.order, call=replace(call, deadline_s=later_s, on_deadline=on_deadline))
        left_s = None if deadline_s is None else deadline_s - self.clock()
        aside = asyncio.create_task(self._tell_aside(mine, Extend(job=mine.id, left_s=left_s, on_deadline=on_deadline)))
        self._asides.add(aside)
        aside.add_done_callback(self._asides.discard)

    def grow(self, ticket: Admitted, size: int) -> bool:
        """Ask for more members of a job, which are computed after the others; False when it has ended."""
        mine = _own(ticket)
        if mine.future.done():
            return False
        mine.size = max(mine.size, size)
        return True

    def timings(self, ticket: Admitted) -> Timings:
        """Return how long a job's stages have taken; until it ends, all of it counts as waiting."""
        mine = _own(ticket)
        return mine.timings or Timings(queue=1000 * (self.clock() - mine.admitted_s))

    async def estimate(self, ticket: Admitted) -> WorkerResult | None:
        """Decode where a job's first member is heading; None before its first step or without an answer."""
        mine = _own(ticket)
        try:
            letter = await self._ask("control", mine.place, Glance(job=mine.id))
        except (ReplicaLost, CorruptFrame):
            return None
        return read_result(letter, letter.body, ()) if isinstance(letter.body, Result) else None

    async def encode(self, context: UInt8[np.ndarray, "t h w 3"], call: Call | None = None) -> Latents:
        """Encode context frames (RGB 0..255), again elsewhere where a replica dies of it.

        Raises NotReady, DeadlineExceeded, WorkerCrashed or ModelFault.
        """
        deadline_s = None if call is None else call.deadline_s

        async def attempt(place: str) -> Latents:
            parcel = Parcel()
            left_s = None if deadline_s is None else deadline_s - self.clock()
            letter = await self._ask("encode", place, ContextCall(context=parcel.put(context), left_s=left_s), parcel)
            if isinstance(letter.body, Refusal | Failure | Lost):
                raise read_error(letter.body)
            if not isinstance(letter.body, Arrays) or len(letter.body.arrays) != 1:
                raise CorruptFrame("a replica answered something else than latents")
            return letter.array(letter.body.arrays[0])

        return await self._rescue(attempt, lambda: deadline_s)

    async def stop(self, drain_s: float) -> None:
        """Take no more jobs, give the admitted ones so long, fail the rest, join the thread."""
        self._is_draining = True
        waiting = [ticket.future for ticket in self._tickets.values()]
        if waiting:
            await asyncio.wait(waiting, timeout=drain_s)
        tasks = [ticket.task for ticket in self._tickets.values() if ticket.task is not None]
        for ticket in list(self._tickets.values()):
            self.end(ticket, Ending.CANCELLED)
        await asyncio.gather(*tasks, *self._asides, return_exceptions=True)
        await self.join()

    def _cost(self) -> CostModel:
        cost = CostModel(self._buckets)
        standing = self._replicas.at(self._place)
        costs = () if standing is None else standing.costs
        cost.fit({each.rows: each.seconds for each in costs if each.work == "step"})
        for each in costs:
            if each.work == "prepare":
                cost.observe_prepare(each.seconds)
            elif each.work == "frame":
                cost.observe_decode(1, each.seconds)
        return cost

    async def _serve_ticket(self, ticket: RemoteTicket) -> None:
        try:
            result = await self._complete(ticket)
        except ServiceError as error:
            _settle(ticket.future, error)
        except Exception as error:  # noqa: BLE001 - the border of a job: whoever waits is told
            _log.exception("remote.job_failed", job=ticket.id)
            _settle(ticket.future, refusal(error))
        else:
            ticket.timings = result.timings
            rows = len(result.members) * result.steps
            self._charge(ticket.order.call.key, rows * self._cost().row_s)
            if not ticket.future.done():
                ticket.future.set_result(result)
        finally:
            del self._tickets[ticket.id]

    async def _complete(self, ticket: RemoteTicket) -> WorkerResult:
        """Compute what was asked, then what was asked for meanwhile."""
        asked = ticket.size
        result = await self._compute(ticket, ticket.order)
        while ticket.size > asked and _is_whole(result, ticket, asked):
            query, first = ticket.order.query, asked
            asked = ticket.size
            query = replace(query, ensemble=replace(query.ensemble, size=asked))
            more = await self._compute(ticket, replace(ticket.order, query=query, first_member=first))
            result = replace(result, members=(*result.members, *more.members), latents=(*result.latents, *more.latents))
        return result

    async def _compute(self, ticket: RemoteTicket, order: Order) -> WorkerResult:
        async def attempt(place: str) -> WorkerResult:
            # On the replica of another part of the same ensemble it must not replace that part.
            again = replace(order, query=replace(order.query, stream_id=None)) if ticket.place else order
            again = replace(again, call=ticket.order.call)
            ticket.place = place
            left_s = None if ticket.deadline_s is None else ticket.deadline_s - self.clock() + _GRACE_S
            try:
                async with asyncio.timeout(left_s):
                    return await self._follow(ticket, again, place)
            except TimeoutError as error:
                raise DeadlineExceeded("The deadline passed, and the replica said nothing.") from error

        return await self._rescue(attempt, lambda: ticket.deadline_s)

    async def _follow(self, ticket: RemoteTicket, order: Order, place: str) -> WorkerResult:
        """Run a job on one replica and tell of it. Raises ReplicaLost, EngineLost and what the replica refuses."""
        parcel, heard = Parcel(), list[Frames]()
        num_before = _num_members(ticket, order.first_member)
        body = write_job(order, ticket.id, self.clock(), ticket.listener, parcel)
        news = self._replicas.link.run(place, write_letter(self._replicas.model, body, parcel))
        async with contextlib.aclosing(news):
            async for data in news:
                letter = read_letter(data)
                if isinstance(letter.body, Result):
                    ticket.num_steps = letter.body.steps
                    return read_result(letter, letter.body, heard)
                if isinstance(letter.body, Members):
                    heard += [letter.array(index) for index in letter.body.frames]
                _pass_on(ticket, letter, heard[max(0, ticket.num_told - num_before) :])
        raise ReplicaLost("the replica ended in the middle of a job")

    async def _rescue(self, attempt: Callable[[str], Awaitable[T]], deadline_s: Callable[[], float | None]) -> T:
        """Run something on the replica of this place, and on another where that is lost.

        Raises what the attempt raises, WorkerCrashed when two were lost, DeadlineExceeded or NotReady.
        """
        num_deaths = 0
        while True:
            place = await self._find(deadline_s())
            try:
                return await attempt(place)
            except (ReplicaLost, EngineLost) as error:
                _log.warning("remote.replica_lost", replica=place, reason=str(error))
                self.metrics.count_rescue("repeated")
                self._replicas.lose(place)
                num_deaths += not isinstance(error, EngineLost) or error.has_run
                if num_deaths >= MAX_DEATHS:
                    self.metrics.count_rescue("refused")
                    raise WorkerCrashed("The worker crashed on this request, twice.") from error
            except EngineError as error:
                raise refusal(error) from error

    async def _find(self, deadline_s: float | None) -> str:
        """Return the replica of this place, or another once there is one."""
        left_s = _PATIENCE_S if deadline_s is None else min(_PATIENCE_S, deadline_s - self.clock())
        standing = self._replicas.at(self._place) or self._replicas.find()
        if standing is None:
            standing = await asyncio.to_thread(self._replicas.wait_any, max(0.0, left_s))
        if deadline_s is not None and deadline_s <= self.clock():
            raise DeadlineExceeded("The deadline passed before a replica could be asked.")
        if standing is None:
            raise NotReady("No replica is running.", retry_after_ms=1000)
        return standing.replica

    async def _ask(self, method: Method, place: str, body: Body, parcel: Parcel | None = None) -> Letter:
        return read_letter(
            await self._replicas.link.ask(method, place, write_letter(self._replicas.model, body, parcel))
        )

    async def _tell_aside(self, ticket: RemoteTicket, body: Body) -> None:
        # A job whose replica is gone is asked again with what it was told meanwhile.
        with contextlib.suppress(ReplicaLost):
            await self._ask("control", ticket.place, body)


def _own(ticket: Admitted) -> RemoteTicket:
    if not isinstance(ticket, RemoteTicket):
        raise TypeError("the ticket is not of a replica")
    return ticket


def _settle(future: asyncio.Future[WorkerResult], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _num_members(ticket: RemoteTicket, end: int) -> int:
    """Count the members of a job's share before one."""
    order = ticket.order
    return sum(order.share.holds(member) for member in range(order.first_member, end))


def _is_whole(result: WorkerResult, ticket: RemoteTicket, size: int) -> bool:
    """Whether everything came that an ensemble of so many needs of this share."""
    return not result.is_estimate and len(result.members) >= _num_members(ticket, size)


def _pass_on(ticket: RemoteTicket, letter: Letter, fresh: list[Frames]) -> None:
    """Tell a listener what is new to it. Raises what the replica refuses."""
    match letter.body:
        case Members():
            ticket.num_steps, ticket.num_told = letter.body.steps, ticket.num_told + len(fresh)
            if ticket.listener is not None and fresh:
                ticket.listener.on_members(fresh)
        case Estimate():
            if ticket.listener is not None and ticket.num_told == 0:
                ticket.listener.on_estimate(letter.array(letter.body.frames))
        case Refusal() | Failure() | Lost():
            raise read_error(letter.body)
        case _:
            raise CorruptFrame("a replica told something else than of a job")
