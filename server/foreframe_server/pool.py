"""Several devices as one: whole jobs go where the least work waits, and large ensembles are split among all.

It knows workers and members, and neither engines nor queues. What comes back is in the order of the members, the same
bytes that one device gives, because a member depends on its seed and number alone.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import count

import numpy as np
from jaxtyping import UInt8

from foreframe_engines import OnDeadline, Query
from foreframe_engines.selftest import weaker
from foreframe_engines.types import Latents
from foreframe_server.calls import Call, Timings
from foreframe_server.cost_model import SlowQuantile
from foreframe_server.errors import ServiceError, Superseded, not_ready
from foreframe_server.jobs import Ending, Share
from foreframe_server.tickets import Admitted, Frames, Listener, WorkerResult
from foreframe_server.workers import PartTicket, PartWorker

_ROOM = 1.5
"""A job is split only where so many times what its first members need is left: who saves steps must do it alone."""


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """One device's share of a job."""

    worker: PartWorker
    ticket: PartTicket
    share: Share

    @property
    def has_ended(self) -> bool:
        return self.ticket.future.done()


@dataclass(slots=True, eq=False)
class PoolTicket:
    """A job that was admitted, in parts. The first part has the first member of all."""

    call: Call
    first_member: int
    size: int
    parts: list[_Part] = field(default_factory=list)

    @property
    def num_steps(self) -> int:
        """Steps of each member."""
        return self.parts[0].ticket.num_steps

    @property
    def has_ended(self) -> bool:
        """Whether every part has."""
        return all(part.has_ended for part in self.parts)

    def is_alike(self, part: int) -> bool:
        """Whether a part's members take as many steps as the first part's: others are of another ensemble."""
        return self.parts[part].ticket.num_steps == self.num_steps


class _Merge:
    """Puts what several devices tell of their members in order, and passes it on without gaps."""

    def __init__(self, ticket: PoolTicket, shares: Sequence[Share], listener: Listener) -> None:
        self._ticket = ticket
        self._listener = listener
        self._next = ticket.first_member
        self._told: dict[int, tuple[int, Frames]] = {}
        self._numbers = [_numbers(share, ticket.first_member) for share in shares]

    @property
    def wants_estimate(self) -> bool:
        """Whether the first step is worth decoding."""
        return self._listener.wants_estimate

    def on_estimate(self, frames: Frames) -> None:
        """Pass on what the first step says of the mean."""
        self._listener.on_estimate(frames)

    def take(self, part: int, members: Sequence[Frames]) -> None:
        """Hear of the next members of a part."""
        self._told.update(
            {number: (part, frames) for frames, number in zip(members, self._numbers[part], strict=False)}
        )
        news = []
        while self._next in self._told and self._ticket.is_alike(self._told[self._next][0]):
            news.append(self._told.pop(self._next)[1])
            self._next += 1
        if news:
            self._listener.on_members(news)


@dataclass(frozen=True, slots=True)
class _PartListener:
    merge: _Merge
    part: int

    @property
    def wants_estimate(self) -> bool:
        return self.merge.wants_estimate

    def on_estimate(self, frames: Frames) -> None:
        self.merge.on_estimate(frames)

    def on_members(self, frames: Sequence[Frames]) -> None:
        self.merge.take(self.part, frames)


