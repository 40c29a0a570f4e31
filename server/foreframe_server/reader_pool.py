"""Token readers of several devices as one: each job goes where the fewest reads wait, and stays there."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32, UInt8

from foreframe_engines.types import TokenContext
from foreframe_server.calls import Call
from foreframe_server.token_reader import TokenJob, TokenReader


class ReaderPool:
    """Reads tokens on several devices; see `TokenReaders`."""

    def __init__(self, readers: Sequence[TokenReader]) -> None:
        """Take over at least one reader; all are of one model."""
        self._readers = tuple(readers)
        self.contract = readers[0].contract
        self.tokens = readers[0].tokens

    @property
    def is_ready(self) -> bool:
        """Whether jobs are taken by any device."""
        return any(reader.is_ready for reader in self._readers)

    async def warm_up(self) -> None:
        """Run every graph of every device once."""
        for reader in self._readers:
            await reader.warm_up()

    async def stop(self, drain_s: float) -> None:
        """Stop every reader at once."""
        await asyncio.gather(*(reader.stop(drain_s) for reader in self._readers))

    @contextlib.contextmanager
    def admitting(self, num_reads: int, call: Call) -> Iterator[TokenJob]:
        """Admit a job of so many reads. Raises NotReady or Overloaded."""
        with self._shortest().admitting(num_reads, call) as job:
            yield job

    async def context(
        self, frames: UInt8[np.ndarray, "t h w 3"], states: Float32[np.ndarray, "t n"], call: Call
    ) -> TokenContext:
        """Tokenise and read whole windows of context frames."""
        return await self._shortest().context(frames, states, call)

    def num_grids(self, num_frames: int) -> int:
        """How many grids whole windows of frames become."""
        return self._readers[0].num_grids(num_frames)

    def _shortest(self) -> TokenReader:
        # Where none is ready any of them says so.
        return min(self._readers, key=lambda reader: (not reader.is_ready, reader.pending_s))
