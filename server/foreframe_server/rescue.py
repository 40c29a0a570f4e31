"""What becomes of calls that an engine died in: they are repeated while that makes sense, and nobody pays twice.

It knows engines' deaths, deadlines and the quarantine, and nothing of queues. What shared a call is told apart by
whoever asked; from its first death on a request's calls are its own, so that the second is surely its doing.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import structlog

from foreframe_engines import EngineLost
from foreframe_server.errors import DeadlineExceeded, ModelFault, NotReady, ServiceError, WorkerCrashed
from foreframe_server.metrics import Metrics
from foreframe_server.quarantine import MAX_DEATHS, Deaths, Quarantine

_MAX_UNBEGUN = 3
"""Each time a call has waited for as long as engines are waited for."""

_log = structlog.get_logger(__name__)

_PATIENCE = 3

T = TypeVar("T")


class Suspect(Protocol):
    """What may have been what an engine died of."""

    @property
    def deaths(self) -> Deaths:
        """Shared by all that its request runs."""

    @property
    def deadline_s(self) -> float | None:
        """When its answer is due."""

    def digest(self) -> bytes:
        """Tell it from others; asked only after a death."""


@dataclass(frozen=True, slots=True, eq=False)
class Errand:
    """Calls that are nobody's job."""

    deaths: Deaths
    deadline_s: float | None
    digest: Callable[[], bytes]


class Rescue:
    """Runs engine calls on behalf of requests, on the device's thread."""

    def __init__(
        self, metrics: Metrics, quarantine: Quarantine | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._metrics = metrics
        self._quarantine = quarantine or Quarantine(clock)
        self._clock = clock

    def run(self, suspect: Suspect, action: Callable[[], T]) -> T:
        """Run one request's call, and again while engines die and there is time.

        Raises what the call raises, WorkerCrashed, DeadlineExceeded or NotReady, and never EngineLost.
        """
        while True:
            try:
                return self.attempt([suspect], action)
            except EngineLost as error:
                if suspect.deadline_s is not None and suspect.deadline_s <= self._clock():
                    raise DeadlineExceeded("The deadline passed while the worker was restarted.") from error

    def attempt(self, suspects: Sequence[Suspect], action: Callable[[], T]) -> T:
        """Run a call that requests share, once.

        Raises what the call raises; EngineLost also when the requests must not share a call. For a single request,
        raises WorkerCrashed when engines have died of it, and NotReady when there was none again and again.
        """
        held = [suspect.deaths for suspect in suspects]
        self._recall(suspects)
        with self._quarantine.running(held):
            self._require_allowed(held)
            try:
                result = action()
            except EngineLost as error:
                self._book(suspects, error)
                raise
        for deaths in held:
            deaths.num_unbegun = 0
        return result

    def acquit(self, suspect: Suspect) -> None:
        """Take note that a request was answered, so that nothing died of it."""
        if not self._quarantine.is_empty:
            self._quarantine.acquit(suspect.digest())

    def _recall(self, suspects: Sequence[Suspect]) -> None:
        """Hold against requests what engines died of when it was asked before."""
        if self._quarantine.is_empty:
            return
        for suspect in suspects:
            suspect.deaths.num = max(suspect.deaths.num, self._quarantine.num_deaths(suspect.digest()))

    def _require_allowed(self, held: Sequence[Deaths]) -> None:
        if len(held) > 1 and any(deaths.num for deaths in held):
            raise EngineLost("a request that cost an engine shares no call", has_run=False)
        if any(deaths.num >= MAX_DEATHS for deaths in held):
            self._metrics.count_rescue("refused")
            raise WorkerCrashed("The worker crashed on this request, twice.")
        if any(deaths.num_unbegun >= _MAX_UNBEGUN for deaths in held):
            self._metrics.count_rescue("given_up")
            raise NotReady("No worker is running.", retry_after_ms=1000)

    def _book(self, suspects: Sequence[Suspect], error: EngineLost) -> None:
        _log.warning("rescue.engine_lost", num_requests=len(suspects), has_run=error.has_run, reason=str(error))
        self._metrics.count_rescue("repeated")
        for deaths in {id(suspect.deaths): suspect.deaths for suspect in suspects}.values():
            if error.has_run:
                deaths.num += 1
            else:
                deaths.num_unbegun += 1
        if error.has_run:
            for digest in {suspect.digest() for suspect in suspects}:
                self._quarantine.note(digest)


def refusal(error: Exception) -> ServiceError:
    """Say what a caller is told of an engine's failure."""
    return error if isinstance(error, ServiceError) else ModelFault("The model failed on this request.")


def patiently(action: Callable[[], T]) -> T:
    """Run what is nobody's request, and again where the engine was lost meanwhile. Raises what the action raises."""
    for _ in range(_PATIENCE - 1):
        with contextlib.suppress(EngineLost):
            return action()
    return action()
