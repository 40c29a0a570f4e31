"""One scoring, from valid to answered: see the goals, run the candidates wave by wave, rank, show the best.

A wave is one job a candidate on the rollout model and one read a grid for all of them on the token model. The deadline
and the client are looked at between waves, jobs and reads. It knows no wire and no cache.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

from foreframe_engines import Contract, OnDeadline, Query
from foreframe_engines.ensemble import summarise
from foreframe_engines.types import Latents
from foreframe_server.calls import Call, ScoreTimings
from foreframe_server.candidate_reader import CandidateReader, TokenPlan
from foreframe_server.disconnects import ClientLeft, watching
from foreframe_server.errors import (
    CapabilityMissing,
    DeadlineExceeded,
    DeadlineUnmeetable,
    LoadedDeadline,
    ModelFault,
    Overloaded,
    ServiceError,
    UnknownModel,
)
from foreframe_server.metrics import Metrics
from foreframe_server.scores import (
    Candidate,
    CandidateOutcome,
    CandidateStatus,
    Constraint,
    GoalImage,
    GoalMetric,
    Objective,
    ScoreAnswer,
    ScoreQuery,
    SeedPolicy,
    Spreads,
    Term,
    needs_rollout,
    needs_tokens,
)
from foreframe_server.scoring import Evidence, Reading, Rollout, grid_of_frame, rank, rank_stability, score_candidate
from foreframe_server.tickets import WorkerResult
from foreframe_server.token_reader import TokenJob, TokenReaders
from foreframe_server.workers import Workers

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, eq=False)
class _Setup:
    """What all candidates of a call share; the query's goals have been seen by the models."""

    query: ScoreQuery
    call: Call
    latents: Latents | None
    reader: CandidateReader | None

    @property
    def has_rollouts(self) -> bool:
        return any(needs_rollout(term) for term in self.query.terms)


@dataclass(frozen=True, slots=True, eq=False)
class _Ranked:
    outcomes: tuple[CandidateOutcome, ...]
    ranking: tuple[int, ...]
    stability: float | None


