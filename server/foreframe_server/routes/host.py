"""What the routes serve from: the settings, the metrics and, once it is open, the model."""

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
from foreframe_server.kserve_sequences import SequenceBook
from foreframe_server.kserve_statistics import InferenceCounts
from foreframe_server.metrics import Metrics
from foreframe_server.observations import ObservationStore
from foreframe_server.settings import Settings

_P = ParamSpec("_P")
_T = TypeVar("_T")
_RETRY_AFTER_MS = 1000


@dataclass(slots=True, eq=False)
class Host:
    """One server's parts. `model` is None until it is open; `has_failed` says that it never will be."""

    settings: Settings
    metrics: Metrics
    model: HostedModel | None = None
    has_failed: bool = False
    inference_counts: defaultdict[str, InferenceCounts] = field(default_factory=lambda: defaultdict(InferenceCounts))
    sequences: SequenceBook = field(default_factory=SequenceBook)
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
    def is_ready(self) -> bool:
        """Whether what the model can do is answered."""
        return self.model is not None and self.model.is_ready

    def open_model(self) -> HostedModel:
        """Return what is served. Raises NotReady before the model is open."""
        if self.model is None:
            raise NotReady("The model is not open yet.", retry_after_ms=_RETRY_AFTER_MS)
        return self.model

    def open_contract(self) -> Contract:
        """Return the model's contract. Raises NotReady before the model is open."""
        return self.open_model().contract

    async def compute(self, work: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run codec work in one of the codec's threads."""
        return await to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self.codec_slots)


def host_of(connection: HTTPConnection) -> Host:
    """Return the host of the app that a request or a websocket came to."""
    return connection.app.state.host
