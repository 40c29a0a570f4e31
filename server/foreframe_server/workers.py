"""What services need of whatever runs queries: one device, several, or another machine."""

import asyncio
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from foreframe_engines import OnDeadline, Query
from foreframe_engines.types import Latents
from foreframe_server.calls import Call, Timings
from foreframe_server.cost_model import SlowQuantile
from foreframe_server.jobs import WHOLE, Ending, Share
from foreframe_server.tickets import Admitted, Listener, WorkerResult


class Workers(Protocol):
    """Runs queries on engines: `warm_up`, any number of `submit`, then `stop`."""

    @property
    def determinism(self) -> str:
        """What equal queries may count on, as measured by `warm_up`."""

    @property
    def is_ready(self) -> bool:
        """Whether jobs are taken."""

    @property
    def num_jobs(self) -> int:
        """How many admitted jobs have not ended."""

    def known_costs(self) -> Iterator[tuple[str, int, SlowQuantile]]:
        """Tell each kind of work, with its rows, and what it takes on one device."""

    async def warm_up(self) -> None:
        """Run everything once; ready from then on. Raises what the engines raise."""

    async def submit(self, query: Query, call: Call) -> WorkerResult:
        """Compute a query's members; the job is dropped when the waiting task is cancelled.

        Raises what `admit` and `wait` raise.
        """

    def admit(self, query: Query, call: Call, *, first_member: int = 0, listener: Listener | None = None) -> Admitted:
        """Put a query into the queue; members before `first_member` are not computed.

        Raises NotReady, Overloaded, TooExpensive, DeadlineUnmeetable or LoadedDeadline at once.
        """

    async def wait(self, ticket: Admitted, /) -> WorkerResult:
        """Wait for a job's result; cancelling the wait cancels the job.

        Raises DeadlineExceeded, Superseded, WorkerCrashed, NotReady or ModelFault.
        """

    def extend(self, ticket: Admitted, deadline_s: float | None, on_deadline: OnDeadline) -> None:
        """Let a job live until the later deadline, ending in the milder way."""

    def grow(self, ticket: Admitted, size: int) -> bool:
        """Ask for more members of a job; False when it has ended or there is no room."""

    def timings(self, ticket: Admitted) -> Timings:
        """Return how long a job's stages have taken so far."""

    async def estimate(self, ticket: Admitted) -> WorkerResult | None:
        """Decode where a job's first member is heading; None before its first step."""

    async def encode(self, context: UInt8[np.ndarray, "t h w 3"], call: Call | None = None) -> Latents:
        """Encode context frames (RGB 0..255). Raises NotReady, DeadlineExceeded, WorkerCrashed or ModelFault."""

    async def stop(self, drain_s: float) -> None:
        """Take no more jobs, give the admitted ones so long, fail the rest, close the engines."""


class PartTicket(Admitted, Protocol):
    """A job, or part of one, on one of several workers."""

    future: asyncio.Future[WorkerResult]


class PartWorker(Workers, Protocol):
    """A worker that may be one of several, and compute a share of an ensemble."""

    @property
    def pending_s(self) -> float:
        """Predicted seconds of the work that waits."""

    def predict_wave_s(self, query: Query) -> float:
        """Predict the seconds from encoding to the first members of a query that a full forward makes whole."""

    def admit(
        self,
        query: Query,
        call: Call,
        *,
        first_member: int = 0,
        listener: Listener | None = None,
        share: Share = WHOLE,
    ) -> PartTicket:
        """Put a query into the queue as `Workers.admit` does. share: which members are computed here."""

    def end(self, ticket: Admitted, /, ending: Ending) -> None:
        """End a job at the next step border; one that has ended stays as it is."""
