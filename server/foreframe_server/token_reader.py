"""Reads grids of tokens on the device, a few rows at a time, so that other work runs between them.

It knows engines, deadlines and urgency, and nothing of wires or caches. What a read needs from earlier reads is told
by the generators of `foreframe_engines.reading`.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import structlog
from jaxtyping import Float32, Int64, UInt8

from foreframe_engines import Contract, Priority
from foreframe_engines.engine import LikelihoodEngine
from foreframe_engines.reading import Reads, grid_states, history_reads
from foreframe_engines.types import GridScore, TokenContext, TokenHistory, TokenRow, TokenSpec
from foreframe_server.calls import Call
from foreframe_server.device import DeviceThread
from foreframe_server.disconnects import ClientLeft
from foreframe_server.errors import DeadlineExceeded, NotReady, Overloaded, not_ready, retry_ms
from foreframe_server.metrics import Metrics
from foreframe_server.quarantine import Quarantine, digest_arrays
from foreframe_server.quotas import Charge, charge_nobody
from foreframe_server.rescue import Errand, Rescue, patiently, refusal
from foreframe_server.turns import Turns

_READ_SMOOTHING = 0.2
_MAX_LEARNED = 4
"""Times the usual read, of what one read may teach."""

_log = structlog.get_logger(__name__)

T = TypeVar("T")


class TokenReaders(Protocol):
    """What services need of whatever reads tokens: one device or several."""

    contract: Contract
    tokens: TokenSpec

    @property
    def is_ready(self) -> bool:
        """Whether jobs are taken."""

    async def warm_up(self) -> None:
        """Run every graph once. Raises what the engine raises."""

    async def stop(self, drain_s: float) -> None:
        """Take no more jobs, give the admitted ones so long, close the engines."""

    def admitting(self, num_reads: int, call: Call) -> AbstractContextManager["TokenJob"]:
        """Admit a job of so many reads. Raises NotReady or Overloaded."""

    async def context(
        self, frames: UInt8[np.ndarray, "t h w 3"], states: Float32[np.ndarray, "t n"], call: Call
    ) -> TokenContext:
        """Tokenise and read whole windows of context frames."""

    def num_grids(self, num_frames: int) -> int:
        """How many grids whole windows of frames become."""


class TokenReader:
    """Runs a likelihood engine on the device's thread.

    max_rows: rows of one visit to the device. max_pending_s: predicted seconds of reads that may be ahead of a new
    job; a controller's job counts the controllers' reads only, so bulk work never keeps a controller out. charge:
    hears for which key the device worked how long. quarantine: what engines died of, shared with whatever runs the same
    requests.
    """

    def __init__(  # noqa: PLR0913 - the parts it joins, each once
        self,
        engine: LikelihoodEngine,
        device: DeviceThread,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_rows: int = 8,
        max_pending_s: float = 10.0,
        charge: Charge = charge_nobody,
        quarantine: Quarantine | None = None,
    ) -> None:
        self.contract = engine.contract
        self.tokens = engine.tokens
        self.max_rows = max_rows
        self.engine = engine
        self._device = device
        self._metrics = metrics
        self._clock = clock
        self._max_pending_s = max_pending_s
        self._charge = charge
        self._rescue = Rescue(metrics, quarantine, clock)
        self._turns = Turns()
        self._read_s = 0.0
        self._jobs: set[TokenJob] = set()
        self._is_stopping = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    @property
    def is_ready(self) -> bool:
        """Whether jobs are taken."""
        return self._device.is_ready and not self._is_stopping

    @property
    def pending_s(self) -> float:
        """How many seconds of predicted reads wait."""
        return self._reads_s(self._jobs)

    async def warm_up(self) -> None:
        """Run every graph once and learn how long a read takes. Raises what the engine raises."""
        self._read_s = await self._device.run(partial(patiently, self._run_all))

    async def stop(self, drain_s: float) -> None:
        """Take no more jobs, give the admitted ones so long, close the engine on the device's thread.

        Call it before the worker is stopped.
        """
        self._is_stopping = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self._is_idle.wait()
        with contextlib.suppress(NotReady):
            await self._device.run(self.engine.close)

    @contextlib.contextmanager
    def admitting(self, num_reads: int, call: Call) -> Iterator["TokenJob"]:
        """Admit a job of so many reads, which are booked until the block ends.

        Raises NotReady, or Overloaded when the reads ahead of it take longer than `max_pending_s`.
        """
        self._check_room(call.priority)
        job = TokenJob(self, call, num_reads)
        self._jobs.add(job)
        self._is_idle.clear()
        try:
            yield job
        finally:
            self._jobs.remove(job)
            if not self._jobs:
                self._is_idle.set()

    async def context(
        self, frames: UInt8[np.ndarray, "t h w 3"], states: Float32[np.ndarray, "t n"], call: Call
    ) -> TokenContext:
        """Tokenise and read whole windows of context frames.

        Raises NotReady, Overloaded, DeadlineExceeded, ClientLeft, WorkerCrashed or ModelFault.
        """
        with self.admitting(self.num_grids(len(frames)) - 1, call) as job:
            return await job.context(frames, states)

    def num_grids(self, num_frames: int) -> int:
        """How many grids whole windows of frames become."""
        return num_frames // self.tokens.window_frames * self.tokens.window_grids

    async def visit(self, action: Callable[[], T], job: "TokenJob", digest: Callable[[], bytes]) -> T:
        """Wait for the job's turn and run an action on the device's thread, again where the engine died of it.

        digest: tells the action from others. Raises as `context`, never Overloaded.
        """
        asked_s = self._clock()
        async with self._turns.taking(job.call.priority, job.call.deadline_s):
            await self._check_wanted(job.call)
            errand = Errand(job.call.deaths, job.call.deadline_s, digest)
            rescued = partial(self._rescue.run, errand, action)
            return await self._device.run(partial(self._run_timed, rescued, job, asked_s))

    def read_rows(self, rows: Sequence[TokenRow]) -> list[GridScore]:
        """Read rows in one forward, on the device's thread, and learn how long one takes."""
        started_s = self._clock()
        scores = self.engine.read(rows)
        if len(scores) != len(rows):
            raise RuntimeError(f"the engine returned {len(scores)} scores for {len(rows)} rows")
        self._learn((self._clock() - started_s) / len(rows))
        return scores

    def _learn(self, read_s: float) -> None:
        """Move towards what a read took; one that waited for an engine to come back says little of the next."""
        if self._read_s:
            self._read_s += _READ_SMOOTHING * (min(read_s, _MAX_LEARNED * self._read_s) - self._read_s)
        else:
            self._read_s = read_s

    def _check_room(self, priority: Priority) -> None:
        if not self.is_ready:
            raise not_ready()
        jobs = [job for job in self._jobs if priority is Priority.BULK or job.call.priority is priority]
        over_s = self._reads_s(jobs) - self._max_pending_s
        if over_s > 0:
            raise Overloaded("More work waits than the server takes on.", retry_after_ms=retry_ms(over_s))

    def _reads_s(self, jobs: Iterable["TokenJob"]) -> float:
        """Predict the seconds of the reads that jobs still wait for."""
        return self._read_s * sum(job.num_left for job in jobs)

    async def _check_wanted(self, call: Call) -> None:
        if call.deadline_s is not None and call.deadline_s <= self._clock():
            raise DeadlineExceeded("The deadline passed before the answer was ready.")
        if call.is_disconnected is not None and await call.is_disconnected():
            raise ClientLeft("The client left.")

    def _run_timed(self, action: Callable[[], T], job: "TokenJob", asked_s: float) -> T:
        started_s = self._clock()
        job.queue_s += started_s - asked_s
        try:
            return _run_guarded(action)
        finally:
            seconds = self._clock() - started_s
            job.device_s += seconds
            self._charge(job.call.key, seconds)

    def _run_all(self) -> float:
        tokens, camera = self.tokens, self.contract.camera
        frames = np.zeros((tokens.window_frames, camera.height, camera.width, 3), np.uint8)
        ids = self.engine.tokenize(frames)
        self.engine.detokenize(ids)
        states = np.tile(self.contract.state.mean.astype(np.float32), (2, 1))
        row = TokenRow(ids[0], states, TokenHistory(), target=ids[0], top_k=1)
        score = self.engine.read([row])[0]
        later = TokenRow(ids[0], states, score.history, target=ids[0])
        self.engine.read([later] * self.max_rows)
        started_s = self._clock()
        self.engine.read([later] * self.max_rows)
        return (self._clock() - started_s) / self.max_rows


