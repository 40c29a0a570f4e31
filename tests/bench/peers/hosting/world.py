"""The bundle's graphs as a peer's user hosts them: a batch of questions becomes one batch of members. No queue.

Every server of the comparison but foreframe's own runs this very code, with foreframe's engine below it.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from peers.hosting.wire import WorldRequest

from foreframe_engines import Bundle, StepRow, builtin_bundle
from foreframe_engines.bundle import GRAPHS
from foreframe_engines.engine import RolloutEngine
from foreframe_engines.ensemble import mean_frames
from foreframe_engines.noise import member_noise
from foreframe_engines.rollout import GraphRolloutEngine, open_rollout_engine
from foreframe_engines.runtime.ort import OrtSession
from foreframe_engines.schedule import get_schedule
from foreframe_engines.types import NoisePlan

ROWS, LANES = "rows", "lanes"


def open_engine(arrangement: str, num_threads: int) -> RolloutEngine:
    """Open the built-in model.

    arrangement: `rows` is many members in a forward that uses all threads, `lanes` is forwards of one member side by
    side. Which is faster depends on the machine.
    """
    bundle = Bundle.open(builtin_bundle())
    if arrangement == LANES:
        return open_rollout_engine(bundle, num_threads=num_threads)
    sessions = {graph: OrtSession(bundle.graph(graph), num_threads=num_threads) for graph in GRAPHS}
    return GraphRolloutEngine(bundle.contract, sessions, buckets=bundle.contract.buckets)


class WorldModel:
    """Answers batches of questions with the mean of each one's members."""

    def __init__(self, engine: RolloutEngine) -> None:
        self._engine = engine
        sampler = engine.contract.sampler
        self._times = list(pairwise(get_schedule(sampler.steps, sampler.shift)))
        self._indices = range(1, engine.contract.horizon + 1)

    def predict(self, requests: Sequence[WorldRequest]) -> list[np.ndarray]:
        """Return uint8 frames `f h w 3` of each question."""
        counts = np.cumsum([request.members for request in requests])[:-1]
        members = self.members(requests)
        return [mean_frames(part) for part in np.split(members, counts)]

    def members(self, requests: Sequence[WorldRequest]) -> np.ndarray:
        """Return the members of all questions behind each other, uint8 `k f h w 3`."""
        rows = [row for request in requests for row in self._first_rows(request)]
        for time, next_time in self._times:
            rows = self._step([StepRow(row.latents, time, next_time, row.conditioning) for row in rows])
        return self._engine.decode([row.latents for row in rows], self._indices)

    def _first_rows(self, request: WorldRequest) -> list[StepRow]:
        engine = self._engine
        conditioning = engine.condition(engine.encode(request.frames), request.states)
        shape = engine.noise_shape()
        draws = [member_noise(request.seed, member, shape, NoisePlan.ANTITHETIC) for member in range(request.members)]
        return [StepRow(engine.initial_latents(conditioning, draw), 1.0, 0.0, conditioning) for draw in draws]

    def _step(self, rows: Sequence[StepRow]) -> list[StepRow]:
        largest = self._engine.contract.buckets[-1]
        parts = [rows[start : start + largest] for start in range(0, len(rows), largest)]
        latents = [each for part in parts for each in self._engine.step(part)]
        return [
            StepRow(each, row.time, row.next_time, row.conditioning) for each, row in zip(latents, rows, strict=True)
        ]
