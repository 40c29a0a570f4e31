"""Sequences of the tensor door: a session behind a client's own id. Knows sessions, and neither bytes nor engines."""

import contextlib
from dataclasses import dataclass

from foreframe_server.calls import Answer, Call
from foreframe_server.codec import Asked, Inference, SequenceMark, continue_from
from foreframe_server.errors import Gone, Reason, ServiceError
from foreframe_server.kserve_sequences import SequenceBook, SequenceKey
from foreframe_server.session_service import SessionService
from foreframe_server.sessions import SessionSeed, StepAsk, StepSampling, UnknownSession


@dataclass(frozen=True, slots=True, eq=False)
class SequenceStep:
    """One step of a sequence. `seed` is the request's own, None when it names none."""

    sessions: SessionService
    book: SequenceBook
    mark: SequenceMark
    seed: int | None
    tenant: str

    @property
    def _sequence(self) -> SequenceKey:
        return SequenceKey(self.tenant, self.mark.sequence_id)

    async def complete(self, inference: Inference) -> Inference:
        """Give a step of a running sequence what it starts from. Raises UnknownSession, Gone or InvalidRequest."""
        if self.mark.is_start:
            return inference
        session_id = self._running()
        try:
            context = (await self.sessions.get(session_id, tenant=self.tenant)).context
        except (UnknownSession, Gone):
            self.book.end(self._sequence, session_id)
            raise
        return continue_from(inference, context.frames, context.states)

    async def answer(self, asked: Asked, call: Call) -> Answer:
        """Make the step. Raises what a session's step does."""
        answer = await (self._start(asked, call) if self.mark.is_start else self._go_on(asked, call))
        if self.mark.is_end:
            await self._end(self._running())
        return answer

    async def _start(self, asked: Asked, call: Call) -> Answer:
        query, count = asked.query, self.sessions.contract.context_frames
        session = await self.sessions.create(SessionSeed(query.context, query.states[:count], seed=self.seed), call)
        try:
            stepped = await self.sessions.step(session.session_id, self._ask(asked, None), call)
        except BaseException:
            await self._delete(session.session_id)
            raise
        before = self.book.begin(self._sequence, session.session_id)
        if before is not None:
            await self._delete(before)
        return stepped.answer

    async def _go_on(self, asked: Asked, call: Call) -> Answer:
        return (await self.sessions.step(self._running(), self._ask(asked, self.seed), call)).answer

    async def _end(self, session_id: str) -> None:
        self.book.end(self._sequence, session_id)
        await self._delete(session_id)

    async def _delete(self, session_id: str) -> None:
        with contextlib.suppress(ServiceError):  # it may have ended by itself
            await self.sessions.delete(session_id, tenant=self.tenant)

    def _running(self) -> str:
        session_id = self.book.find(self._sequence)
        if session_id is None:
            reason = Reason("sequence_id", "does not run", "sequence_start with its first step")
            raise UnknownSession("No sequence of this id runs.", reasons=[reason])
        return session_id

    def _ask(self, asked: Asked, seed: int | None) -> StepAsk:
        query, count = asked.query, self.sessions.contract.context_frames
        sampling = query.sampling
        return StepAsk(
            states=query.states[count:],
            sampling=StepSampling(sampling.strategy, sampling.steps, sampling.guidance, seed),
            ensemble=query.ensemble,
            priority=query.priority,
        )