class TokenJob:
    """The reads of one call, admitted together. Made by `TokenReader.admitting`; its methods raise as `visit`.

    `num_left` reads are still to come; `queue_s` and `device_s` are how long the done ones have waited and run.
    """

    def __init__(self, reader: TokenReader, call: Call, num_reads: int) -> None:
        self.call = call
        self.num_left = num_reads
        self.queue_s = 0.0
        self.device_s = 0.0
        self._reader = reader

    async def tokenize(self, frames: UInt8[np.ndarray, "t h w 3"]) -> Int64[np.ndarray, "g s"]:
        """Turn whole windows of frames into grids of ids."""
        digest = partial(digest_arrays, "tokenize", [frames])
        return await self._reader.visit(partial(self._reader.engine.tokenize, frames), self, digest)

    async def context(self, frames: UInt8[np.ndarray, "t h w 3"], states: Float32[np.ndarray, "t n"]) -> TokenContext:
        """Tokenise whole windows of context frames and read every grid but the last."""
        ids = await self.tokenize(frames)
        return await self.run(history_reads(ids, grid_states(states, self._reader.tokens)))

    async def run(self, reads: Reads[T]) -> T:
        """Read one row after another as they are asked for, and return what they add up to."""
        try:
            row = next(reads)
            while True:
                (score,) = await self.read([row])
                row = reads.send(score)
        except StopIteration as done:
            answer: T = done.value
            return answer

    async def read(self, rows: Sequence[TokenRow]) -> list[GridScore]:
        """Read one grid of each row, so many at a time as the reader takes."""
        scores: list[GridScore] = []
        size = self._reader.max_rows
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            scores += await self._reader.visit(partial(self._reader.read_rows, part), self, partial(_digest, part))
            self.num_left -= len(part)
        return scores


def _run_guarded(action: Callable[[], T]) -> T:
    try:
        return action()
    except Exception as error:
        _log.exception("token_reader.engine_failed")
        raise refusal(error) from error


def _digest(rows: Sequence[TokenRow]) -> bytes:
    arrays = [array for row in rows for array in (row.ids, row.states, row.target) if array is not None]
    return digest_arrays("read", arrays)
