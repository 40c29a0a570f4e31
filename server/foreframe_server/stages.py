"""What the device does for one job besides stepping it: encode, condition, draw noise, decode.

It knows engines and jobs, and nothing of threads, queues or deadlines. Called from the device's thread only.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, UInt8

from foreframe_engines import NoisePlan, RolloutEngine, StepRow
from foreframe_engines.noise import member_noise
from foreframe_engines.sampling import initial_member
from foreframe_engines.types import Conditioning, Latents, StepState
from foreframe_server.calls import Timings
from foreframe_server.cost_model import CostModel
from foreframe_server.jobs import Job, Member
from foreframe_server.lru import LruBytes

_NUM_ROUNDS = 5
_GAIN = 0.1


class JobStages:
    """The stages of a job on one engine, timed. Encoded contexts are kept by content, `max_context_bytes` of them."""

    def __init__(
        self, engine: RolloutEngine, cost: CostModel, clock: Callable[[], float], *, max_context_bytes: int
    ) -> None:
        self._engine = engine
        self._cost = cost
        self._clock = clock
        self._contexts: LruBytes[Latents] = LruBytes(max_context_bytes)

    def encode(self, context: UInt8[np.ndarray, "t h w 3"]) -> Latents:
        """Encode context frames (RGB 0..255), or find them encoded."""
        hashed = hashlib.sha256(f"{context.shape}".encode())
        hashed.update(np.ascontiguousarray(context).data)
        digest = hashed.digest()
        latents = self._contexts.get(digest)
        if latents is None:
            latents = self._engine.encode(context)
            self._contexts.put(digest, latents, latents.nbytes)
        return latents

    def condition(self, job: Job, timings: Timings) -> None:
        """Encode the job's context and condition on its states, once for all members. Sets `job.conditioning`."""
        started_s = self._clock()
        stored = job.query.context_latents
        latents = self.encode(job.query.context) if stored is None else stored
        encoded_s = self._clock()
        job.conditioning = self._engine.condition(latents, job.query.states)
        timings.encode = 1000 * (encoded_s - started_s)
        timings.condition = 1000 * (self._clock() - encoded_s)
        self._cost.observe_prepare(self._clock() - started_s)

    def draw(self, job: Job, member: int) -> StepState:
        """Return one member's latents at time 1: a function of the seed and the member's number alone."""
        if job.conditioning is None:
            raise RuntimeError("noise was drawn before the job was conditioned")
        return initial_member(self._engine, job.conditioning, job.query, member)

    def denoise(self, job: Job, member: Member) -> Latents:
        """Return where a member's last step points at time 0: after one step from time 1, the posterior mean."""
        if member.previous is None or member.latents is None:
            raise RuntimeError("a member without a step points nowhere")
        time, next_time = job.times[member.step - 1 : member.step + 1]
        return self._engine.denoise(member.previous, member.latents, time, next_time)

    def decode(self, job: Job, latents: Sequence[Latents], timings: Timings) -> UInt8[np.ndarray, "k f h w 3"]:
        """Decode the wanted frames of members. Raises ModelFault when latents are not finite."""
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
            if larger > smaller and larger * seconds[smaller] < (1 + _GAIN) * smaller * seconds[larger]:
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
