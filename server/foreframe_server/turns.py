"""Whose turn it is on a device that takes one piece of work at a time. It knows urgency and nothing of the work."""

import asyncio
import contextlib
import heapq
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import count

from foreframe_engines import Priority


@dataclass(frozen=True, slots=True, order=True)
class _Urgency:
    is_bulk: bool
    deadline_s: float
    arrival: int


@dataclass(frozen=True, slots=True, order=True)
class _Waiting:
    urgency: _Urgency
    turn: "asyncio.Future[None]"


class Turns:
    """Gives turns to one holder at a time: controllers before bulk work, then the earliest deadline, then in order."""

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting: list[_Waiting] = []
        self._arrivals = count()

    @contextlib.asynccontextmanager
    async def taking(self, priority: Priority, deadline_s: float | None) -> AsyncIterator[None]:
        """Wait for a turn and hold it until the block ends."""
        if self._is_taken:
            deadline_s = math.inf if deadline_s is None else deadline_s
            await self._wait(_Urgency(priority is Priority.BULK, deadline_s, next(self._arrivals)))
        self._is_taken = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, urgency: _Urgency) -> None:
        waiting = _Waiting(urgency, asyncio.get_running_loop().create_future())
        heapq.heappush(self._waiting, waiting)
        try:
            await waiting.turn
        except asyncio.CancelledError:
            if not waiting.turn.cancelled():
                self._pass_on()  # the turn had come when its holder was cancelled
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            turn = heapq.heappop(self._waiting).turn
            if not turn.done():
                turn.set_result(None)
                return
        self._is_taken = False