class ScoreService:
    """Ranks candidates with a rollout model, a likelihood model, or both.

    max_jobs: candidates of one wave, the most of one call that are in the device's queue at once.
    """

    def __init__(
        self,
        contract: Contract,
        worker: Workers | None,
        reader: TokenReaders | None,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_jobs: int = 8,
    ) -> None:
        self.contract = contract
        self._rollouts = worker
        self._reader = reader
        self._metrics = metrics
        self._clock = clock
        self._max_jobs = max_jobs

    async def score(self, query: ScoreQuery, call: Call) -> ScoreAnswer:
        """Score every candidate that the deadline leaves time for.

        Raises UnknownModel, NotReady, Overloaded, TooExpensive, DeadlineExceeded or ModelFault when no candidate could
        be scored, or ClientLeft after a disconnect.
        """
        try:
            answer = await self._score_watched(query, call)
        except ServiceError as error:
            self._count_refusal(error)
            raise
        self._metrics.observe_stages(answer.timings)
        self._count_answer(answer, call)
        return answer

    async def _score_watched(self, query: ScoreQuery, call: Call) -> ScoreAnswer:
        async with watching(call) as client_left:
            scoring = asyncio.create_task(self._score(query, call))
            try:
                news: set[asyncio.Future[ScoreAnswer] | asyncio.Future[None]] = {scoring, client_left}
                await asyncio.wait(news, return_when=asyncio.FIRST_COMPLETED)
                if not scoring.done():
                    raise ClientLeft("The client left.")
                return scoring.result()
            finally:
                scoring.cancel()
                await asyncio.wait({scoring})

    async def _score(self, query: ScoreQuery, call: Call) -> ScoreAnswer:
        if query.model != self.contract.model:
            raise UnknownModel("No model of this name is loaded.")
        if self._has_passed(call):
            raise DeadlineExceeded("The deadline had passed when the request was read.")
        timings = ScoreTimings()
        with self._admitting(query, call) as job:
            with self._timed(timings, "prepare"):
                setup = await self._prepare(query, call, job)
            with self._timed(timings, "evaluate"):
                ranked = await asyncio.to_thread(_rank, await self._evaluate(setup))
        with self._timed(timings, "render"):
            frames = await self._render(setup, ranked.ranking[: query.top_n])
        return ScoreAnswer(
            outcomes=ranked.outcomes,
            ranking=ranked.ranking,
            rank_stability=ranked.stability,
            members=query.ensemble.size if setup.has_rollouts else 0,
            deadline_met=not self._has_passed(call),
            frames=frames,
            missing_frames=(min(query.top_n, len(ranked.ranking)) if query.frame_indices else 0) - len(frames),
            timings=timings,
        )

    @contextlib.contextmanager
    def _timed(self, timings: ScoreTimings, stage: str) -> Iterator[None]:
        started_s = self._clock()
        yield
        setattr(timings, stage, 1000 * (self._clock() - started_s))

    @contextlib.contextmanager
    def _admitting(self, query: ScoreQuery, call: Call) -> Iterator[TokenJob | None]:
        """Book every read that the call will need; None when it needs none."""
        if not any(needs_tokens(term) for term in query.terms):
            yield None
            return
        reader = _known(self._reader)
        num_candidates = sum(candidate.fault is None for candidate in query.candidates)
        num_reads = TokenPlan(query, reader.tokens).num_reads * num_candidates
        if query.observation.tokens is None:
            num_reads += reader.num_grids(len(query.observation.frames)) - 1
        with reader.admitting(num_reads, call) as job:
            yield job

    async def _prepare(self, query: ScoreQuery, call: Call, job: TokenJob | None) -> _Setup:
        seen = {term: await self._show(term, call, job) for term in query.terms if isinstance(term, GoalImage)}
        shown = replace(
            query,
            objectives=tuple(Objective(_swap(each.term, seen), each.weight) for each in query.objectives),
            constraints=tuple(Constraint(_swap(each.term, seen), each.max_value) for each in query.constraints),
        )
        reader = None if job is None else await self._open_reader(shown, job)
        setup = _Setup(shown, call, query.observation.latents, reader)
        if setup.has_rollouts and setup.latents is None:
            count = self.contract.context_frames
            return replace(setup, latents=await self._worker().encode(query.observation.frames[-count:], call))
        return setup

    def _worker(self) -> Workers:
        if self._rollouts is None:
            raise CapabilityMissing("The model has no rollout half, so it predicts no futures.")
        return self._rollouts

    async def _show(self, goal: GoalImage, call: Call, job: TokenJob | None) -> GoalImage:
        """Let the model that a goal is measured by see its picture, standing still for as long as the model looks."""
        if goal.metric is GoalMetric.LATENT:
            still = np.repeat(goal.picture[None], self.contract.context_frames, axis=0)
            latents = await self._worker().encode(still, call)
            return replace(goal, latent=latents[-1])
        if goal.metric is GoalMetric.TOKENS:
            tokens = _known(self._reader).tokens
            ids = await _known(job).tokenize(np.repeat(goal.picture[None], tokens.window_frames, axis=0))
            return replace(goal, ids=ids[grid_of_frame(goal.frame, tokens) % tokens.window_grids])
        return goal

    async def _open_reader(self, query: ScoreQuery, job: TokenJob) -> CandidateReader:
        observation = query.observation
        context = observation.tokens or await job.context(observation.frames, observation.states)
        return CandidateReader(TokenPlan(query, _known(self._reader).tokens), context, job)

    async def _evaluate(self, setup: _Setup) -> list[CandidateOutcome]:
        """Run the candidates wave by wave. Raises DeadlineExceeded or ModelFault when none could be scored."""
        candidates = setup.query.candidates
        outcomes = [
            CandidateOutcome(candidate, CandidateStatus.INVALID, reason=candidate.fault)
            for candidate in candidates
            if candidate.fault is not None
        ]
        sound = [candidate for candidate in candidates if candidate.fault is None]
        for start in range(0, len(sound), self._max_jobs):
            outcomes += await self._evaluate_wave(setup, sound[start : start + self._max_jobs])
        statuses = {outcome.status for outcome in outcomes}
        if CandidateStatus.OK not in statuses:
            if CandidateStatus.EXPIRED in statuses:
                raise DeadlineExceeded("The deadline passed before any candidate was scored.")
            raise ModelFault("The model failed on every candidate.")
        return sorted(outcomes, key=lambda outcome: outcome.candidate.index)

    async def _evaluate_wave(self, setup: _Setup, wave: Sequence[Candidate]) -> list[CandidateOutcome]:
        if self._has_passed(setup.call):
            late = DeadlineExceeded("The deadline passed before this candidate was scored.")
            return [_unscored(candidate, late) for candidate in wave]
        rollouts = await self._roll_out_wave(setup, wave)
        readings = await self._read_wave(setup, wave)
        return await asyncio.to_thread(self._judge_wave, setup, wave, rollouts, readings)

    async def _roll_out_wave(self, setup: _Setup, wave: Sequence[Candidate]) -> Sequence[Rollout | ServiceError | None]:
        if not setup.has_rollouts:
            return [None] * len(wave)
        return await self._run_wave(setup, wave, _scored_frames(setup.query))

    async def _rollout(self, query: Query, result: WorkerResult) -> Rollout:
        members = np.stack(result.members)
        prediction = await asyncio.to_thread(summarise, members, query.frame_indices, query.sampling, query.ensemble)
        futures = [member[self.contract.context_latents :] for member in result.latents]
        return Rollout(prediction, futures, self.contract.frames_per_latent)

    async def _run_wave(
        self, setup: _Setup, wave: Sequence[Candidate], frame_indices: tuple[int, ...]
    ) -> Sequence[Rollout | ServiceError]:
        """Run every candidate, or say what befell it alone. Raises what concerns the whole call."""
        runs = [self._run(setup, candidate, frame_indices) for candidate in wave]
        results = await asyncio.gather(*runs, return_exceptions=True)
        refused = [each for each, result in zip(wave, results, strict=True) if isinstance(result, Overloaded)]
        if not 0 < len(refused) < len(wave):
            return [_own_fault(result) for result in results]
        # The others of this wave had filled the queue: what found no room goes after them.
        later = iter(await self._run_wave(setup, refused, frame_indices))
        return [next(later) if isinstance(result, Overloaded) else _own_fault(result) for result in results]

    async def _run(self, setup: _Setup, candidate: Candidate, frame_indices: tuple[int, ...]) -> Rollout:
        query, count = setup.query, self.contract.context_frames
        seed = query.sampling.seed + (candidate.index if query.seed_policy is SeedPolicy.PER_CANDIDATE else 0)
        job = Query(
            model=query.model,
            context=query.observation.frames[-count:],
            states=np.concatenate([query.observation.states[-count:], candidate.rows]),
            frame_indices=frame_indices,
            sampling=replace(query.sampling, seed=seed),
            ensemble=query.ensemble,
            priority=query.priority,
            context_latents=setup.latents,
        )
        # A candidate with fewer members than the others could not be compared with them: it is whole, or expired.
        result = await self._worker().submit(job, replace(setup.call, on_deadline=OnDeadline.FAIL))
        self._metrics.observe_stages(result.timings)
        return await self._rollout(job, result)

    async def _read_wave(self, setup: _Setup, wave: Sequence[Candidate]) -> Sequence[Reading | ServiceError | None]:
        if setup.reader is None:
            return [None] * len(wave)
        try:
            return await setup.reader.read(wave)
        except DeadlineExceeded as error:
            return [error] * len(wave)
        except ModelFault as error:
            if len(wave) == 1:
                return [error]
        # One candidate's numbers may break a read for its neighbours: each is read alone before it is blamed.
        return [each for candidate in wave for each in await self._read_wave(setup, [candidate])]

    def _judge_wave(
        self,
        setup: _Setup,
        wave: Sequence[Candidate],
        rollouts: Sequence[Rollout | ServiceError | None],
        readings: Sequence[Reading | ServiceError | None],
    ) -> list[CandidateOutcome]:
        parts = zip(wave, rollouts, readings, strict=True)
        return [self._judge(setup.query, candidate, rollout, reading) for candidate, rollout, reading in parts]

    def _judge(
        self,
        query: ScoreQuery,
        candidate: Candidate,
        rollout: Rollout | ServiceError | None,
        reading: Reading | ServiceError | None,
    ) -> CandidateOutcome:
        if isinstance(rollout, ServiceError):
            return _unscored(candidate, rollout)
        if isinstance(reading, ServiceError):
            return _unscored(candidate, reading)
        path = np.concatenate([query.observation.states[-1:], candidate.rows])
        evidence = Evidence(path, rollout, reading)
        score = score_candidate(query.objectives, query.constraints, evidence, self.contract.state)
        return CandidateOutcome(candidate, CandidateStatus.OK, score, None if rollout is None else _spreads(rollout))

    async def _render(self, setup: _Setup, best: Sequence[int]) -> dict[int, UInt8[np.ndarray, "f h w 3"]]:
        """Predict the best candidates once more with the frames that are wanted; those that time forbids are left out.

        Equal seeds give equal members, so that no candidate's latents need to be kept until the ranking is known.
        """
        query = setup.query
        frames: dict[int, UInt8[np.ndarray, "f h w 3"]] = {}
        for start in range(0, len(best) if query.frame_indices else 0, self._max_jobs):
            wave = [query.candidates[index] for index in best[start : start + self._max_jobs]]
            with contextlib.suppress(ServiceError):
                results = await self._run_wave(setup, wave, query.frame_indices)
                for candidate, result in zip(wave, results, strict=True):
                    if isinstance(result, Rollout):
                        frames[candidate.index] = result.prediction.frames
        return frames

    def _has_passed(self, call: Call) -> bool:
        return call.deadline_s is not None and call.deadline_s <= self._clock()

    def _count_answer(self, answer: ScoreAnswer, call: Call) -> None:
        if call.deadline_s is None:
            return
        is_whole = all(outcome.status is not CandidateStatus.EXPIRED for outcome in answer.outcomes)
        on_time = "met" if answer.deadline_met else "late"
        self._metrics.count_deadline(on_time if is_whole else "degraded")

    def _count_refusal(self, error: ServiceError) -> None:
        if isinstance(error, DeadlineExceeded):
            self._metrics.count_deadline("exceeded")
        elif not isinstance(error, ClientLeft):
            self._metrics.count_rejected(error.code)


