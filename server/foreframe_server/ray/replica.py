"""A replica of the engines on Ray Serve: opens models as they are asked for, and answers with bytes."""

import asyncio
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import structlog
from ray import serve

from foreframe_engines import EngineLost
from foreframe_server.processes.frames import CorruptFrame
from foreframe_server.processes.messages import Failure
from foreframe_server.processes.openers import find_opener
from foreframe_server.processes.parcels import ReceivedArrays
from foreframe_server.ray.autoscaling import PENDING_STEP_MS
from foreframe_server.ray.devices import BUILT_IN
from foreframe_server.ray.envelopes import Letter, read_letter, write_letter
from foreframe_server.ray.messages import Ask, Nothing, Standing
from foreframe_server.ray.replica_model import ReplicaModel
from foreframe_server.ray.safety import require_token
from foreframe_server.ray.translation import write_error
from foreframe_server.settings import EngineSettings, read_settings

_DRAIN_S = 25.0
_MAX_LINKS = 256

_log = structlog.get_logger(__name__)


class _Loan:
    """A model that Serve may let go of when others are wanted: it ends what it has, then it closes."""

    def __init__(self, model: ReplicaModel, loop: asyncio.AbstractEventLoop) -> None:
        self.model = model
        self._loop: asyncio.AbstractEventLoop | None = loop

    def __del__(self) -> None:
        """Close the model; called by Serve in a thread of its own, and once more when it is forgotten."""
        loop, self._loop = self._loop, None
        if loop is not None and loop.is_running():
            asyncio.run_coroutine_threadsafe(self.model.stop(_DRAIN_S), loop)


class EngineReplica:
    """The engines of one device. Every method takes the name of the replica that is meant, and a message.

    opener: dotted name of what opens a model. max_models: how many are open at once; the longest unused one is closed.
    """

    def __init__(self, opener: str, max_models: int) -> None:
        require_token()
        self._name = serve.get_replica_context().replica_id.unique_id
        self._open_engines = find_opener(opener)
        self._settings = read_settings()
        self._find = serve.multiplexed(max_num_models_per_replica=max_models)(self._open_loan())
        self._standings: dict[str, Standing] = {}
        self._models: weakref.WeakSet[ReplicaModel] = weakref.WeakSet()
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._links: dict[str, ReceivedArrays] = {}

    async def stand(self, _: str, data: bytes) -> bytes:
        """Tell at once how a model stands, and begin to open one that was never asked for."""
        letter = read_letter(data)
        if not isinstance(letter.body, Ask):
            raise CorruptFrame("a message asks for no standing")
        name = letter.model
        if name not in self._opening:
            self._opening[name] = asyncio.create_task(self._open(name))
        live = [model for model in self._models if model.name == name]
        standing = live[0].standing(self._name) if live else self._standings.get(name, Standing(replica=self._name))
        return write_letter(name, standing)

    async def run(self, place: str, data: bytes) -> AsyncIterator[bytes]:
        """Run a job and tell of it."""
        letter = read_letter(data)
        if not self._is_meant(place):
            yield self._misplaced(letter)
            return
        async for news in (await self._model(letter)).run(letter):
            yield news

    async def control(self, place: str, data: bytes) -> bytes:
        """Change or look at a job."""
        letter = read_letter(data)
        live = [model for model in self._models if model.name == letter.model]
        return (
            await live[0].control(letter) if live and self._is_meant(place) else write_letter(letter.model, Nothing())
        )

    async def encode(self, place: str, data: bytes) -> bytes:
        """Encode a context."""
        letter = read_letter(data)
        return await (await self._model(letter)).encode(letter) if self._is_meant(place) else self._misplaced(letter)

    async def call_engine(self, place: str, data: bytes) -> bytes:
        """Run a call of an engine; arrays that last are known by number on each link."""
        if not self._is_meant(place):
            return self._misplaced(read_letter(data, {}))
        letter = read_letter(data, self._links)
        while len(self._links) > _MAX_LINKS:
            del self._links[next(iter(self._links))]
        return await (await self._model(letter)).call_engine(letter)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Ray Serve how much work waits."""
        return {PENDING_STEP_MS: 1000 * sum(model.pending_s for model in self._models)}

    def _is_meant(self, place: str) -> bool:
        return place in ("", self._name)

    def _misplaced(self, letter: Letter) -> bytes:
        return write_letter(letter.model, write_error(EngineLost("the replica that was meant is gone", has_run=False)))

    async def _model(self, letter: Letter) -> ReplicaModel:
        loan: _Loan = await self._find(letter.model)
        return loan.model

    async def _open(self, name: str) -> None:
        """Open a model for the first time, and remember how it stood or why it cannot be opened."""
        try:
            loan: _Loan = await self._find(name)
            self._standings[name] = loan.model.standing(self._name)
        except Exception as error:  # noqa: BLE001 - whoever asked for it is told
            _log.exception("a model could not be opened", model=name)
            told = write_error(error)
            failure = told if isinstance(told, Failure) else Failure(error="EngineError", message=str(error))
            self._standings[name] = Standing(replica=self._name, failure=failure)
            self._opening.pop(name, None)

    def _open_loan(self) -> Callable[[str], Awaitable[_Loan]]:
        async def open_loan(name: str) -> _Loan:
            settings = engine_settings(self._settings.engine, name)
            model = await ReplicaModel.open(name, self._open_engines, settings, self._settings.scheduler)
            self._models.add(model)
            return _Loan(model, asyncio.get_running_loop())

        return open_loan


def engine_settings(settings: EngineSettings, name: str) -> EngineSettings:
    """Return the settings that mean a model of this name."""
    return settings.model_copy(update={"bundle": None if name == BUILT_IN else Path(name)})
