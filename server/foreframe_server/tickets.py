"""What stands between a job on the device's thread and its caller on an event loop. It knows no engine and no queue."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from jaxtyping import UInt8

from foreframe_engines.types import Latents
from foreframe_server.calls import Timings
from foreframe_server.errors import DeadlineExceeded, ModelFault, NotReady, ServiceError, Superseded, WorkerCrashed
from foreframe_server.jobs import Ending, Job

T = TypeVar("T")

Frames = UInt8[np.ndarray, "f h w 3"]


class Listener(Protocol):
    """Hears of a job's progress, on the event loop that admitted it."""

    @property
    def wants_estimate(self) -> bool:
        """Whether the first step is worth decoding."""

    def on_estimate(self, frames: Frames) -> None:
        """Hear what the first step says of the mean."""

    def on_members(self, frames: Sequence[Frames]) -> None:
        """Hear of members that became whole, the next ones in order."""


class Admitted(Protocol):
    """Work that was admitted. Only who admitted it knows what it is."""

    @property
    def num_steps(self) -> int:
        """Steps of each member, fewer than asked once time is short."""


@dataclass(frozen=True, slots=True, eq=False)
class WorkerResult:
    """What the device made of a job: its whole members in order, and their latents.

    steps: of each member, fewer than asked when time was short. is_estimate: no member was whole, and the only one here
    is where member 0 was heading after so many steps. Timings are of `queue` to `latent_decode`.
    """

    members: tuple[Frames, ...]
    latents: tuple[Latents, ...]
    timings: Timings
    steps: int
    is_estimate: bool = False


@dataclass(slots=True, eq=False)
class Ticket:
    """A job that was admitted, and the future that its caller waits on. num_told: members the listener heard of."""

    job: Job
    future: asyncio.Future[WorkerResult]
    admitted_s: float
    listener: Listener | None = None
    prepared_s: float = 0.0
    timings: Timings = field(default_factory=Timings)
    batch_rows: list[int] = field(default_factory=list)
    members: list[Frames] = field(default_factory=list)
    num_told: int = 0

    @property
    def num_steps(self) -> int:
        """Steps of each member."""
        return self.job.num_steps

    def timings_at(self, now: float) -> Timings:
        """Return how long the job's stages have taken by now."""
        batch_rows = self.batch_rows or [0]
        denoise_ms = 1000 * (now - self.prepared_s) if self.prepared_s else 0.0
        return replace(
            self.timings,
            denoise=max(0.0, denoise_ms - self.timings.latent_decode),
            step_batch_mean=sum(batch_rows) / len(batch_rows),
        )


def own(ticket: Admitted) -> Ticket:
    """Return a ticket of one device as such. Raises TypeError for another's."""
    if not isinstance(ticket, Ticket):
        raise TypeError("the ticket is not of one device")
    return ticket


def ending_error(ending: Ending) -> ServiceError:
    """Say what a caller gets whose job ended without an answer."""
    match ending:
        case Ending.EXPIRED:
            return DeadlineExceeded("The deadline could not be met any more.")
        case Ending.SUPERSEDED:
            return Superseded("A newer request of the same stream replaced this one.")
        case Ending.CANCELLED:
            return NotReady("The server stopped before the answer was ready.", retry_after_ms=1000)
        case Ending.CRASHED:
            return WorkerCrashed("The worker crashed on this request, twice.")
        case Ending.STRANDED:
            return NotReady("No worker is running.", retry_after_ms=1000)
        case _:
            return ModelFault("The model failed on this request.")


def ending_of(error: Exception) -> Ending:
    """Say how a job ends that an engine's failure ends."""
    match error:
        case DeadlineExceeded():
            return Ending.EXPIRED
        case WorkerCrashed():
            return Ending.CRASHED
        case NotReady():
            return Ending.STRANDED
        case _:
            return Ending.FAULTED


def answer(future: asyncio.Future[T], action: Callable[[], T]) -> None:
    """Run an action here and give whoever waits what it returns or raises."""
    try:
        result = action()
    except Exception as error:  # noqa: BLE001 - whoever waits gets it, whatever it is
        reject(future, error)
    else:
        post(future, partial(_set_result, future, result))


def reject(future: asyncio.Future[T], error: Exception) -> None:
    """Give whoever waits an error, unless an answer was given before."""
    post(future, partial(_set_error, future, error))


def post(future: asyncio.Future[T], settle: Callable[[], None]) -> None:
    """Run something on the event loop of a future, in the order of the posts."""
    # A loop that is closed has nobody left who waits.
    with contextlib.suppress(RuntimeError):
        future.get_loop().call_soon_threadsafe(settle)


def _set_result(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _set_error(future: asyncio.Future[T], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
