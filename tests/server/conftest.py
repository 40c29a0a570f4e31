"""The server's core on a toy engine: queries, calls, a running worker, a gate that holds the device."""

import contextlib
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import structlog.testing

from foreframe_engines import EnsembleSpec, NoisePlan, Priority, Query, Reducer, RolloutEngine, Sampling, Strategy
from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine
from foreframe_server.cache import ResultCache
from foreframe_server.calls import CachePolicy, Call, OnDeadline
from foreframe_server.cost_model import CostModel
from foreframe_server.metrics import Metrics
from foreframe_server.scheduler import Scheduler
from foreframe_server.service import PredictionService
from foreframe_server.token_reader import TokenReader
from foreframe_server.worker import EngineWorker

sys.path.append(str(Path(__file__).parent / "toys"))

PATIENCE_S = 20


class Gate:
    """A step hook that holds the device while it is closed."""

    def __init__(self):
        self.is_open = threading.Event()
        self.is_open.set()
        self.is_entered = threading.Event()
        self.num_free_passes = 0

    def __call__(self, rows):
        if self.num_free_passes > 0:
            self.num_free_passes -= 1
            return
        if not self.is_open.is_set():
            self.is_entered.set()
            assert self.is_open.wait(PATIENCE_S)

    def close(self, after=0):
        """Hold the device at the forward after the next `after` ones."""
        self.num_free_passes = after
        self.is_entered.clear()
        self.is_open.clear()

    def open(self):
        self.is_open.set()


class FakeClock:
    """Time that only tests move."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@dataclass(frozen=True)
class Core:
    engine: RolloutEngine
    scheduler: Scheduler
    metrics: Metrics
    worker: EngineWorker
    cache: ResultCache
    service: PredictionService

    def count(self, name, **labels):
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def make_scheduler(contract, max_pending_s=600.0):
    """A scheduler whose forwards are as large as the contract allows, whatever the machine measures."""
    return Scheduler(CostModel(contract.buckets, max_rows=contract.buckets[-1]), max_pending_s=max_pending_s)


@contextlib.asynccontextmanager
async def run_core(
    engine=None, *, max_pending_s=600.0, row_s=None, redis=None, clock=time.monotonic
) -> AsyncIterator[Core]:
    engine = engine or ToyRolloutEngine()
    metrics = Metrics()
    scheduler = make_scheduler(engine.contract, max_pending_s)
    worker = EngineWorker(engine, scheduler, metrics, clock)
    cache = ResultCache(metrics, redis=redis and redis(metrics))
    service = PredictionService(worker, cache, metrics, engine, engine_fingerprint="toy cpu", clock=clock)
    worker.start()
    await worker.warm_up()
    if row_s is not None:
        scheduler.cost.fit({rows: row_s * rows for rows in engine.contract.buckets})
    engine.calls.clear()
    engine.step_rows.clear()
    try:
        yield Core(engine, scheduler, metrics, worker, cache, service)
    finally:
        await worker.stop(PATIENCE_S)
        await service.close()
        await cache.close()


@dataclass(frozen=True)
class Reading:
    engine: ToyLikelihoodEngine
    reader: TokenReader
    core: Core


@contextlib.asynccontextmanager
async def run_reader(engine=None, *, rollout=None, clock=time.monotonic, **limits) -> AsyncIterator[Reading]:
    engine = engine or ToyLikelihoodEngine()
    async with run_core(rollout or ToyRolloutEngine(engine.contract), clock=clock) as core:
        reader = TokenReader(engine, core.worker, core.metrics, clock=clock, **limits)
        await reader.warm_up()
        engine.calls.clear()
        engine.read_rows.clear()
        try:
            yield Reading(engine, reader, core)
        finally:
            await reader.stop(PATIENCE_S)


@dataclass(frozen=True)
class Clip:
    """Frames, their states, and ids and states of grids after them."""

    frames: np.ndarray
    states: np.ndarray
    ids: np.ndarray
    future: np.ndarray


def build_clip(seed=0, *, num_frames=4, num_grids=5):
    rng = np.random.default_rng(seed)
    return Clip(
        rng.integers(0, 256, (num_frames, 8, 8, 3), dtype=np.uint8),
        rng.standard_normal((num_frames, 3), dtype=np.float32),
        rng.integers(0, 6, (num_grids, 4)),
        rng.standard_normal((num_grids, 3), dtype=np.float32),
    )


def build_query(
    seed=0,
    *,
    content=None,
    size=1,
    steps=4,
    strategy=Strategy.SAMPLE,
    reducer=Reducer.MEAN,
    noise=NoisePlan.ANTITHETIC,
    frame_indices=(1, 4, 8),
    priority=Priority.CONTROLLER,
    stream_id=None,
    model="toy",
):
    rng = np.random.default_rng(seed if content is None else content)
    return Query(
        model=model,
        context=rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8),
        states=rng.standard_normal((12, 3), dtype=np.float32),
        frame_indices=frame_indices,
        sampling=Sampling(strategy, steps, seed),
        ensemble=EnsembleSpec(size, reducer, noise),
        priority=priority,
        stream_id=stream_id,
    )


def build_call(
    *,
    received_s=0.0,
    deadline_s=None,
    on_deadline=OnDeadline.DEGRADE,
    cache=CachePolicy.USE,
    is_disconnected=None,
    priority=Priority.CONTROLLER,
):
    return Call("test", received_s, deadline_s, on_deadline, cache, is_disconnected, priority)


@pytest.fixture(autouse=True)
def logs():
    with structlog.testing.capture_logs() as entries:
        yield entries


@pytest.fixture
def make_query():
    return build_query


@pytest.fixture
def make_call():
    return build_call


@pytest.fixture
def running():
    return run_core


@pytest.fixture
def reading():
    return run_reader


@pytest.fixture
def make_clip():
    return build_clip


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def fake_clock():
    return FakeClock()


@pytest.fixture
def toy_folder(tmp_path):
    from model_toys import ToyFolder  # noqa: PLC0415 - of the folder that was added to the path above

    return ToyFolder(tmp_path / "models")
