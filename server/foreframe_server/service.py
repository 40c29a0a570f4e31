"""One query, from valid to answered: cache, shared ensemble, worker, cache. It knows no wire and no model family.

Queries that differ only in how many members they want, how exact and by when share one flight. Each rider has its own
deadline and may leave; the computation ends early only when the last one has left.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from foreframe_engines import Contract, OnDeadline, Prediction, Priority, Query, RolloutEngine
from foreframe_engines.schedule import num_steps
from foreframe_engines.spread import SpreadCalibration
from foreframe_server.cache import CacheKey, Lease, ResultCache, cache_key
from foreframe_server.calls import Answer, CachePolicy, CacheResult, Call, Degraded, Timings
from foreframe_server.cost_model import SlowQuantile
from foreframe_server.disconnects import ClientLeft, watching
from foreframe_server.errors import (
    CapabilityMissing,
    DeadlineExceeded,
    LoadedDeadline,
    Overloaded,
    ServiceError,
    Superseded,
    UnknownModel,
)
from foreframe_server.flights import Flight, Satisfaction
from foreframe_server.known_contexts import context_digest, is_large
from foreframe_server.metrics import Metrics
from foreframe_server.summaries import Summaries
from foreframe_server.tickets import Admitted, Frames
from foreframe_server.workers import Workers

_LEASE_WAIT_S = 60.0
_REPLY_MARGIN = 2.0
_WIRE_S = 0.005
_REPLY_SHARE = 0.25
_LEASE_SHARE = 0.5
"""Of the time that is left, at most so much is spent waiting for another server's members."""


@dataclass(frozen=True, slots=True)
class _Route:
    """Calls share a flight when they share members, a queue, a stream to be superseded in and a use of the cache.

    The key is of one tenant's. `owner` is whose stream it is, as streams of one name are others for another caller.
    """

    key: CacheKey
    policy: CachePolicy
    priority: Priority
    stream_id: str | None
    owner: str | None


@dataclass(frozen=True, slots=True, eq=False)
class _Taken:
    """The members that a rider leaves with. `is_cut`: time, not the rider, decided how many and of how many steps.

    `is_estimate`: none was whole, and the only one here is where the first was heading.
    """

    members: Sequence[Frames]
    steps: int
    is_cut: bool = False
    is_estimate: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Trip:
    """One rider's flight and what it left with."""

    flight: Flight
    taken: _Taken
    route: _Route | None
    is_joined: bool


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """What a call has so far: an estimate of the mean after the first step, or the members that are whole."""

    prediction: Prediction
    is_estimate: bool


class Watch(Protocol):
    """Hears what becomes of a call before its answer."""

    def on_accepted(self) -> None:
        """Hear that it is being computed, here or by another server; may be heard more than once."""

    def on_progress(self, progress: Progress) -> None:
        """Hear of an improvement, after it was accepted."""


OnAnswer = Callable[[Query, Call, Answer], None]
"""Hears of every answer, whatever door asked; must not wait."""


def ignore_answer(_query: Query, _call: Call, _answer: Answer) -> None:
    """Hear of an answer in vain."""


def reserved_s(reply_s: float, budget_s: float) -> float:
    """Return what is kept of a budget for reducing an answer and writing it down, which take `reply_s`."""
    return min(_REPLY_MARGIN * reply_s + _WIRE_S, _REPLY_SHARE * budget_s)


