"""What a caller gets of a job: its members decoded, or where the first of them was heading.

It knows stages and tickets, and nothing of queues. Called from the device's thread only.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import structlog

from foreframe_server.errors import ServiceError
from foreframe_server.jobs import Member
from foreframe_server.rescue import Rescue, refusal
from foreframe_server.stages import JobStages
from foreframe_server.tickets import Ticket, WorkerResult, post

_log = structlog.get_logger(__name__)


class Finisher:
    """Makes results of jobs that have ended, and news of those that run."""

    def __init__(self, stages: JobStages, rescue: Rescue, clock: Callable[[], float]) -> None:
        self._stages = stages
        self._rescue = rescue
        self._clock = clock

    def decode(self, ticket: Ticket, members: Sequence[Member], *, is_more_coming: bool) -> None:
        """Decode a job's next members, and tell who listens unless more come at once. Raises as `JobStages.decode`."""
        latents = [member.latents for member in members if member.latents is not None]
        ticket.members += list(self._stages.decode(ticket.job, latents, ticket.timings))
        # Told together, because half an antithetic pair is a worse mean than none of it.
        if ticket.listener is not None and not is_more_coming:
            news = ticket.members[ticket.num_told :]
            ticket.num_told = len(ticket.members)
            post(ticket.future, partial(ticket.listener.on_members, news))

    def tell_estimate(self, ticket: Ticket) -> None:
        """Tell who listens what the very first step says of the mean."""
        job, listener = ticket.job, ticket.listener
        if listener is None or not listener.wants_estimate or job.is_top_up or job.members[0].step != 1:
            return
        with contextlib.suppress(ServiceError):  # the job itself will tell
            estimate = self.estimate(ticket)
            if estimate is not None:
                post(ticket.future, partial(listener.on_estimate, estimate.members[0]))

    def finish(self, ticket: Ticket) -> WorkerResult:
        """Return what a job leaves. Raises as `estimate`."""
        if ticket.members or ticket.job.is_top_up:
            self._rescue.acquit(ticket.job)
            return self._result(ticket)
        estimate = self.estimate(ticket)
        if estimate is None:
            raise RuntimeError("a job without a step was said to have an answer")
        return estimate

    def estimate(self, ticket: Ticket) -> WorkerResult | None:
        """Decode where a job's first member is heading; None before its first step. Raises ServiceError."""
        member = ticket.job.members[0]
        if member.step == 0:
            return None
        try:
            latents = self._stages.point(ticket.job, member)
            frames = self._stages.decode(ticket.job, [latents], ticket.timings)
        except Exception as error:
            _log.exception("worker.engine_failed", job=ticket.job.id)
            raise refusal(error) from error
        return replace(
            self._result(ticket), members=(frames[0],), latents=(latents,), steps=member.step, is_estimate=True
        )

    def _result(self, ticket: Ticket) -> WorkerResult:
        latents = tuple(member.latents for member in ticket.job.whole_members if member.latents is not None)
        return WorkerResult(tuple(ticket.members), latents, ticket.timings_at(self._clock()), ticket.job.num_steps)
