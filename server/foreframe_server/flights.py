"""One growing ensemble that equal queries share. It knows members and riders, and neither devices nor caches.

A flight's members arrive in order: first those that were known before, then those that are computed for it. Each rider
looks at them as they come and leaves when it has enough; what one rider takes does not depend on the others.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from foreframe_engines import Query
from foreframe_engines.ensemble import Convergence
from foreframe_engines.schedule import num_steps
from foreframe_server.calls import CacheResult, Call
from foreframe_server.jobs import later_deadline
from foreframe_server.scheduler import milder
from foreframe_server.tickets import Admitted, Frames, WorkerResult


class Flight:
    """One ensemble on its way. `terms` are the first rider's, stretched to the latest deadline and the mildest end.

    `landing` is set at once by whoever launches the flight, and done when no more members come.
    """

    landing: "asyncio.Task[None]"

    def __init__(self, query: Query, terms: Call, *, wants_estimate: bool = False) -> None:
        self.query = query
        self.terms = terms
        self.wants_estimate = wants_estimate
        self.members: list[Frames] = []
        self.estimate: Frames | None = None
        self.num_cached = 0
        self.lookup = CacheResult.MISS
        self.ticket: Admitted | None = None
        self.result: WorkerResult | None = None
        self.num_riders = 0
        self.is_accepted = False
        self.changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def size(self) -> int:
        """How many members are on their way or here."""
        return self.query.ensemble.size

    @property
    def num_computed(self) -> int:
        """How many members were not known before."""
        return len(self.members) - self.num_cached

    @property
    def steps(self) -> int:
        """How many steps each member takes."""
        return num_steps(self.query.sampling) if self.ticket is None else self.ticket.num_steps

    @property
    def is_shortened(self) -> bool:
        """Whether the members take fewer steps than was asked: no other rider can use them."""
        return self.steps < num_steps(self.query.sampling)

    def accept(self) -> None:
        """Say that its members are being computed, here or by another server."""
        self.is_accepted = True
        self._tell()

    def adopt(self, known: Sequence[Frames]) -> None:
        """Take members over that were computed elsewhere, where they are more."""
        if len(known) > len(self.members):
            self.members = list(known)
            self.num_cached = len(known)
            self._tell()

    def on_members(self, frames: Sequence[Frames]) -> None:
        """Take the next members in."""
        self.members += frames
        self._tell()

    def on_estimate(self, frames: Frames) -> None:
        """Take in what the first step says of the mean."""
        self.estimate = frames
        self._tell()

    def stretch(self, query: Query, call: Call) -> None:
        """Make room for one more rider."""
        self.terms = replace(
            self.terms,
            deadline_s=later_deadline(self.terms.deadline_s, call.deadline_s),
            on_deadline=milder(self.terms.on_deadline, call.on_deadline),
        )
        if query.ensemble.size > self.size:
            self.query = replace(self.query, ensemble=replace(self.query.ensemble, size=query.ensemble.size))

    def _tell(self) -> None:
        changed, self.changed = self.changed, asyncio.get_running_loop().create_future()
        if not changed.done():
            changed.set_result(None)


class Satisfaction:
    """When one rider has enough: at its size, or at the first prefix whose mean is as exact as it asked for."""

    def __init__(self, query: Query) -> None:
        self._ensemble = query.ensemble
        self._convergence = None if query.ensemble.tolerance is None else Convergence(query.ensemble.noise)

    def enough(self, members: Sequence[Frames]) -> int | None:
        """Return how many of the members so far the rider takes; None when it needs more. May take milliseconds."""
        size, tolerance = self._ensemble.size, self._ensemble.tolerance
        if self._convergence is not None and tolerance is not None:
            seen = members[self._convergence.count : size]
            if seen:
                self._convergence.extend(np.stack(seen))
            converged = self._convergence.size_within(tolerance)
            if converged is not None:
                return converged
        return size if len(members) >= size else None

    @property
    def is_cheap(self) -> bool:
        """Whether `enough` only counts."""
        return self._convergence is None
