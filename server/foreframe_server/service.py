"""One query, from valid to answered: cache, single flight, worker, cache. It knows no wire and no model family.

Equal queries that are asked at the same time share one computation, a flight. Each rider of a flight has its own
deadline and may leave; the computation ends early only when the last one has left.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

from foreframe_engines import Contract, OnDeadline, Prediction, Priority, Query, RolloutEngine
from foreframe_server.cache import CacheKey, ResultCache, cache_key
from foreframe_server.calls import Answer, CachePolicy, CacheResult, Call, Degraded, Timings
from foreframe_server.disconnects import ClientLeft, watching
from foreframe_server.errors import (
    CapabilityMissing,
    DeadlineExceeded,
    ServiceError,
    Superseded,
    UnknownModel,
)
from foreframe_server.metrics import Metrics
from foreframe_server.scheduler import later_deadline
from foreframe_server.worker import EngineWorker, Ticket, WorkerResult


@dataclass(frozen=True, slots=True)
class _Route:
    """Calls share a flight when they share a result, a queue, a stream to be superseded in and a use of the cache."""

    key: CacheKey
    policy: CachePolicy
    priority: Priority
    stream_id: str | None


@dataclass(frozen=True, slots=True, eq=False)
class _Landing:
    """What a flight brought its riders."""

    prediction: Prediction
    cache: CacheResult
    timings: Timings = field(default_factory=Timings)
    degraded: Degraded | None = None


@dataclass(slots=True, eq=False)
class _Flight:
    """One computation. `terms` are the first rider's, stretched to the latest deadline and the mildest end of all."""

    query: Query
    terms: Call
    route: _Route | None
    landing: asyncio.Task[_Landing] = field(init=False)
    ticket: Ticket | None = None
    num_riders: int = 0


