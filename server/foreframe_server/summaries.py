"""What ensembles say, worked out off the event loop and once for all who ask the same. It knows no device, no wire."""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from foreframe_engines import EnsembleSpec, Prediction, Query
from foreframe_engines.ensemble import summarise
from foreframe_server.lru import LruBytes
from foreframe_server.tickets import Frames

_LIGHT_BYTES = 2**18
"""One member of so many is reduced in less time than it takes to hand it to a thread."""


class Summaries:
    """Reduces members to predictions and keeps the last ones, `max_bytes` of them."""

    def __init__(self, max_bytes: int = 32 * 2**20) -> None:
        self._kept: LruBytes[Prediction] = LruBytes(max_bytes)
        self._running: dict[bytes, asyncio.Task[Prediction]] = {}

    async def summarise(
        self, query: Query, members: Sequence[Frames], *, steps: int, digest: bytes | None = None
    ) -> Prediction:
        """Return the prediction that these members of a query make. digest: tells equal members; None keeps nothing."""
        if digest is None:
            return await _reduce(query, members, steps)
        name = _name(digest, len(members), steps, query.ensemble)
        kept = self._kept.get(name)
        if kept is None:
            kept = await self._join(name, query, members, steps)
        return replace(kept, ensemble=query.ensemble)

    async def _join(self, name: bytes, query: Query, members: Sequence[Frames], steps: int) -> Prediction:
        running = self._running.get(name)
        if running is None:
            running = asyncio.create_task(_reduce(query, members, steps))
            self._running[name] = running
            running.add_done_callback(lambda _: self._running.pop(name, None))
        prediction = await asyncio.shield(running)
        self._kept.put(name, prediction, _num_bytes(prediction))
        return prediction


async def _reduce(query: Query, members: Sequence[Frames], steps: int) -> Prediction:
    if len(members) == 1 and members[0].nbytes <= _LIGHT_BYTES:
        return _summarise(query, members, steps)
    return await asyncio.to_thread(_summarise, query, members, steps)


def _summarise(query: Query, members: Sequence[Frames], steps: int) -> Prediction:
    sampling = replace(query.sampling, steps=steps)
    return summarise(np.stack(members), query.frame_indices, sampling, query.ensemble)


def _name(digest: bytes, count: int, steps: int, ensemble: EnsembleSpec) -> bytes:
    # Size and tolerance only decide how many members there are, and that is counted.
    parts = f"{count} {steps} {ensemble.reducer} {ensemble.noise}"
    return hashlib.sha256(digest + parts.encode()).digest()


def _num_bytes(prediction: Prediction) -> int:
    return prediction.frames.nbytes + prediction.members.nbytes + prediction.variance.nbytes