class PredictionService:
    """Answers queries about one rollout model.

    engine_fingerprint: what, beside the query, decides an answer's bytes: bundle digest, backend, precision.
    determinism: what equal queries may count on, where it was measured; by default what the engine says of itself.
    calibration: tells which spreads are usual.
    Close it after the worker has stopped and before the cache is closed.
    """

    def __init__(  # noqa: PLR0913 - the parts it joins, each once
        self,
        worker: Workers,
        cache: ResultCache,
        metrics: Metrics,
        engine: RolloutEngine,
        *,
        engine_fingerprint: str,
        determinism: str | None = None,
        calibration: SpreadCalibration | None = None,
        on_answer: OnAnswer = ignore_answer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.contract: Contract = engine.contract
        self.determinism = determinism or engine.determinism
        self._worker = worker
        self._cache = cache
        self._metrics = metrics
        self._fingerprint = f"{engine_fingerprint} {self.determinism}"
        self._calibration = calibration
        self._on_answer = on_answer
        self._clock = clock
        self._summaries = Summaries()
        self._reply_s = SlowQuantile()
        self._flights: dict[_Route, Flight] = {}
        self._stores: set[asyncio.Task[None]] = set()

    @property
    def is_ready(self) -> bool:
        """Whether calls are answered."""
        return self._worker.is_ready

    async def predict(self, query: Query, call: Call, watch: Watch | None = None) -> Answer:
        """Answer one query. watch: hears of it, unless the answer was there at once.

        Raises UnknownModel, CapabilityMissing, NotReady, Overloaded, TooExpensive, DeadlineUnmeetable, LoadedDeadline,
        DeadlineExceeded, Superseded, ModelFault, or ClientLeft after a disconnect.
        """
        try:
            self._check(query, call)
            taken = await self._fly(query, self._hurried(call), watch)
            answer = await self._answer(taken, query, call)
        except ServiceError as error:
            self._count_refusal(error)
            raise
        self._count_answer(answer, call)
        self._on_answer(query, call, answer)
        return answer

    def observe_reply(self, seconds: float) -> None:
        """Learn what it takes to reduce an answer and write it down: that much is kept free before deadlines."""
        self._reply_s.observe(seconds)

    async def close(self) -> None:
        """Wait until everything that was computed is stored."""
        await asyncio.gather(*self._stores)

    def _check(self, query: Query, call: Call) -> None:
        if query.model != self.contract.model:
            raise UnknownModel("No model of this name is loaded.")
        if "predict" not in self.contract.capabilities:
            raise CapabilityMissing("The model does not predict frames.")
        if self._has_passed(call.deadline_s):
            raise DeadlineExceeded("The deadline had passed when the request was read.")

    def _hurried(self, call: Call) -> Call:
        """Bring a call's deadline forward by what its reply will take."""
        if call.deadline_s is None:
            return call
        budget_s = max(0.0, call.deadline_s - call.received_s)
        return replace(call, deadline_s=call.deadline_s - reserved_s(self._reply_s.value, budget_s))

    async def _fly(self, query: Query, call: Call, watch: Watch | None) -> _Trip:
        call = await _digested(query, call)
        route = self._route(query, call)
        while True:
            flight = None if route is None else self._flights.get(route)
            is_joined = flight is not None and self._stretch(flight, query, call)
            if flight is None or not is_joined:
                is_joined = False
                flight = self._launch(query, call, route, wants_estimate=watch is not None)
            async with self._riding(flight, route):
                taken = await self._ride(flight, query, call, watch)
            if taken is not None:
                return _Trip(flight, taken, route, is_joined)
            # It ended before it could grow to this rider's size; the next one goes on from its members.

    def _route(self, query: Query, call: Call) -> _Route | None:
        if call.cache is CachePolicy.BYPASS:
            return None
        key = cache_key(query, self._fingerprint, call.tenant, call.context_digest)
        return _Route(key, call.cache, query.priority, query.stream_id, None if query.stream_id is None else call.key)

    def _launch(self, query: Query, call: Call, route: _Route | None, *, wants_estimate: bool) -> Flight:
        flight = Flight(query, call, wants_estimate=wants_estimate)
        if route is None:
            ticket = self._admit(flight)
            flight.landing = asyncio.create_task(self._wait(flight, ticket))
        else:
            flight.landing = asyncio.create_task(self._land(flight, route))
            self._flights[route] = flight
        flight.landing.add_done_callback(_look_at)
        return flight

    def _stretch(self, flight: Flight, query: Query, call: Call) -> bool:
        """Make room for one more rider; False when the flight cannot take it."""
        if self._has_passed(flight.terms.deadline_s) or flight.is_shortened or flight.landing.done():
            return False
        ticket, size = flight.ticket, query.ensemble.size
        if ticket is not None and size > flight.size and not self._worker.grow(ticket, size):
            return False
        flight.stretch(query, call)
        if ticket is not None:
            self._worker.extend(ticket, flight.terms.deadline_s, flight.terms.on_deadline)
        return True

    @contextlib.asynccontextmanager
    async def _riding(self, flight: Flight, route: _Route | None) -> AsyncIterator[None]:
        flight.num_riders += 1
        try:
            yield
        finally:
            flight.num_riders -= 1
            if flight.num_riders == 0:
                self._forget(flight, route)
                flight.landing.cancel()

    def _forget(self, flight: Flight, route: _Route | None) -> None:
        if route is not None and self._flights.get(route) is flight:
            del self._flights[route]

    async def _land(self, flight: Flight, route: _Route) -> None:
        """Bring the members that are known, then compute the rest."""
        lease = None
        try:
            if route.policy is CachePolicy.USE:
                await self._look_up(flight, route.key)
                lease = await self._take_lease(flight, route.key)
            if len(flight.members) < flight.size:
                await self._compute(flight)
        finally:
            self._keep(flight, route, lease)
            self._forget(flight, route)

    async def _look_up(self, flight: Flight, key: CacheKey) -> None:
        lookup = await self._cache.get(key, flight.size)
        flight.lookup = lookup.result
        if lookup.members is not None:
            flight.adopt(list(lookup.members))

    async def _take_lease(self, flight: Flight, key: CacheKey) -> Lease | None:
        """Be the one server that computes, or wait for the one that does and take its members."""
        started_s = self._clock()
        while len(flight.members) < flight.size:
            lease = await self._cache.lease(key)
            if lease is None:
                return None
            if lease.is_held:
                # Its last holder may have shared and let go between the look and the claim.
                await self._look_up(flight, key)
                return lease
            patience_s = self._lease_patience_s(flight, started_s)
            if patience_s <= 0:
                return lease
            flight.accept()
            await lease.wait(patience_s)
            await self._look_up(flight, key)
        return None

    def _lease_patience_s(self, flight: Flight, started_s: float) -> float:
        deadline_s = flight.terms.deadline_s
        budget_s = _LEASE_WAIT_S if deadline_s is None else _LEASE_SHARE * (deadline_s - started_s)
        return started_s + budget_s - self._clock()

    async def _compute(self, flight: Flight) -> None:
        try:
            await self._wait(flight, self._admit(flight))
        except (Overloaded, LoadedDeadline):  # at once from a device here, a little later from elsewhere
            if flight.members and flight.terms.on_deadline is not OnDeadline.FAIL:
                return  # what was known before is better than nothing
            raise

    def _admit(self, flight: Flight) -> Admitted:
        """Let the worker compute what a flight lacks. Raises what the worker's `admit` raises."""
        ticket = self._worker.admit(flight.query, flight.terms, first_member=len(flight.members), listener=flight)
        flight.ticket = ticket
        flight.accept()
        return ticket

    async def _wait(self, flight: Flight, ticket: Admitted) -> None:
        try:
            flight.result = await self._worker.wait(ticket)
        finally:
            self._metrics.observe_stages(self._timings(flight))

    def _keep(self, flight: Flight, route: _Route, lease: Lease | None) -> None:
        """Store what was computed, after the riders have it; in memory at once, so that the next call finds it."""
        if flight.num_computed > 0 and not flight.is_shortened:
            members = np.stack(flight.members)
            self._cache.remember(route.key, members)
            self._store(self._share(route.key, members, lease))
        elif lease is not None:
            self._store(lease.release())

    async def _share(self, key: CacheKey, members: np.ndarray, lease: Lease | None) -> None:
        await self._cache.share(key, members)
        if lease is not None:
            await lease.release()

    def _store(self, work: Coroutine[None, None, None]) -> None:
        store = asyncio.create_task(work)
        self._stores.add(store)
        store.add_done_callback(self._stores.discard)

    async def _ride(self, flight: Flight, query: Query, call: Call, watch: Watch | None) -> _Taken | None:
        """Stay until there is enough, the flight ends or time is up; None when it ended too small for this rider."""
        satisfaction, steps = Satisfaction(query), num_steps(query.sampling)
        num_told = 0
        async with watching(call) as client_left:
            while True:
                # Looked at before the members are: what comes while they are counted is looked at next time.
                is_landed, changed = flight.landing.done(), flight.changed
                members = tuple(flight.members)
                is_whole = not flight.is_shortened
                count = await _enough(satisfaction, members) if is_whole else None
                if count is not None:
                    if len(members) >= flight.size:
                        await asyncio.wait({flight.landing})  # only its end is left to be booked
                    return _Taken(members[:count], steps)
                if is_landed:
                    return self._last(flight, query, call)
                if watch is not None and flight.is_accepted and not flight.landing.done():
                    watch.on_accepted()
                    num_told = await self._tell(watch, flight, query, num_told)
                if await self._is_time_up(flight, changed, client_left, call):
                    return await self._leave_early(flight, call)

    async def _is_time_up(
        self, flight: Flight, changed: asyncio.Future[None], client_left: asyncio.Future[None], call: Call
    ) -> bool:
        """Wait for news; True when this rider's time is up before the flight's. Raises ClientLeft, DeadlineExceeded."""
        left_s = None if call.deadline_s is None else call.deadline_s - self._clock()
        if left_s is not None and left_s <= 0:
            if call.on_deadline is OnDeadline.FAIL:
                raise DeadlineExceeded("The deadline passed before the answer was ready.")
            if flight.members or flight.terms.deadline_s != call.deadline_s:
                return True
            left_s = None  # the worker ends this job at the next step border, with where its first member is heading
        waited = {flight.landing, changed, client_left}
        await asyncio.wait(waited, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if client_left.done() and not (flight.landing.done() or changed.done()):
            raise ClientLeft("The client left.")
        return False

    async def _tell(self, watch: Watch, flight: Flight, query: Query, num_told: int) -> int:
        """Pass on what is new since `num_told` members were passed on; returns how many are known now."""
        members = tuple(flight.members[: query.ensemble.size])
        if len(members) > num_told:
            prediction = await self._summaries.summarise(query, members, steps=flight.steps)
            watch.on_progress(Progress(prediction, is_estimate=False))
        elif flight.estimate is not None and not members:
            prediction = await self._summaries.summarise(query, [flight.estimate], steps=1)
            flight.estimate = None
            watch.on_progress(Progress(prediction, is_estimate=True))
        return len(members)

    def _last(self, flight: Flight, query: Query, call: Call) -> _Taken | None:
        """Take what a flight that has ended leaves. Raises what ended it, or DeadlineExceeded."""
        flight.landing.result()
        result, size = flight.result, query.ensemble.size
        if result is not None and result.is_estimate:
            taken = _Taken(result.members, result.steps, is_cut=True, is_estimate=True)
        elif len(flight.members) >= flight.size and not flight.is_shortened:
            return None  # whole, and yet not enough: it was too late to grow
        else:
            taken = _Taken(flight.members[:size], flight.steps, is_cut=True)
        is_less = taken.is_estimate or taken.steps < num_steps(query.sampling)
        if call.on_deadline is OnDeadline.FAIL or (call.on_deadline is OnDeadline.PARTIAL and is_less):
            raise DeadlineExceeded("The deadline passed before the answer was ready.")
        return taken

    async def _leave_early(self, flight: Flight, call: Call) -> _Taken:
        if flight.members and (call.on_deadline is OnDeadline.DEGRADE or not flight.is_shortened):
            return _Taken(tuple(flight.members), flight.steps, is_cut=True)
        if call.on_deadline is OnDeadline.DEGRADE and flight.ticket is not None:
            result = await self._worker.estimate(flight.ticket)
            if result is not None:
                return _Taken(result.members, result.steps, is_cut=True, is_estimate=True)
        raise DeadlineExceeded("The deadline passed before there was anything to return.")

    async def _answer(self, trip: _Trip, query: Query, call: Call) -> Answer:
        started_s = self._clock()
        flight, taken, route = trip.flight, trip.taken, trip.route
        digest = None if route is None or taken.is_estimate else route.key.digest
        prediction = await self._summaries.summarise(query, taken.members, steps=taken.steps, digest=digest)
        timings = self._timings(flight)
        timings.reduce = 1000 * (self._clock() - started_s)
        from_cache = min(flight.num_cached, len(taken.members))
        is_late = self._has_passed(call.deadline_s)
        if call.on_deadline is OnDeadline.FAIL and is_late:
            raise DeadlineExceeded("The deadline passed before the answer was ready.")
        return Answer(
            prediction=prediction,
            cache=_cache_result(trip),
            from_cache=from_cache,
            timings=timings,
            deadline_met=not is_late,
            degraded=Degraded(len(taken.members), taken.steps, "deadline") if taken.is_cut else None,
            determinism=self.determinism,
            judgement=None if self._calibration is None else self._calibration.judge(prediction),
        )

    def _timings(self, flight: Flight) -> Timings:
        if flight.result is not None:
            return replace(flight.result.timings)
        return Timings() if flight.ticket is None else self._worker.timings(flight.ticket)

    def _has_passed(self, deadline_s: float | None) -> bool:
        return deadline_s is not None and deadline_s <= self._clock()

    def _count_answer(self, answer: Answer, call: Call) -> None:
        prediction = answer.prediction
        self._metrics.observe_members("requested", prediction.ensemble.size)
        self._metrics.observe_members("returned", prediction.num_members)
        if answer.from_cache:
            self._metrics.observe_members("cached", answer.from_cache)
        if prediction.num_members > 1:
            self._metrics.count_spread("uncalibrated" if answer.judgement is None else answer.judgement.verdict)
        if call.deadline_s is not None:
            on_time = "met" if answer.deadline_met else "late"
            self._metrics.count_deadline(on_time if answer.degraded is None else "degraded")

    def _count_refusal(self, error: ServiceError) -> None:
        if isinstance(error, DeadlineExceeded):
            self._metrics.count_deadline("exceeded")
        elif not isinstance(error, ClientLeft | Superseded):
            self._metrics.count_rejected(error.code)


async def _digested(query: Query, call: Call) -> Call:
    """Look at a large context once, in a thread: the results and the encoded contexts are both found by its digest."""
    is_needed = call.cache is not CachePolicy.BYPASS or query.context_latents is None
    if not (is_needed and is_large(query.context)):
        return call
    return replace(call, context_digest=await asyncio.to_thread(context_digest, query.context))


async def _enough(satisfaction: Satisfaction, members: Sequence[Frames]) -> int | None:
    if satisfaction.is_cheap:
        return satisfaction.enough(members)
    return await asyncio.to_thread(satisfaction.enough, members)


def _cache_result(trip: _Trip) -> CacheResult:
    if trip.route is None:
        return CacheResult.BYPASS
    if trip.flight.num_cached >= len(trip.taken.members):
        return CacheResult.HIT
    if trip.is_joined:
        return CacheResult.JOINED
    return CacheResult.PARTIAL if trip.flight.num_cached else trip.flight.lookup


def _look_at(landing: asyncio.Task[None]) -> None:
    """Retrieve what a flight failed with: riders that stayed raise it, and there may be none."""
    if not landing.cancelled():
        landing.exception()
