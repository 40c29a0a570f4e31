"""Sessions: a stateful rollout, stepped window by window, forked, rolled back, and met with what really arrived.

The next context is encoded once the reply to a step is written. Knows no wire and no model family.
"""

import asyncio
import contextlib
import secrets
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import fields, replace
from functools import partial

import numpy as np
import structlog
from jaxtyping import Float32, UInt8

from foreframe_engines import Contract, Prediction, Query, Sampling, Strategy
from foreframe_engines.types import Latents
from foreframe_server.calls import Answer, Call, Timings
from foreframe_server.errors import DeadlineExceeded, Gone, Reason, ServiceError, StateDimMismatch
from foreframe_server.metrics import Metrics
from foreframe_server.service import PredictionService
from foreframe_server.session_store import SessionStore
from foreframe_server.sessions import (
    MAX_SEED,
    Pushed,
    Session,
    SessionSeed,
    StepAnswer,
    StepAsk,
    Stretch,
    check_turn,
    first_stretch,
    own_stretch,
    tail,
)
from foreframe_server.shared_sessions import SharedSessions
from foreframe_server.workers import Workers

_ID_BYTES = 18

_log = structlog.get_logger(__name__)


_REPLY_S = 0.01
"""How long the encoding of the next context waits for the reply to be written, where nobody says that it is."""


