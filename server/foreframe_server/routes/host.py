"""What the routes serve from: the settings, the metrics and, once it is open, the model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import anyio
from anyio import to_thread
from starlette.requests import Request

from foreframe_engines import Contract
from foreframe_server.codec import Bounds
from foreframe_server.errors import NotReady
from foreframe_server.metrics import Metrics
from foreframe_server.service import PredictionService
from foreframe_server.settings import Settings

_P = ParamSpec("_P")
_T = TypeVar("_T")
_RETRY_AFTER_MS = 1000


@dataclass(slots=True, eq=False)
class Host:
    """One server's parts. `service` is None until the model is open; `has_failed` says that it never will be."""

    settings: Settings
    metrics: Metrics
    service: PredictionService | None = None
    has_failed: bool = False
    codec_slots: anyio.CapacityLimiter = field(init=False)

    def __post_init__(self) -> None:
        self.codec_slots = anyio.CapacityLimiter(self.settings.http.codec_threads)

    @property
    def bounds(self) -> Bounds:
        """How much one body may hold."""
        limits = self.settings.limits
        return Bounds(limits.max_json_values, limits.max_picture_pixels)

    @property
    def is_ready(self) -> bool:
        """Whether predictions are answered."""
        return self.service is not None and self.service.is_ready

    def open_service(self) -> PredictionService:
        """Return the service. Raises NotReady before the model is open."""
        if self.service is None:
            raise NotReady("The model is not open yet.", retry_after_ms=_RETRY_AFTER_MS)
        return self.service

    def open_contract(self) -> Contract:
        """Return the model's contract. Raises NotReady before the model is open."""
        return self.open_service().contract

    async def compute(self, work: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run codec work in one of the codec's threads."""
        return await to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self.codec_slots)


def host_of(request: Request) -> Host:
    """Return the host of the app that a request came to."""
    return request.app.state.host
