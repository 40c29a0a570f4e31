"""Which replicas there are and how a model stands on each, as they last said. Knows no Ray, no jobs and no engine."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator
from typing import Final, Literal, Protocol, TypeAlias

import structlog

from foreframe_engines.selftest import weaker
from foreframe_server.processes.frames import CorruptFrame
from foreframe_server.processes.messages import Failure, Hello
from foreframe_server.ray.envelopes import read_letter, write_letter
from foreframe_server.ray.messages import Ask, Standing
from foreframe_server.ray.translation import read_error

Method: TypeAlias = Literal["control", "encode", "call_engine"]

_POLL_S: Final = 0.25

_log = structlog.get_logger(__name__)


class ReplicaLost(Exception):
    """A replica died or cannot be reached; whether the call had begun is not known."""


class Link(Protocol):
    """Carries messages to replicas, by name. Everything raises ReplicaLost."""

    async def broadcast(self, data: bytes) -> list[bytes]:
        """Ask every replica how a model stands; those that do not answer in time are left out."""

    def run(self, place: str, data: bytes) -> AsyncGenerator[bytes, None]:
        """Run a job and hear of it; closing it cancels the job."""

    async def ask(self, method: Method, place: str, data: bytes) -> bytes:
        """Call a method of one replica."""

    def ask_now(self, method: Method, place: str, data: bytes, limit_s: float) -> bytes:
        """Call a method of one replica, from a thread without an event loop."""


class Replicas:
    """The replicas of one model: `open`, then look, then `close`. Looking is safe in any thread.

    Each has a place of its own, 0..num_places - 1, as long as it lives; those for which there is none are left out.
    """

    def __init__(self, link: Link, model: str, num_places: int) -> None:
        self.link = link
        self.model = model
        self._news = threading.Condition()
        self._places: list[Standing | None] = [None] * num_places
        self._polling: asyncio.Task[None] | None = None

    @property
    def determinism(self) -> str:
        """What equal queries may count on, wherever they run; empty before any replica is there."""
        known = [standing.determinism for standing in self._standing()]
        weakest = known[0] if known else ""
        for each in known[1:]:
            weakest = weaker(weakest, each)
        return weakest

    async def open(self) -> Hello:
        """Wait until the model is open somewhere, and keep looking. Raises what opening raised."""
        while True:
            failures = await self._look()
            found = self.find()
            if found is not None and found.hello is not None:
                self._polling = asyncio.create_task(self._keep_looking())
                return found.hello
            if failures:
                raise read_error(failures[0])
            await asyncio.sleep(_POLL_S)

    async def close(self) -> None:
        """Look no longer."""
        if self._polling is not None:
            self._polling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._polling

    def at(self, place: int) -> Standing | None:
        """Return how the model stands on the replica of a place; None where there is none or it is not ready."""
        standing = self._places[place]
        return standing if standing is not None and standing.is_ready else None

    def find(self) -> Standing | None:
        """Return the replica where the least work waits."""
        return min(self._standing(), key=lambda standing: standing.pending_s, default=None)

    def wait_any(self, limit_s: float) -> Standing | None:
        """Wait so long for a replica to be there, and return it."""
        with self._news:
            self._news.wait_for(lambda: self.find() is not None, limit_s)
            return self.find()

    def lose(self, replica: str) -> None:
        """Take note that a replica did not answer, until it is heard of again."""
        with self._news:
            self._places = [each if each is None or each.replica != replica else None for each in self._places]

    def _standing(self) -> list[Standing]:
        return [standing for standing in self._places if standing is not None and standing.is_ready]

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            try:
                await self._look()
            except Exception:  # noqa: BLE001 - a task that nobody awaits: it must go on, and says why it could not
                _log.exception("replicas could not be asked")

    async def _look(self) -> list[Failure]:
        """Hear how the model stands everywhere, and return why it cannot be opened where it cannot."""
        try:
            replies = await self.link.broadcast(write_letter(self.model, Ask()))
        except ReplicaLost:
            return []
        bodies = [read_letter(reply).body for reply in replies]
        standings = {body.replica: body for body in bodies if isinstance(body, Standing)}
        if len(standings) != len(bodies):
            raise CorruptFrame("a replica told something else than how it stands")
        failures = [standing.failure for standing in standings.values() if standing.failure is not None]
        with self._news:
            self._settle(standings)
            self._news.notify_all()
        return failures

    def _settle(self, standings: dict[str, Standing]) -> None:
        """Keep every replica in its place, and give free places to new ones."""
        for place, known in enumerate(self._places):
            self._places[place] = None if known is None else standings.pop(known.replica, None)
        for place, known in enumerate(self._places):
            if known is None and standings:
                self._places[place] = standings.pop(next(iter(standings)))