class WorkerPool:
    """Runs jobs on several workers; see `Workers`."""

    def __init__(self, workers: Sequence[PartWorker], clock: Callable[[], float]) -> None:
        """Take over at least one worker; they share a quarantine."""
        self._workers = tuple(workers)
        self._clock = clock
        self._streams: dict[tuple[str, str], PoolTicket] = {}

    @property
    def determinism(self) -> str:
        """What equal queries may count on, wherever they run."""
        weakest = self._workers[0].determinism
        for worker in self._workers[1:]:
            weakest = weaker(weakest, worker.determinism)
        return weakest

    @property
    def is_ready(self) -> bool:
        """Whether jobs are taken by any worker."""
        return any(worker.is_ready for worker in self._workers)

    @property
    def num_jobs(self) -> int:
        """How many jobs, or parts of one, have not ended."""
        return sum(worker.num_jobs for worker in self._workers)

    def known_costs(self) -> Iterator[tuple[str, int, SlowQuantile]]:
        """Tell each kind of work, with its rows, and what it takes on the first device."""
        return self._workers[0].known_costs()

    async def warm_up(self) -> None:
        """Run everything once on every device, one after another: they may share what they would be measured on."""
        for worker in self._workers:
            await worker.warm_up()

    async def submit(self, query: Query, call: Call) -> WorkerResult:
        """Compute a query's members; the job is dropped when the waiting task is cancelled."""
        return await self.wait(self.admit(query, call))

    def admit(self, query: Query, call: Call, *, first_member: int = 0, listener: Listener | None = None) -> PoolTicket:
        """Put a query into the queues of as many workers as it has pairs of members, or into the shortest.

        What it replaces ends once every part was admitted. Raises what `Workers.admit` raises, and Superseded.
        """
        older = self._find_older(query, call)
        ticket = PoolTicket(call, first_member, query.ensemble.size)
        workers = self._choose(query, call, first_member)
        shares = _shares(first_member, len(workers))
        merge = None if listener is None or len(shares) == 1 else _Merge(ticket, shares, listener)
        try:
            for number, (worker, share) in enumerate(zip(workers, shares, strict=True)):
                hearing = listener if merge is None else _PartListener(merge, number)
                part = worker.admit(query, call, first_member=first_member, listener=hearing, share=share)
                ticket.parts.append(_Part(worker, part, share))
        except ServiceError:
            _end(ticket, Ending.CANCELLED)
            raise
        if older is not None:
            _end(older, Ending.SUPERSEDED)
        if query.stream_id is not None:
            self._streams[call.key, query.stream_id] = ticket
        return ticket

    async def wait(self, ticket: Admitted) -> WorkerResult:
        """Wait for every part; when one fails or the wait is cancelled, the others are dropped."""
        mine = _own(ticket)
        waits = [asyncio.ensure_future(part.worker.wait(part.ticket)) for part in mine.parts]
        try:
            return _merged(mine, await asyncio.gather(*waits))
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
            self._forget(mine)

    def extend(self, ticket: Admitted, deadline_s: float | None, on_deadline: OnDeadline) -> None:
        """Let every part live until the later deadline, ending in the milder way."""
        for part in _own(ticket).parts:
            part.worker.extend(part.ticket, deadline_s, on_deadline)

    def grow(self, ticket: Admitted, size: int) -> bool:
        """Ask for more members of every part; False when one has ended or has no room."""
        mine = _own(ticket)
        if any(part.has_ended for part in mine.parts):
            return False
        if not all(part.worker.grow(part.ticket, size) for part in mine.parts):
            return False
        mine.size = max(mine.size, size)
        return True

    def timings(self, ticket: Admitted) -> Timings:
        """Return how long the slowest part's stages have taken so far."""
        return _slowest([part.worker.timings(part.ticket) for part in _own(ticket).parts])

    async def estimate(self, ticket: Admitted) -> WorkerResult | None:
        """Decode where a job's first member is heading."""
        first = _own(ticket).parts[0]
        return await first.worker.estimate(first.ticket)

    async def encode(self, context: UInt8[np.ndarray, "t h w 3"], call: Call | None = None) -> Latents:
        """Encode context frames where the least work waits."""
        return await self._by_load()[0].encode(context, call)

    async def stop(self, drain_s: float) -> None:
        """Stop every worker at once."""
        await asyncio.gather(*(worker.stop(drain_s) for worker in self._workers))

    def _by_load(self) -> list[PartWorker]:
        ready = [worker for worker in self._workers if worker.is_ready]
        if not ready:
            raise not_ready()
        return sorted(ready, key=lambda worker: worker.pending_s)

    def _choose(self, query: Query, call: Call, first_member: int) -> list[PartWorker]:
        """Return the workers of a job, the one with the least work first."""
        workers = self._by_load()
        num_pairs = (query.ensemble.size + 1) // 2 - first_member // 2
        wanted = workers[: max(1, min(len(workers), num_pairs))]
        if call.deadline_s is None or call.on_deadline is not OnDeadline.DEGRADE or len(wanted) == 1:
            return wanted
        least_s = workers[0].pending_s + workers[0].predict_wave_s(query)
        return wanted if self._clock() + _ROOM * least_s <= call.deadline_s else workers[:1]

    def _find_older(self, query: Query, call: Call) -> PoolTicket | None:
        """Return what a job replaces. Raises Superseded when that is the newer one."""
        if query.stream_id is None:
            return None
        other = self._streams.get((call.key, query.stream_id))
        if other is not None and not other.has_ended and other.call.received_s > call.received_s:
            raise Superseded("A newer request of the same stream replaced this one.")
        return other

    def _forget(self, ticket: PoolTicket) -> None:
        for stream in [stream for stream, other in self._streams.items() if other is ticket]:
            del self._streams[stream]


def _own(ticket: Admitted) -> PoolTicket:
    if not isinstance(ticket, PoolTicket):
        raise TypeError("the ticket is not of a pool")
    return ticket


def _end(ticket: PoolTicket, ending: Ending) -> None:
    for part in ticket.parts:
        part.worker.end(part.ticket, ending)
        if ending is Ending.CANCELLED:
            part.ticket.future.cancel()


def _shares(first_member: int, num: int) -> list[Share]:
    """Split the members from the first on into so many shares, the first member's first."""
    return [Share((first_member // 2 + index) % num, num) for index in range(num)]


def _numbers(share: Share, first_member: int) -> Iterator[int]:
    """Count the members of a share."""
    return (member for member in count(first_member) if share.holds(member))


def _merged(ticket: PoolTicket, results: Sequence[WorkerResult]) -> WorkerResult:
    """Put the parts' members in order, up to the first that is missing."""
    first, timings = results[0], _slowest([result.timings for result in results])
    if len(results) == 1 or first.is_estimate:
        return replace(first, timings=timings)
    places: dict[int, tuple[Frames, Latents]] = {}
    for part, result in zip(ticket.parts, results, strict=True):
        if result.steps == first.steps:
            members = zip(result.members, result.latents, strict=True)
            numbers = _numbers(part.share, ticket.first_member)
            places.update({number: member for member, number in zip(members, numbers, strict=False)})
    whole = [places[number] for number in _prefix(ticket.first_member, ticket.size, places)]
    return replace(
        first,
        members=tuple(frames for frames, _ in whole),
        latents=tuple(latents for _, latents in whole),
        timings=timings,
    )


def _prefix(first: int, end: int, known: Mapping[int, tuple[Frames, Latents]]) -> Iterator[int]:
    for number in range(first, end):
        if number not in known:
            return
        yield number


def _slowest(timings: Sequence[Timings]) -> Timings:
    names = [each.name for each in fields(Timings)]
    return Timings(**{name: max(getattr(each, name) for each in timings) for name in names})
