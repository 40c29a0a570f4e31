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
from foreframe_server.context_encoder import ContextEncoder
from foreframe_server.errors import CapabilityMissing, NotReady
from foreframe_server.kserve_sequences import SequenceBook
from foreframe_server.kserve_statistics import InferenceCounts
from foreframe_server.likelihood_service import LikelihoodService
from foreframe_server.metrics import Metrics
from foreframe_server.observations import ObservationStore
from foreframe_server.score_service import ScoreService
from foreframe_server.service import PredictionService
from foreframe_server.session_clips import ShippedClips
from foreframe_server.session_service import SessionService
from foreframe_server.settings import Settings
from foreframe_server.token_reader import TokenReader

_P = ParamSpec("_P")
_T = TypeVar("_T")
_RETRY_AFTER_MS = 1000


@dataclass(frozen=True, slots=True, eq=False)
class HostedModel:
    """What is served, and what equal queries may count on."""

    contract: Contract
    determinism: str


@dataclass(slots=True, eq=False)
class Host:
    """One server's parts. `model` is None until it is open; `has_failed` says that it never will be.

    `service`, `sessions` and `scores` stay None for a model that predicts nothing, `reader` and `likelihoods` for one
    without tokens.
    """

    settings: Settings
    metrics: Metrics
    model: HostedModel | None = None
    service: PredictionService | None = None
    encoder: ContextEncoder | None = None
    reader: TokenReader | None = None
    likelihoods: LikelihoodService | None = None
    scores: ScoreService | None = None
    sessions: SessionService | None = None
    clips: ShippedClips = field(default_factory=ShippedClips)
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
        answering = self.service or self.reader
        return self.model is not None and answering is not None and answering.is_ready

    def open_model(self) -> HostedModel:
        """Return what is served. Raises NotReady before the model is open."""
        if self.model is None:
            raise _not_open()
        return self.model

    def open_contract(self) -> Contract:
        """Return the model's contract. Raises NotReady before the model is open."""
        return self.open_model().contract

    def open_service(self) -> PredictionService:
        """Return the service. Raises NotReady before the model is open, CapabilityMissing when it predicts nothing."""
        self.open_model()
        if self.service is None:
            raise _no_future()
        return self.service

    def open_encoder(self) -> ContextEncoder:
        """Return what encodes observations. Raises NotReady before the model is open."""
        self.open_model()
        if self.encoder is None:
            raise _not_open()
        return self.encoder

    def open_reader(self) -> TokenReader:
        """Return the reader of tokens. Raises NotReady before the model is open, CapabilityMissing without tokens."""
        self.open_model()
        if self.reader is None:
            raise _no_tokens()
        return self.reader

    def open_likelihoods(self) -> LikelihoodService:
        """Return the service of likelihoods. Raises as `open_reader`."""
        self.open_model()
        if self.likelihoods is None:
            raise _no_tokens()
        return self.likelihoods

    def open_scores(self) -> ScoreService:
        """Return the service of scores. Raises as `open_service`."""
        self.open_model()
        if self.scores is None:
            raise CapabilityMissing("The model scores no futures.")
        return self.scores

    def open_sessions(self) -> SessionService:
        """Return the service of sessions. Raises as `open_service`."""
        self.open_model()
        if self.sessions is None:
            raise _no_future()
        return self.sessions

    async def compute(self, work: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run codec work in one of the codec's threads."""
        return await to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self.codec_slots)


def _not_open() -> NotReady:
    return NotReady("The model is not open yet.", retry_after_ms=_RETRY_AFTER_MS)


def _no_future() -> CapabilityMissing:
    return CapabilityMissing("The model has no rollout half, so it predicts no futures.")


def _no_tokens() -> CapabilityMissing:
    return CapabilityMissing("The model has no tokens, so it knows no likelihoods.")


def host_of(connection: HTTPConnection) -> Host:
    """Return the host of the app that a request or a websocket came to."""
    return connection.app.state.host