class _Encoding:
    """A context's latents: to be made, being made or there. They are None when that failed; the step makes them then.

    make: makes them. It is begun after a moment at the latest.
    """

    def __init__(self, make: Callable[[], Awaitable[Latents | None]], num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._make = make
        self._making: asyncio.Future[Latents | None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_REPLY_S, self.begin)

    def begin(self) -> None:
        """Make them now."""
        self._timer.cancel()
        if self._making is None:
            self._making = asyncio.ensure_future(self._make())

    async def latents(self) -> Latents | None:
        """Wait for them; whoever else waits goes on when this one leaves."""
        self.begin()
        return None if self._making is None else await asyncio.shield(self._making)


class SessionService:
    """Holds and steps the sessions of one rollout model, on one event loop; `close` it after the worker has stopped.

    shared: where other servers find the sessions, if anywhere.
    """

    def __init__(
        self,
        predictions: PredictionService,
        worker: Workers,
        store: SessionStore,
        metrics: Metrics,
        *,
        shared: SharedSessions | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.contract: Contract = predictions.contract
        self.store = store
        self._predictions = predictions
        self._worker = worker
        self._metrics = metrics
        self._shared = shared
        self._clock = clock
        self._encodings: weakref.WeakSet[_Encoding] = weakref.WeakSet()

    async def create(self, seed: SessionSeed, call: Call) -> Session:
        """Start a session. Raises InvalidRequest for too few frames, TooExpensive for too much memory."""
        start = first_stretch(seed, self.contract.context_frames)
        session = Session(
            session_id=secrets.token_urlsafe(_ID_BYTES),
            tenant=call.tenant,
            seed=secrets.randbelow(MAX_SEED + 1) if seed.seed is None else seed.seed,
            ttl_s=self.store.limits.ttl_s if seed.ttl_s is None else seed.ttl_s,
            start=start,
            seen=start,
        )
        session = self._with_encoding(session, seed.latents)
        self.store.put(session)
        self._metrics.count_session("created")
        self._share(session)
        return session

    async def step(self, session_id: str, ask: StepAsk, call: Call) -> StepAnswer:
        """Predict the frames after the next state rows, window by window, and commit them.

        A step that fails changes nothing; the last step asked again gives its bytes again. Steps of one session wait
        for each other. Raises UnknownSession, Gone, StepOutOfOrder, StateDimMismatch, and what a prediction raises.
        """
        self._check_rows(ask)
        ask = replace(ask, states=np.array(ask.states, np.float32))
        async with self._turn(session_id, call.tenant, call.deadline_s):
            session = await self._newest(session_id, call.tenant, ask)
            if check_turn(session, ask):
                return _repeated(session)
            answer = await self._roll(session, ask, call)
            self._commit(session.stepped(ask, answer, max_ahead=self.contract.horizon))
        step_id = session.step_id + 1
        return StepAnswer(session_id, step_id, step_id, answer)

    async def push(
        self,
        session_id: str,
        frames: UInt8[np.ndarray, "n h w 3"],
        states: Float32[np.ndarray, "n d"],
        *,
        tenant: str = "",
    ) -> Pushed:
        """Take in what really arrived, one frame a tick, and compare it with what was predicted for these ticks.

        The next step starts from it. Raises UnknownSession or Gone.
        """
        async with self._turn(session_id, tenant):
            session = self.store.get(session_id, tenant)
            pushed = session.pushed(own_stretch(session.step_id, frames, states))
            committed = self._commit(pushed.session)
        for each in pushed.compared:
            if each.psnr_db is not None:
                self._metrics.observe_psnr(each.psnr_db)
        return replace(pushed, session=committed)

    async def fork(self, session_id: str, *, tenant: str = "") -> Session:
        """Start a session that goes on from where another stands, and share its memory. Raises UnknownSession, Gone."""
        session = await self._find(session_id, tenant)
        fork = replace(session, session_id=secrets.token_urlsafe(_ID_BYTES))
        self.store.put(fork)
        self._metrics.count_session("forked")
        self._share(fork)
        return fork

    async def rollback(self, session_id: str, step_id: int, *, tenant: str = "") -> Session:
        """Take back every step after this one. Raises UnknownSession, Gone or StepOutOfOrder."""
        async with self._turn(session_id, tenant):
            return self._commit(self.store.get(session_id, tenant).rolled_back(step_id))

    async def reset(
        self, session_id: str, *, tenant: str = "", start: SessionSeed | None = None, noise_seed: int | None = None
    ) -> Session:
        """Go back to the start, or to another one, of which the frames and states count. Raises as `create` and `get`.

        noise_seed: None keeps the session's.
        """
        other = None if start is None else first_stretch(start, self.contract.context_frames)
        async with self._turn(session_id, tenant):
            session = self.store.get(session_id, tenant)
            seed = session.seed if noise_seed is None else noise_seed
            restarted = session.restarted(other or session.start, seed)
            if start is not None:
                restarted = self._with_encoding(restarted, start.latents)
            return self._commit(restarted)

    async def get(self, session_id: str, *, tenant: str = "") -> Session:
        """Return a session as it stands. Raises UnknownSession, or Gone when it has ended."""
        return await self._find(session_id, tenant)

    async def delete(self, session_id: str, *, tenant: str = "") -> None:
        """End a session. Raises UnknownSession or Gone."""
        await self._find(session_id, tenant)
        self.store.delete(session_id, tenant)
        if self._shared is not None:
            await self._shared.delete(session_id)

    def prepare(self, session_id: str) -> None:
        """Encode a session's next context now: what it was to wait for is done."""
        session = self.store.peek(session_id)
        if session is not None and isinstance(session.encoding, _Encoding):
            session.encoding.begin()

    async def close(self) -> None:
        """Let what is to be encoded and shared end."""
        for encoding in tuple(self._encodings):
            await encoding.latents()
        if self._shared is not None:
            await self._shared.close()

    @contextlib.asynccontextmanager
    async def _turn(self, session_id: str, tenant: str, deadline_s: float | None = None) -> AsyncIterator[None]:
        """Hold a session's turn for a block, which ends it however it is left. Raises DeadlineExceeded before it."""
        await self._find(session_id, tenant)
        turn = self.store.turn(session_id, tenant)
        left_s = None if deadline_s is None else max(0.0, deadline_s - self._clock())
        try:
            async with asyncio.timeout(left_s if turn.locked() else None):
                await turn.acquire()
        except TimeoutError:
            raise DeadlineExceeded("The deadline passed while the session made earlier steps.") from None
        try:
            yield
        finally:
            turn.release()

    async def _find(self, session_id: str, tenant: str) -> Session:
        """Return a session, from another server where this one does not hold it."""
        try:
            return self.store.get(session_id, tenant)
        except (ServiceError, Gone):
            if self._shared is None or self.store.was_deleted(session_id):
                raise
            session = await self._shared.get(session_id)
            if session is None or session.tenant != tenant:
                raise
        if self.store.peek(session_id) is None:  # not brought by another call meanwhile
            self.store.put(self._with_encoding(session))
            self._metrics.count_session("resumed")
        return self.store.get(session_id, tenant)

    async def _newest(self, session_id: str, tenant: str, ask: StepAsk) -> Session:
        """Return a session; where a step is ahead of it, as another server may have left it meanwhile."""
        session = self.store.get(session_id, tenant)
        if self._shared is None or ask.step_id is None or ask.step_id <= session.step_id + 1:
            return session
        shared = await self._shared.get(session_id)
        if shared is None or shared.tenant != tenant or shared.step_id <= session.step_id:
            return session
        self.store.replace(self._with_encoding(shared))
        self._metrics.count_session("resumed")
        return self.store.get(session_id, tenant)

    def _commit(self, session: Session) -> Session:
        """Hold what became of a session, and begin to encode its next context."""
        session = session.trimmed(self.store.limits.history_bytes)
        if session.encoding is None:
            session = self._with_encoding(session)
        self.store.replace(session)
        self._share(session)
        return session

    def _share(self, session: Session) -> None:
        if self._shared is not None:
            self._shared.put_soon(session)

    def _with_encoding(self, session: Session, latents: Latents | None = None) -> Session:
        num_bytes = 4 * self.contract.context_latents * int(np.prod(self.contract.latent_shape))
        encoding = _Encoding(partial(self._encode, session.context.frames, latents), num_bytes)
        self._encodings.add(encoding)
        return replace(session, encoding=encoding)

    async def _encode(self, context: UInt8[np.ndarray, "t h w 3"], known: Latents | None) -> Latents | None:
        try:
            return await self._worker.encode(context) if known is None else known
        except ServiceError as error:
            _log.warning("session.encode_failed", code=error.code)
            return None

    def _check_rows(self, ask: StepAsk) -> None:
        limit = self.store.limits.max_step_rows
        shape, dim = ask.states.shape, self.contract.state.dim
        if len(shape) != 2 or shape[1] != dim or not 1 <= shape[0] <= limit:
            reason = Reason("/future/values", "the states have the wrong shape", f"1..{limit} rows of {dim} numbers")
            raise StateDimMismatch("The step's states do not fit the model.", reasons=[reason])

    async def _roll(self, session: Session, ask: StepAsk, call: Call) -> Answer:
        """Predict the step's rows in windows of the model's horizon, each from the last frames before it."""
        context, latents = session.context, await _latents(session)
        answers: list[Answer] = []
        for start in range(0, len(ask.states), self.contract.horizon):
            rows = ask.states[start : start + self.contract.horizon]
            query = self._query(session, ask, context, rows, start)
            answers.append(await self._predictions.predict(replace(query, context_latents=latents), call))
            made = Stretch(session.step_id, answers[-1].prediction.frames, rows)
            context, latents = tail((context, made), session.context_frames), None
        # What is usual was measured on true context, and a session's may be predicted.
        return replace(chain(answers), judgement=None)

    def _query(
        self, session: Session, ask: StepAsk, context: Stretch, rows: Float32[np.ndarray, "n d"], num_before: int
    ) -> Query:
        return Query(
            model=self.contract.model,
            context=context.frames,
            states=np.concatenate([context.states, rows]),
            frame_indices=tuple(range(1, len(rows) + 1)),
            sampling=self._sampling(session, ask, num_before),
            ensemble=ask.ensemble,
            priority=ask.priority,
        )

    def _sampling(self, session: Session, ask: StepAsk, num_before: int) -> Sampling:
        """Complete how a window is drawn: its seed is the step's, or the session's at this frame, one more a frame."""
        asked, own = ask.sampling, self.contract.sampler
        is_mean = asked.strategy is Strategy.POSTERIOR_MEAN
        first = session.seed + session.num_frames if asked.seed is None else asked.seed
        guidance = 1.0 if own.guidance is None else own.guidance
        return Sampling(
            strategy=asked.strategy,
            steps=1 if is_mean else asked.steps or own.steps,
            seed=(first + num_before) % (MAX_SEED + 1),
            guidance=guidance if asked.guidance is None else asked.guidance,
        )


async def _latents(session: Session) -> Latents | None:
    """Wait for the latents of a session's next context."""
    encoding = session.encoding
    return await encoding.latents() if isinstance(encoding, _Encoding) else None


def _repeated(session: Session) -> StepAnswer:
    """Answer the last step again."""
    if session.last is None:
        raise RuntimeError("a session without a step was said to have made it")
    answer = replace(session.last.answer, timings=replace(session.last.answer.timings))
    return StepAnswer(session.session_id, session.step_id, session.step_id, answer, is_repeat=True)


def chain(answers: Sequence[Answer]) -> Answer:
    """Put the answers of windows in a row into one; where they rest on different members it has the fewest."""
    if len(answers) == 1:
        return answers[0]
    return replace(
        answers[0],
        prediction=_chain_predictions([answer.prediction for answer in answers]),
        from_cache=min(answer.from_cache for answer in answers),
        timings=_sum_timings([answer.timings for answer in answers]),
        deadline_met=all(answer.deadline_met for answer in answers),
        degraded=next((answer.degraded for answer in answers if answer.degraded is not None), None),
    )


def _chain_predictions(windows: Sequence[Prediction]) -> Prediction:
    count = min(window.num_members for window in windows)
    frames = np.concatenate([window.frames for window in windows])
    return replace(
        windows[0],
        frame_indices=tuple(range(1, len(frames) + 1)),
        frames=frames,
        members=np.concatenate([window.members[:count] for window in windows], axis=1),
        variance=np.concatenate([window.variance for window in windows]),
        spread_per_frame=tuple(spread for window in windows for spread in window.spread_per_frame),
        # Of one window only: members of different windows are not the same members.
        correlation=None,
        effective_members=None,
        standard_error=None,
    )


def _sum_timings(windows: Sequence[Timings]) -> Timings:
    total = Timings()
    for field in fields(Timings):
        values = [getattr(timings, field.name) for timings in windows]
        setattr(total, field.name, any(values) if field.name == "cold" else sum(values))
    total.step_batch_mean /= len(windows)
    return total
