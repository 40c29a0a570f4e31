"""What the routes serve from: the settings, the metrics and, once they are open, the models."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import anyio
from anyio import to_thread
from starlette.requests import HTTPConnection

from foreframe_engines import Contract
from foreframe_server.bodies import Bodies
from foreframe_server.codec import Bounds
from foreframe_server.errors import NotReady
from foreframe_server.hosting import HostedModel
from foreframe_server.kserve_statistics import InferenceCounts
from foreframe_server.loaded_models import LoadedModels
from foreframe_server.metrics import Metrics
from foreframe_server.observations import ObservationStore
from foreframe_server.repository import ModelRepository
from foreframe_server.session_store import SessionStore
from foreframe_server.settings import Settings

_P = ParamSpec("_P")
_T = TypeVar("_T")
_RETRY_AFTER_MS = 1000


@dataclass(slots=True, eq=False)
class Host:
    """One server's parts. `repository` opens models; `failure` is why none will ever be open.

    `is_leaving`: the server was told to stop and still serves.
    """

    settings: Settings
    metrics: Metrics
    models: LoadedModels = field(default_factory=LoadedModels)
    repository: ModelRepository | None = None
    failure: Exception | None = None
    is_leaving: bool = False
    inference_counts: defaultdict[str, InferenceCounts] = field(default_factory=lambda: defaultdict(InferenceCounts))
    bodies: Bodies = field(default_factory=Bodies)
    observations: ObservationStore = field(init=False)
    codec_slots: anyio.CapacityLimiter = field(init=False)

    def __post_init__(self) -> None:
        held = self.settings.observations
        self.observations = ObservationStore(held.ttl_s, held.max_bytes, time.monotonic)
        self.codec_slots = anyio.CapacityLimiter(self.settings.http.codec_threads)

    @property
    def bounds(self) -> Bounds:
        """How much one body may hold."""
        limits = self.settings.limits
        return Bounds(limits.max_json_values, limits.max_picture_pixels, limits.max_candidates)

    @property
    def model(self) -> HostedModel | None:
        """The default model, None until it is open."""
        return self.models.default

    @property
    def is_ready(self) -> bool:
        """Whether everything that is meant to be served is answered."""
        return self.repository is not None and self.repository.is_ready and not self.is_leaving

    @property
    def has_failed(self) -> bool:
        """Whether no model will ever be open."""
        return self.failure is not None

    def leave(self) -> None:
        """Tell whoever asks that this server is not ready any more."""
        self.is_leaving = True

    def open_repository(self) -> ModelRepository:
        """Return what loads models. Raises NotReady before the server has started."""
        if self.repository is None:
            raise NotReady("The server has not started yet.", retry_after_ms=_RETRY_AFTER_MS)
        return self.repository

    def open_model(self) -> HostedModel:
        """Return the default model. Raises NotReady before it is open."""
        return self.models.prefer(None)

    def open_contract(self) -> Contract:
        """Return the default model's contract. Raises NotReady before it is open."""
        return self.open_model().contract

    def session_stores(self) -> list[SessionStore]:
        """List what holds every model's sessions, after those that have expired were forgotten."""
        stores = [model.sessions.store for model in self.models.every() if model.sessions is not None]
        for store in stores:
            store.forget_expired()
        return stores

    async def compute(self, work: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run codec work in one of the codec's threads."""
        return await to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self.codec_slots)


def host_of(connection: HTTPConnection) -> Host:
    """Return the host of the app that a request or a websocket came to."""
    return connection.app.state.host
