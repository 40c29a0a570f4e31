"""One model as it is served: its device's thread and the services above it, started in order and stopped in reverse.

It knows engines, settings and services, and no wire.
"""

import asyncio
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import structlog

from foreframe_engines import Contract
from foreframe_engines.swapping import Stage, SwappingRolloutEngine
from foreframe_server.cache import ResultCache
from foreframe_server.context_encoder import ContextEncoder
from foreframe_server.devices import Devices, OpenDevices, OpenedDevices, open_devices, start_devices
from foreframe_server.errors import CapabilityMissing
from foreframe_server.kserve_sequences import SequenceBook
from foreframe_server.likelihood_service import LikelihoodService
from foreframe_server.metrics import Metrics
from foreframe_server.opening import OpenedEngines, OpenEngines
from foreframe_server.quotas import Charge, charge_nobody
from foreframe_server.score_service import ScoreService
from foreframe_server.service import OnAnswer, PredictionService, ignore_answer
from foreframe_server.session_clips import ShippedClips
from foreframe_server.session_service import SessionService
from foreframe_server.session_store import SessionLimits, SessionStore
from foreframe_server.settings import EngineSettings, Settings
from foreframe_server.shared_sessions import SharedSessions
from foreframe_server.token_reader import TokenReaders
from foreframe_server.workers import Workers

if TYPE_CHECKING:
    from foreframe_server.recording.recorder import Recorder

_HANDOVER_POLL_S = 0.5

Capability: TypeAlias = Literal["predict", "likelihood", "score"]
"""What a call may need of a model."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class HostedModel:
    """What is served, what equal queries may count on, and the services that answer.

    `service`, `sessions` and `scores` stay None for a model that predicts nothing, `reader` and `likelihoods` for one
    without tokens.
    """

    contract: Contract
    determinism: str
    devices: Devices
    worker: Workers | None = None
    reader: TokenReaders | None = None
    likelihoods: LikelihoodService | None = None
    service: PredictionService | None = None
    scores: ScoreService | None = None
    sessions: SessionService | None = None
    clips: ShippedClips = field(default_factory=ShippedClips)
    recorder: "Recorder | None" = None
    handover: asyncio.Task[None] | None = None
    fingerprint: str = ""
    """Tells its bytes from other models' and versions'."""
    folder: Path | None = None
    """The bundle's, None of engines that were given."""
    sequences: SequenceBook = field(default_factory=SequenceBook)

    @property
    def is_ready(self) -> bool:
        """Whether what the model can do is answered."""
        answering = self.service or self.reader
        return answering is not None and answering.is_ready

    def can(self, capability: Capability | None) -> bool:
        """Whether a kind of call can be answered; any model can do nothing in particular."""
        services = {"predict": self.service, "likelihood": self.likelihoods, "score": self.scores}
        return capability is None or services[capability] is not None

    @property
    def encoder(self) -> ContextEncoder:
        """What encodes observations."""
        return ContextEncoder(self.contract, self.worker, self.reader)

    def open_service(self) -> PredictionService:
        """Return the service. Raises CapabilityMissing when the model predicts nothing."""
        if self.service is None:
            raise _no_future()
        return self.service

    def open_reader(self) -> TokenReaders:
        """Return the reader of tokens. Raises CapabilityMissing without tokens."""
        if self.reader is None:
            raise _no_tokens()
        return self.reader

    def open_likelihoods(self) -> LikelihoodService:
        """Return the service of likelihoods. Raises as `open_reader`."""
        if self.likelihoods is None:
            raise _no_tokens()
        return self.likelihoods

    def open_scores(self) -> ScoreService:
        """Return the service of scores. Raises CapabilityMissing when the model scores nothing."""
        if self.scores is None:
            raise CapabilityMissing("The model scores no futures.")
        return self.scores

    def open_sessions(self) -> SessionService:
        """Return the service of sessions. Raises as `open_service`."""
        if self.sessions is None:
            raise _no_future()
        return self.sessions

    async def stop(self, drain_s: float) -> None:
        """Let running reads end, then running predictions, free the devices, and wait until what is done is stored.

        Nothing new is admitted by what is stopping.
        """
        if self.handover is not None:
            self.handover.cancel()
            await asyncio.wait([self.handover])
            if not self.handover.cancelled() and (error := self.handover.exception()) is not None:
                _log.warning("the costs of the engine that took over were not learned", exc_info=error)
        await self.devices.stop(drain_s)
        if self.service is not None:
            await self.service.close()
        if self.sessions is not None:
            await self.sessions.close()
        if self.recorder is not None:
            await asyncio.to_thread(self.recorder.close)


