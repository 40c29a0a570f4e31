"""An observation as every loaded model sees it, encoded once. It knows engines' threads, and no wire and no store."""

import time
from collections.abc import Callable
from dataclasses import replace

from foreframe_engines import Contract
from foreframe_engines.types import Latents
from foreframe_server.calls import Call
from foreframe_server.errors import DeadlineExceeded
from foreframe_server.observations import StoredObservation
from foreframe_server.token_reader import TokenReaders
from foreframe_server.workers import Workers


class ContextEncoder:
    """Encodes observations with the rollout model and the likelihood model, whichever there are."""

    def __init__(
        self,
        contract: Contract,
        worker: Workers | None,
        reader: TokenReaders | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.contract = contract
        self._worker = worker
        self._reader = reader
        self._clock = clock

    async def encode(self, observation: StoredObservation, call: Call) -> StoredObservation:
        """Return the observation with what each model makes of it.

        Raises NotReady, Overloaded, DeadlineExceeded, WorkerCrashed, ClientLeft or ModelFault.
        """
        tokens = None
        if self._reader is not None:
            tokens = await self._reader.context(observation.frames, observation.states, call)
        if call.deadline_s is not None and call.deadline_s <= self._clock():
            raise DeadlineExceeded("The deadline passed before the observation was encoded.")
        return replace(observation, latents=await self._latents(observation, call), tokens=tokens)

    async def _latents(self, observation: StoredObservation, call: Call) -> Latents | None:
        if self._worker is None or "predict" not in self.contract.capabilities:
            return None
        return await self._worker.encode(observation.frames[-self.contract.context_frames :], call)
