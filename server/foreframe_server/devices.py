"""The devices of one model: a thread for each, with what runs on it, and the processes behind them.

It knows engines, workers and readers, and no service.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from foreframe_server.budgets import Budgets
from foreframe_server.cost_model import CostModel
from foreframe_server.device import DeviceThread
from foreframe_server.metrics import Metrics
from foreframe_server.opening import OpenedEngines, OpenEngines
from foreframe_server.pool import WorkerPool
from foreframe_server.processes.openers import name_opener
from foreframe_server.processes.team import EngineTeam
from foreframe_server.quarantine import Quarantine
from foreframe_server.quotas import Charge
from foreframe_server.reader_pool import ReaderPool
from foreframe_server.scheduler import Scheduler
from foreframe_server.settings import EngineSettings, SchedulerSettings
from foreframe_server.token_reader import TokenReader, TokenReaders
from foreframe_server.worker import EngineWorker
from foreframe_server.workers import PartWorker, Workers


def _always() -> bool:
    return True


def _nothing() -> None:
    return


@dataclass(frozen=True, slots=True, eq=False)
class BuiltWorkers:
    """A thread for each device, not started yet, and what runs jobs on each. No workers where nothing is predicted."""

    threads: tuple[DeviceThread, ...]
    workers: tuple[PartWorker, ...]


@dataclass(frozen=True, slots=True, eq=False)
class OpenedDevices:
    """A model's engines, those of one device after another's. `is_up`: whether they can be expected to answer.

    close: frees what is behind them, after the engines. build_workers: what runs jobs, where it is not these engines.
    """

    engines: tuple[OpenedEngines, ...]
    is_up: Callable[[], bool] = _always
    close: Callable[[], None] = _nothing
    build_workers: Callable[[Metrics, Charge], BuiltWorkers] | None = None


OpenDevices: TypeAlias = Callable[[OpenEngines, EngineSettings, Metrics], Awaitable[OpenedDevices]]
"""Opens the model that the settings name, wherever its devices are. Raises what opening raises."""


async def open_devices(open_engines: OpenEngines, settings: EngineSettings, metrics: Metrics) -> OpenedDevices:
    """Open a model in as many processes as the settings say, or here where it cannot be opened elsewhere.

    Raises what opening raises.
    """
    if settings.processes == 0 or not _has_name(open_engines):
        return OpenedDevices((await asyncio.to_thread(open_engines, settings),))
    team = EngineTeam(open_engines, settings, size=settings.processes, on_restart=metrics.count_restart)
    try:
        await asyncio.to_thread(team.start)
    except BaseException:
        await asyncio.to_thread(team.close)
        raise
    engines = tuple(team.opened(index) for index in range(settings.processes))
    return OpenedDevices(engines, lambda: team.is_ready, team.close)


def _has_name(open_engines: OpenEngines) -> bool:
    """Whether another process can find what opens the model; engines that are open already stay where they are."""
    try:
        name_opener(open_engines)
    except ValueError:
        return False
    return True


@dataclass(slots=True, eq=False)
class Devices:
    """The threads of a model's devices. `workers` is None for a model that predicts nothing.

    Made by `start_devices`; `start_reading` after the workers are warm, then `stop`.
    """

    opened: OpenedDevices
    threads: tuple[DeviceThread, ...]
    workers: Workers | None
    quarantine: Quarantine
    readers: TokenReaders | None = field(default=None)

    async def start_reading(self, limits: SchedulerSettings, metrics: Metrics, charge: Charge) -> TokenReaders | None:
        """Let the likelihood engines, where there are any, read on their devices' threads, and warm them up."""
        readers = [
            TokenReader(
                opened.likelihood,
                thread,
                metrics,
                max_rows=limits.max_read_rows,
                max_pending_s=limits.max_pending_read_s,
                charge=charge,
                quarantine=self.quarantine,
            )
            for opened, thread in zip(self.opened.engines, self.threads, strict=True)
            if opened.likelihood is not None
        ]
        if readers:
            self.readers = readers[0] if len(readers) == 1 else ReaderPool(readers)
            await self.readers.warm_up()
        return self.readers

    async def stop(self, drain_s: float) -> None:
        """Let running reads end, then running predictions, and free the devices; nothing new is admitted."""
        drain_until_s = time.monotonic() + drain_s
        try:
            if self.readers is not None:
                await self.readers.stop(drain_s)
        finally:
            try:
                await self._stop_threads(max(0.0, drain_until_s - time.monotonic()))
            finally:
                await asyncio.to_thread(self.opened.close)

    async def _stop_threads(self, drain_s: float) -> None:
        if self.workers is not None:
            await self.workers.stop(drain_s)
        else:
            await asyncio.gather(*(thread.join() for thread in self.threads))


def start_devices(opened: OpenedDevices, limits: SchedulerSettings, metrics: Metrics, charge: Charge) -> Devices:
    """Start a thread for each device of a model."""
    quarantine = Quarantine()
    if opened.build_workers is None:
        built = _build_workers(opened, limits, metrics, charge, quarantine)
    else:
        built = opened.build_workers(metrics, charge)
    for thread in built.threads:
        thread.start()
    return Devices(opened, built.threads, _join(built.workers), quarantine)


def _build_workers(
    opened: OpenedDevices, limits: SchedulerSettings, metrics: Metrics, charge: Charge, quarantine: Quarantine
) -> BuiltWorkers:
    workers = tuple(
        EngineWorker(
            engines.rollout,
            _build_scheduler(limits, engines, charge),
            metrics,
            quarantine=quarantine,
            is_engine_up=opened.is_up,
        )
        for engines in opened.engines
        if engines.rollout is not None
    )
    return BuiltWorkers(workers or tuple(DeviceThread(metrics) for _ in opened.engines), workers)


def _join(workers: Sequence[PartWorker]) -> Workers | None:
    if not workers:
        return None
    return workers[0] if len(workers) == 1 else WorkerPool(workers, time.monotonic)


def _build_scheduler(limits: SchedulerSettings, engines: OpenedEngines, charge: Charge) -> Scheduler:
    return Scheduler(
        CostModel(engines.contract.buckets, max_rows=limits.max_rows),
        max_pending_s=limits.max_pending_s,
        bulk_share=limits.bulk_share,
        budgets=Budgets(limits.key_budget, limits.key_burst_s, charge),
    )