class ModelStarter:
    """Starts models from engines that are open, with the settings, metrics and cache of one server.

    charge: hears for which key the device worked how long. open_devices: where models are opened.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        cache: ResultCache,
        charge: Charge = charge_nobody,
        open_devices: OpenDevices = open_devices,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._cache = cache
        self._charge = charge
        self._open_devices = open_devices

    async def open(self, open_engines: OpenEngines, settings: EngineSettings) -> HostedModel:
        """Open the model that the settings name and start it. Raises what opening or the engines raise."""
        return await self._start(await self._open_devices(open_engines, settings, self._metrics))

    async def start(self, opened: OpenedEngines) -> HostedModel:
        """Start a model's device and services and warm them up. Raises what the engines raise; nothing runs then."""
        return await self._start(OpenedDevices((opened,)))

    async def _start(self, devices: OpenedDevices) -> HostedModel:
        opened = devices.engines[0]
        started = start_devices(devices, self._settings.scheduler, self._metrics, self._charge)
        model = HostedModel(opened.contract, opened.determinism, started, started.workers)
        model.fingerprint, model.folder = opened.fingerprint, opened.folder
        try:
            await self._warm_up(model, opened)
        except BaseException:
            await model.stop(0.0)
            raise
        return model

    async def _warm_up(self, model: HostedModel, opened: OpenedEngines) -> None:
        if model.worker is not None:
            await model.worker.warm_up()
            model.determinism = model.worker.determinism
            if isinstance(opened.rollout, SwappingRolloutEngine):
                model.handover = asyncio.create_task(_learn_after_handover(opened.rollout, model.worker))
        model.reader = await model.devices.start_reading(self._settings.scheduler, self._metrics, self._charge)
        if model.reader is not None:
            model.likelihoods = LikelihoodService(model.reader, self._metrics, opened.calibration.surprise)
        if "score" in model.contract.capabilities:
            max_jobs = self._settings.scores.max_jobs
            model.scores = ScoreService(model.contract, model.worker, model.reader, self._metrics, max_jobs=max_jobs)
        if opened.rollout is not None and model.worker is not None:
            model.clips = ShippedClips(opened.folder)
            model.service = PredictionService(
                model.worker,
                self._cache,
                self._metrics,
                opened.rollout,
                engine_fingerprint=opened.fingerprint,
                determinism=model.determinism,
                calibration=opened.calibration.spread,
                on_answer=self._record_answers(model),
            )
            model.sessions = self._build_sessions(model.service, model.worker, opened.fingerprint)
        elif self._settings.recording.folder is not None:
            _log.warning("nothing is recorded, as the model predicts nothing")

    def _record_answers(self, model: HostedModel) -> OnAnswer:
        """Start to record answers, where the settings name a folder."""
        settings = self._settings.recording
        if settings.folder is None:
            return ignore_answer
        from foreframe_server.recording.recorder import Recorder  # noqa: PLC0415 - needs what comes with an extra

        model.recorder = Recorder(settings.folder, model.contract, self._metrics, settings)
        model.recorder.start()
        return model.recorder.offer

    def _build_sessions(self, predictions: PredictionService, worker: Workers, fingerprint: str) -> SessionService:
        settings, cache = self._settings.sessions, self._settings.cache
        limits = SessionLimits(**{field.name: getattr(settings, field.name) for field in fields(SessionLimits)})
        shared = None
        if settings.is_shared and cache.redis_url is not None and cache.secret is not None:
            shared = SharedSessions.connect(
                cache.redis_url.get_secret_value(),
                self._metrics,
                secret=cache.secret.get_secret_value().encode(),
                fingerprint=fingerprint,
            )
        store = SessionStore(limits, self._metrics, time.monotonic)
        return SessionService(predictions, worker, store, self._metrics, shared=shared)


async def _learn_after_handover(engine: SwappingRolloutEngine, worker: Workers) -> None:
    """Learn what work takes once the engine that was built meanwhile serves."""
    while engine.handover.stage is Stage.PREPARING:  # noqa: ASYNC110 - it ends in a thread without an event loop
        await asyncio.sleep(_HANDOVER_POLL_S)
    _log.info("handover", stage=engine.handover.stage, reason=engine.handover.reason)
    if engine.handover.stage is Stage.SERVING:
        await worker.warm_up()


def _no_future() -> CapabilityMissing:
    return CapabilityMissing("The model has no rollout half, so it predicts no futures.")


def _no_tokens() -> CapabilityMissing:
    return CapabilityMissing("The model has no tokens, so it knows no likelihoods.")