class PredictionService:
    """Answers queries about one rollout model.

    engine_fingerprint: what, beside the query, decides an answer's bytes: bundle digest, backend, precision.
    Close it after the worker has stopped and before the cache is closed.
    """

    def __init__(
        self,
        worker: EngineWorker,
        cache: ResultCache,
        metrics: Metrics,
        engine: RolloutEngine,
        *,
        engine_fingerprint: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.contract: Contract = engine.contract
        self.determinism = engine.determinism
        self._worker = worker
        self._cache = cache
        self._metrics = metrics
        self._fingerprint = f"{engine_fingerprint} {engine.determinism}"
        self._clock = clock
        self._flights: dict[_Route, _Flight] = {}
        self._stores: set[asyncio.Task[None]] = set()
        metrics.describe_model(engine.contract, engine.determinism)

    @property
    def is_ready(self) -> bool:
        """Whether calls are answered."""
        return self._worker.is_ready

    async def predict(self, query: Query, call: Call) -> Answer:
        """Answer one query.

        Raises UnknownModel, CapabilityMissing, NotReady, Overloaded, TooExpensive, DeadlineExceeded, Superseded,
        ModelFault, or ClientLeft after a disconnect.
        """
        try:
            self._check(query, call)
            answer = await self._fly(query, call)
        except ServiceError as error:
            self._count_refusal(error)
            raise
        self._count_answer(answer, call)
        return answer

    async def close(self) -> None:
        """Wait until every finished prediction is stored."""
        await asyncio.gather(*self._stores)

    def _check(self, query: Query, call: Call) -> None:
        if query.model != self.contract.model:
            raise UnknownModel("No model of this name is loaded.")
        if "predict" not in self.contract.capabilities:
            raise CapabilityMissing("The model does not predict frames.")
        if self._has_passed(call.deadline_s):
            raise DeadlineExceeded("The deadline had passed when the request was read.")

    async def _fly(self, query: Query, call: Call) -> Answer:
        route = await self._route(query, call)
        flight = None if route is None else self._flights.get(route)
        is_joined = flight is not None and not self._has_passed(flight.terms.deadline_s)
        if flight is None or not is_joined:
            flight = self._launch(query, call, route)
        else:
            self._stretch(flight, call)
        async with self._riding(flight):
            landing = await self._wait(flight, call)
        return self._answer(landing, call, is_joined=is_joined)

    async def _route(self, query: Query, call: Call) -> _Route | None:
        if call.cache is CachePolicy.BYPASS:
            return None
        key = await asyncio.to_thread(cache_key, query, self._fingerprint)
        return _Route(key, call.cache, query.priority, query.stream_id)

    def _launch(self, query: Query, call: Call, route: _Route | None) -> _Flight:
        flight = _Flight(query, call, route)
        flight.landing = asyncio.create_task(self._land(flight))
        if route is not None:
            self._flights[route] = flight
        return flight

    def _stretch(self, flight: _Flight, call: Call) -> None:
        terms = flight.terms
        deadline_s = later_deadline(terms.deadline_s, call.deadline_s)
        on_deadline = call.on_deadline if terms.on_deadline is OnDeadline.FAIL else terms.on_deadline
        flight.terms = replace(terms, deadline_s=deadline_s, on_deadline=on_deadline)
        if flight.ticket is not None:
            self._worker.extend(flight.ticket, deadline_s, on_deadline)

    @contextlib.asynccontextmanager
    async def _riding(self, flight: _Flight) -> AsyncIterator[None]:
        flight.num_riders += 1
        try:
            yield
        finally:
            flight.num_riders -= 1
            if flight.num_riders == 0:
                self._forget(flight)
                flight.landing.cancel()

    def _forget(self, flight: _Flight) -> None:
        if flight.route is not None and self._flights.get(flight.route) is flight:
            del self._flights[flight.route]

    async def _land(self, flight: _Flight) -> _Landing:
        try:
            result = CacheResult.BYPASS if flight.route is None else CacheResult.MISS
            if flight.route is not None and flight.route.policy is CachePolicy.USE:
                lookup = await self._cache.get(flight.route.key, flight.query)
                if lookup.prediction is not None:
                    return _Landing(lookup.prediction, lookup.result)
                result = lookup.result
            computed = await self._compute(flight)
            return _Landing(computed.prediction, result, computed.timings, computed.degraded)
        finally:
            self._forget(flight)

    async def _compute(self, flight: _Flight) -> WorkerResult:
        flight.ticket = self._worker.admit(flight.query, flight.terms)
        computed = await self._worker.wait(flight.ticket)
        self._metrics.observe_stages(computed.timings)
        if flight.route is not None and computed.degraded is None:
            self._store(flight.route.key, computed.prediction)
        return computed

    def _store(self, key: CacheKey, prediction: Prediction) -> None:
        # In memory before the flight is forgotten, so that the next equal call finds one or the other.
        self._cache.remember(key, prediction)
        store = asyncio.create_task(self._cache.share(key, prediction))
        self._stores.add(store)
        store.add_done_callback(self._stores.discard)

    async def _wait(self, flight: _Flight, call: Call) -> _Landing:
        async with watching(call) as client_left:
            remaining_s = None if call.deadline_s is None else max(0.0, call.deadline_s - self._clock())
            if await _is_landed(flight.landing, client_left, remaining_s):
                return flight.landing.result()
            if call.on_deadline is OnDeadline.FAIL:
                raise DeadlineExceeded("The deadline passed before the answer was ready.")
            if flight.terms.deadline_s != call.deadline_s:
                return await self._leave_early(flight)
            # The worker ends this job at the next step border, with the members at hand.
            await _is_landed(flight.landing, client_left, None)
            return flight.landing.result()

    async def _leave_early(self, flight: _Flight) -> _Landing:
        snapshot = None if flight.ticket is None else await self._worker.snapshot(flight.ticket)
        if snapshot is None:
            raise DeadlineExceeded("The deadline passed before there was anything to return.")
        return _Landing(snapshot.prediction, CacheResult.MISS, snapshot.timings, snapshot.degraded)

    def _answer(self, landing: _Landing, call: Call, *, is_joined: bool) -> Answer:
        is_late = self._has_passed(call.deadline_s)
        if call.on_deadline is OnDeadline.FAIL and (is_late or landing.degraded is not None):
            raise DeadlineExceeded("The deadline passed before the answer was ready.")
        is_shared = is_joined and landing.cache is not CacheResult.HIT
        return Answer(
            prediction=landing.prediction,
            cache=CacheResult.JOINED if is_shared else landing.cache,
            timings=replace(landing.timings),
            deadline_met=not is_late,
            degraded=landing.degraded,
            determinism=self.determinism,
        )

    def _has_passed(self, deadline_s: float | None) -> bool:
        return deadline_s is not None and deadline_s <= self._clock()

    def _count_answer(self, answer: Answer, call: Call) -> None:
        prediction = answer.prediction
        self._metrics.observe_members("requested", prediction.ensemble.size)
        self._metrics.observe_members("returned", prediction.num_members)
        if answer.cache is CacheResult.HIT:
            self._metrics.observe_members("cached", prediction.num_members)
        if call.deadline_s is not None:
            on_time = "met" if answer.deadline_met else "late"
            self._metrics.count_deadline(on_time if answer.degraded is None else "degraded")

    def _count_refusal(self, error: ServiceError) -> None:
        if isinstance(error, DeadlineExceeded):
            self._metrics.count_deadline("exceeded")
        elif not isinstance(error, ClientLeft | Superseded):
            self._metrics.count_rejected(error.code)


async def _is_landed(landing: asyncio.Task[_Landing], client_left: asyncio.Task[None], timeout_s: float | None) -> bool:
    done, _ = await asyncio.wait({landing, client_left}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    if client_left in done and landing not in done:
        raise ClientLeft("The client left.")
    return landing in done
