"""One likelihood query, from valid to answered: read the context, read the target, count the bits.

It knows no wire and no cache: a read is cheaper than finding it again.
"""

import time
from collections.abc import Callable

import numpy as np
from jaxtyping import Int64

from foreframe_engines.nats import Nats, TopKCrossEntropy, count_nats, top_k_cross_entropy
from foreframe_engines.reading import greedy_reads, grid_states, teacher_forced_reads
from foreframe_engines.surprise import Surprise, SurpriseCalibration
from foreframe_engines.types import GridScores, TokenContext
from foreframe_server.calls import Call, ReadTimings
from foreframe_server.disconnects import ClientLeft
from foreframe_server.errors import DeadlineExceeded, ServiceError
from foreframe_server.likelihoods import LikelihoodAnswer, LikelihoodQuery, Scenario
from foreframe_server.metrics import Metrics
from foreframe_server.token_reader import TokenJob, TokenReaders


class LikelihoodService:
    """Answers queries about one likelihood model."""

    def __init__(
        self,
        reader: TokenReaders,
        metrics: Metrics,
        calibration: SurpriseCalibration | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.contract = reader.contract
        self.is_calibrated = calibration is not None
        self._reader = reader
        self._metrics = metrics
        self._calibration = calibration
        self._clock = clock

    async def score(self, query: LikelihoodQuery, call: Call) -> LikelihoodAnswer:
        """Answer one query.

        Raises NotReady, Overloaded, DeadlineExceeded or ModelFault, or ClientLeft after a disconnect.
        """
        try:
            answer = await self._score(query, call)
        except ServiceError as error:
            self._count_refusal(error)
            raise
        self._metrics.observe_stages(answer.timings)
        self._metrics.observe_bits(answer.nats.bits_total / answer.nats.num_tokens)
        if call.deadline_s is not None:
            self._metrics.count_deadline("met" if answer.deadline_met else "late")
        return answer

    async def _score(self, query: LikelihoodQuery, call: Call) -> LikelihoodAnswer:
        with self._reader.admitting(self._num_reads(query), call) as job:
            context = await self._context(query, job)
            ids = await self._target_ids(query, job)
            scores = await self._read(query, context, ids, job)
        nats = count_nats(scores, num_pixels=self._num_pixels(query))
        return LikelihoodAnswer(
            scores=scores,
            nats=nats,
            top_k=self._top_k(query, scores),
            surprises=self._surprises(query.scenario, nats),
            deadline_met=call.deadline_s is None or self._clock() < call.deadline_s,
            timings=ReadTimings(queue=1000 * job.queue_s, read=1000 * job.device_s),
        )

    def _num_reads(self, query: LikelihoodQuery) -> int:
        target = self._reader.num_grids(len(query.target_states))
        if query.observation.tokens is not None:
            return target
        return target + self._reader.num_grids(len(query.observation.frames)) - 1

    def _num_pixels(self, query: LikelihoodQuery) -> int:
        camera = self.contract.camera
        return len(query.target_states) * camera.height * camera.width

    async def _context(self, query: LikelihoodQuery, job: TokenJob) -> TokenContext:
        observation = query.observation
        if observation.tokens is not None:
            return observation.tokens
        return await job.context(observation.frames, observation.states)

    async def _target_ids(self, query: LikelihoodQuery, job: TokenJob) -> Int64[np.ndarray, "g s"]:
        if query.target_ids is not None:
            return query.target_ids
        if query.target_frames is None:
            raise RuntimeError("a likelihood's target has neither ids nor frames")
        return await job.tokenize(query.target_frames)

    async def _read(
        self, query: LikelihoodQuery, context: TokenContext, ids: Int64[np.ndarray, "g s"], job: TokenJob
    ) -> GridScores:
        states = grid_states(query.target_states, self._reader.tokens)
        top_k = None if query.top_k is None else query.top_k.k
        if query.scenario is Scenario.TEACHER_FORCED:
            return await job.run(teacher_forced_reads(context, ids, states, top_k))
        return await job.run(greedy_reads(context, states, ids, top_k))

    def _top_k(self, query: LikelihoodQuery, scores: GridScores) -> TopKCrossEntropy | None:
        if query.top_k is None:
            return None
        return top_k_cross_entropy(scores, query.top_k.k, query.top_k.definition, self._reader.tokens.vocabulary)

    def _surprises(self, scenario: Scenario, nats: Nats) -> tuple[Surprise, ...] | None:
        if self._calibration is None or scenario.value != self._calibration.scenario:
            return None
        return tuple(self._calibration.surprise(bits) for bits in nats.bits_per_grid)

    def _count_refusal(self, error: ServiceError) -> None:
        if isinstance(error, DeadlineExceeded):
            self._metrics.count_deadline("exceeded")
        elif not isinstance(error, ClientLeft):
            self._metrics.count_rejected(error.code)
