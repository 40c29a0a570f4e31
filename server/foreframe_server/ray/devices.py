"""A model whose devices are replicas: opened, asked and closed as one whose devices are here. Knows no Ray."""

import asyncio
from functools import partial

from foreframe_engines import Contract
from foreframe_server.devices import BuiltWorkers, OpenedDevices
from foreframe_server.metrics import Metrics
from foreframe_server.opening import OpenedEngines, OpenEngines
from foreframe_server.processes.engines import ProcessLikelihoodEngine, ProcessRolloutEngine
from foreframe_server.processes.messages import Hello
from foreframe_server.processes.notes import read_calibration, read_facts, read_folder
from foreframe_server.quotas import Charge
from foreframe_server.ray.remote import RemoteWorker
from foreframe_server.ray.remote_engine import RemoteCalls
from foreframe_server.ray.replicas import Link, Replicas
from foreframe_server.settings import EngineSettings

BUILT_IN = "built-in"
"""What the model is called that the settings do not name."""


def name_model(settings: EngineSettings) -> str:
    """Name the model that settings mean, so that a replica finds it."""
    return BUILT_IN if settings.bundle is None else str(settings.bundle.absolute())


class RemoteDevices:
    """Opens models on replicas, at most `max_replicas` of them; see `OpenDevices`."""

    def __init__(self, link: Link, max_replicas: int) -> None:
        self._link = link
        self._max_replicas = max_replicas

    async def __call__(self, _: OpenEngines, settings: EngineSettings, __: Metrics) -> OpenedDevices:
        """Open the model that the settings name on every replica; what opens it is the replicas' own choice.

        Raises what opening raised there.
        """
        replicas = Replicas(self._link, name_model(settings), self._max_replicas)
        hello = await replicas.open()
        engines = tuple(_open_engines(hello, replicas, place) for place in range(self._max_replicas))
        close = partial(_close, replicas, asyncio.get_running_loop())
        build = partial(_build_workers, replicas, engines)
        return OpenedDevices(engines, lambda: replicas.find() is not None, close, build)


def _open_engines(hello: Hello, replicas: Replicas, place: int) -> OpenedEngines:
    calls = RemoteCalls(replicas, place)
    rollout = None if hello.rollout is None else ProcessRolloutEngine(read_facts(hello.rollout), calls, _nothing)
    likelihood = None
    if hello.likelihood is not None:
        likelihood = ProcessLikelihoodEngine(read_facts(hello.likelihood), calls, _nothing)
    return OpenedEngines(hello.fingerprint, rollout, likelihood, read_calibration(hello), read_folder(hello))


def _build_workers(
    replicas: Replicas, engines: tuple[OpenedEngines, ...], metrics: Metrics, charge: Charge
) -> BuiltWorkers:
    contract: Contract = engines[0].contract
    lanes = tuple(RemoteWorker(replicas, place, contract.buckets, metrics, charge) for place in range(len(engines)))
    return BuiltWorkers(lanes, lanes if engines[0].rollout is not None else ())


def _close(replicas: Replicas, loop: asyncio.AbstractEventLoop) -> None:
    asyncio.run_coroutine_threadsafe(replicas.close(), loop).result()


def _nothing() -> None:
    return
