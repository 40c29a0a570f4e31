"""What the device does for jobs: encode, condition, draw noise, step, decode, and again where an engine died of it.

It knows engines and jobs, and nothing of threads and queues. Called from the device's thread only.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, UInt8

from foreframe_engines import ModelFault, NoisePlan, RolloutEngine, StepRow
from foreframe_engines.noise import member_noise
from foreframe_engines.sampling import initial_member
from foreframe_engines.types import Conditioning, Latents, StepState
from foreframe_server.calls import Timings
from foreframe_server.cost_model import CostModel
from foreframe_server.jobs import Job, Member, StepBatch
from foreframe_server.known_contexts import KnownContexts, context_digest, is_large
from foreframe_server.quarantine import Deaths
from foreframe_server.rescue import Errand, Rescue

_NUM_ROUNDS = 5
_GAIN = 0.1


class JobStages:
    """The stages of a job on one engine, timed. Encoded contexts are kept by content, `max_context_bytes` of them.

    Each but `step` is repeated when the engine dies of it: they raise what the engine raises, and as `Rescue.run`.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        cost: CostModel,
        rescue: Rescue,
        clock: Callable[[], float],
        *,
        max_context_bytes: int,
    ) -> None:
        self._engine = engine
        self._cost = cost
        self._rescue = rescue
        self._clock = clock
        self._contexts = KnownContexts(max_context_bytes)

    def encode(
        self, context: UInt8[np.ndarray, "t h w 3"], deaths: Deaths | None = None, deadline_s: float | None = None
    ) -> Latents:
        """Encode context frames (RGB 0..255), or find them encoded."""
        errand = Errand(deaths or Deaths(), deadline_s, partial(context_digest, context))
        return self._rescue.run(errand, partial(self._encode, context))

    def condition(self, job: Job, timings: Timings) -> None:
        """Encode the job's context and condition on its states, once for all members. Sets `job.conditioning`."""
        self._rescue.run(job, partial(self._condition, job, timings))

    def draw(self, job: Job, members: Sequence[Member]) -> None:
        """Set members' latents at time 1: functions of the seed and the member's number alone."""
        self._rescue.run(job, partial(self._draw, job, members))

    def step(self, batch: StepBatch) -> list[StepState]:
        """Step every row of a batch once, in one forward. Raises as `Rescue.attempt`."""
        results = self._rescue.attempt(batch.jobs, partial(self._step, batch))
        for job in batch.jobs:
            job.deaths.is_proven = True
        return results

    def decode(self, job: Job, latents: Sequence[Latents], timings: Timings) -> UInt8[np.ndarray, "k f h w 3"]:
        """Decode the wanted frames of members. Raises ModelFault when latents are not finite."""
        return self._rescue.run(job, partial(self._decode, job, latents, timings))

    def point(self, job: Job, member: Member) -> Latents:
        """Return where a member's last step points at time 0: after one step from time 1, the posterior mean."""
        return self._rescue.run(job, partial(self._point, job, member))

    def _encode(self, context: UInt8[np.ndarray, "t h w 3"], digest: bytes | None = None) -> Latents:
        if digest is None and is_large(context):
            digest = context_digest(context)
        latents = self._contexts.get(context, digest)
        if latents is None:
            latents = self._engine.encode(context)
            _require_finite(latents)
            self._contexts.put(context, latents, digest)
        return latents

    def _condition(self, job: Job, timings: Timings) -> None:
        started_s = self._clock()
        stored = job.query.context_latents
        latents = self._encode(job.query.context, job.context_digest) if stored is None else stored
        encoded_s = self._clock()
        job.conditioning = self._engine.condition(latents, job.query.states)
        timings.encode = 1000 * (encoded_s - started_s)
        timings.condition = 1000 * (self._clock() - encoded_s)
        self._cost.observe_prepare(self._clock() - started_s)

    def _draw(self, job: Job, members: Sequence[Member]) -> None:
        if job.conditioning is None:
            raise RuntimeError("noise was drawn before the job was conditioned")
        for member in members:
            member.latents = initial_member(self._engine, job.conditioning, job.query, member.index)

    def _step(self, batch: StepBatch) -> list[StepState]:
        results = self._engine.step([row.step_row() for row in batch.rows])
        if len(results) != len(batch.rows):
            raise RuntimeError(f"the engine returned {len(results)} latents for {len(batch.rows)} rows")
        return results

    def _point(self, job: Job, member: Member) -> Latents:
        if member.previous is None or member.latents is None:
            raise RuntimeError("a member without a step points nowhere")
        time, next_time = job.times[member.step - 1 : member.step + 1]
        return self._engine.denoise(member.previous, member.latents, time, next_time)

    def _decode(self, job: Job, latents: Sequence[Latents], timings: Timings) -> UInt8[np.ndarray, "k f h w 3"]:
        for each in latents:
            _require_finite(each)
        started_s = self._clock()
        frames = self._time_decode(latents, job.query.frame_indices)
        timings.latent_decode += 1000 * (self._clock() - started_s)
        return frames

    def run_all(self) -> dict[int, float]:
        """Run every stage and a step of every bucket, and return the seconds of those that are worth timing."""
        contract = self._engine.contract
        height, width = contract.camera.height, contract.camera.width
        context = np.zeros((contract.context_frames, height, width, 3), np.uint8)
        states = np.tile(contract.state.mean.astype(np.float32), (contract.context_frames + contract.horizon, 1))
        self._engine.condition(self._engine.encode(context), states)  # once cold, then timed
        conditioning = self._time_prepare(context, states)
        noise = member_noise(0, 0, self._engine.noise_shape(), NoisePlan.IID)
        row = StepRow(self._engine.initial_latents(conditioning, noise), 1.0, 0.0, conditioning)
        for bucket in contract.buckets:
            self._engine.step([row] * bucket)
        frames, (finished,) = range(1, contract.horizon + 1), self._engine.step([row])
        self._engine.decode([finished], frames)
        self._time_decode([finished], frames)
        return self._time_steps(row)

    def _time_steps(self, row: StepRow) -> dict[int, float]:
        """Time ever larger steps, each in turns with the one before it, until they bring no more rows a second."""
        buckets = self._engine.contract.buckets
        seconds = dict.fromkeys(buckets[:1], math.inf)
        for smaller, larger in pairwise((buckets[0], *buckets)):
            seconds[larger] = math.inf
            for rows in (smaller, larger) * _NUM_ROUNDS:
                seconds[rows] = min(seconds[rows], self._time_step([row] * rows))
            is_gain = larger * seconds[smaller] >= (1 + _GAIN) * smaller * seconds[larger]
            if larger > smaller and larger > self._engine.num_lanes and not is_gain:
                break
        return seconds

    def _time_prepare(self, context: UInt8[np.ndarray, "t h w 3"], states: Float32[np.ndarray, "n d"]) -> Conditioning:
        started_s = self._clock()
        conditioning = self._engine.condition(self._engine.encode(context), states)
        self._cost.observe_prepare(self._clock() - started_s)
        return conditioning

    def _time_decode(self, latents: Sequence[Latents], frame_indices: Sequence[int]) -> UInt8[np.ndarray, "k f h w 3"]:
        started_s = self._clock()
        frames = self._engine.decode(latents, frame_indices)
        self._cost.observe_decode(len(latents) * len(frame_indices), self._clock() - started_s)
        return frames

    def _time_step(self, rows: Sequence[StepRow]) -> float:
        started_s = self._clock()
        self._engine.step(rows)
        return self._clock() - started_s


def _require_finite(latents: Latents) -> None:
    # What stays on a device is looked at there, by the engine that decodes it.
    if isinstance(latents, np.ndarray) and not np.isfinite(latents).all():
        raise ModelFault("the latents are not finite")