def _scored_frames(query: ScoreQuery) -> tuple[int, ...]:
    """Return the frames that terms look at. The last is always there: decoding it tells whether latents are finite."""
    goals = [term for term in query.terms if isinstance(term, GoalImage) and term.metric is GoalMetric.PIXEL]
    return tuple(sorted({query.horizon, *(goal.frame for goal in goals)}))


def _spreads(rollout: Rollout) -> Spreads:
    prediction = rollout.prediction
    spread = prediction.spread_per_frame if prediction.num_members > 1 else ()
    return Spreads(prediction.frame_indices, spread, prediction.num_members)


def _unscored(candidate: Candidate, error: ServiceError) -> CandidateOutcome:
    is_late = isinstance(error, DeadlineExceeded)
    status = CandidateStatus.EXPIRED if is_late else CandidateStatus.FAILED
    return CandidateOutcome(candidate, status, reason=error.detail)


def _own_fault(result: _T | BaseException) -> _T | ServiceError:
    """Return what befell one candidate alone. Raises what concerns the whole call."""
    if isinstance(result, LoadedDeadline | DeadlineUnmeetable):
        return DeadlineExceeded("Too little time was left for this candidate.")
    if isinstance(result, ModelFault | DeadlineExceeded):
        return result
    if isinstance(result, BaseException):
        raise result
    return result


def _rank(outcomes: Sequence[CandidateOutcome]) -> _Ranked:
    scored = [outcome for outcome in outcomes if outcome.score is not None]
    scores = [outcome.score for outcome in outcomes if outcome.score is not None]
    ranking = tuple(scored[place].candidate.index for place in rank(scores))
    return _Ranked(tuple(outcomes), ranking, rank_stability(scores))


def _swap(term: Term, seen: Mapping[GoalImage, GoalImage]) -> Term:
    return seen[term] if isinstance(term, GoalImage) else term


def _known(part: _T | None) -> _T:
    if part is None:
        raise RuntimeError("a scoring needs a model that is not there")
    return part
