"""What the device does for one job besides stepping it: encode, condition, draw noise, decode, reduce.

It knows engines and jobs, and nothing of threads, queues or deadlines. Called from the device's thread only.
"""

import hashlib
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from foreframe_engines import NoisePlan, Prediction, RolloutEngine, StepRow
from foreframe_engines.ensemble import summarise
from foreframe_engines.noise import member_noise
from foreframe_engines.sampling import initial_member
from foreframe_engines.types import Latents
from foreframe_server.calls import Timings
from foreframe_server.lru import LruBytes
from foreframe_server.scheduler import Job

_DECODE_SMOOTHING = 0.2


class JobStages:
    """The stages of a job on one engine, timed. Encoded contexts are kept by content, `max_context_bytes` of them."""

    def __init__(self, engine: RolloutEngine, clock: Callable[[], float], *, max_context_bytes: int) -> None:
        self.member_decode_s = 0.0
        self._engine = engine
        self._clock = clock
        self._contexts: LruBytes[Latents] = LruBytes(max_context_bytes)

    def encode(self, context: UInt8[np.ndarray, "t h w 3"]) -> Latents:
        """Encode context frames (RGB 0..255), or find them encoded."""
        digest = hashlib.sha256(f"{context.shape}".encode() + context.tobytes()).digest()
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

    def draw(self, job: Job, member: int) -> Latents:
        """Return one member's latents at time 1: a function of the seed and the member's number alone."""
        if job.conditioning is None:
            raise RuntimeError("noise was drawn before the job was conditioned")
        return initial_member(self._engine, job.conditioning, job.query, member)

    def finish(self, job: Job, timings: Timings) -> Prediction:
        """Decode and reduce the job's whole members, of which there is at least one."""
        query = job.query
        members = job.finished_latents
        started_s = self._clock()
        frames = self._engine.decode(members, query.frame_indices)
        decoded_s = self._clock()
        prediction = summarise(frames, query.frame_indices, query.sampling, query.ensemble)
        self._learn_decode((decoded_s - started_s) / len(members))
        timings.latent_decode = 1000 * (decoded_s - started_s)
        timings.reduce = 1000 * (self._clock() - decoded_s)
        return prediction

    def run_all(self) -> float:
        """Run every stage, and a step of every bucket, and return the seconds of a warm step of the largest bucket."""
        contract = self._engine.contract
        height, width = contract.camera.height, contract.camera.width
        context = np.zeros((contract.context_frames, height, width, 3), np.uint8)
        states = np.tile(contract.state.mean.astype(np.float32), (contract.context_frames + contract.horizon, 1))
        conditioning = self._engine.condition(self._engine.encode(context), states)
        noise = member_noise(0, 0, self._engine.noise_shape(), NoisePlan.IID)
        row = StepRow(self._engine.initial_latents(conditioning, noise), 1.0, 0.0, conditioning)
        for bucket in contract.buckets:
            latents = self._engine.step([row] * bucket)
        self._engine.decode(latents[:1], range(1, contract.horizon + 1))
        started_s = self._clock()
        self._engine.step([row] * contract.buckets[-1])
        return self._clock() - started_s

    def _learn_decode(self, seconds: float) -> None:
        weight = _DECODE_SMOOTHING if self.member_decode_s else 1.0
        self.member_decode_s += weight * (seconds - self.member_decode_s)
