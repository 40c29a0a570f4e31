"""What opens a model: its engines, and what they came with. It knows bundles and runtimes, and no threads."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from foreframe_engines import Bundle, Contract, RolloutEngine, builtin_bundle
from foreframe_engines.calibration import UNCALIBRATED, Calibration
from foreframe_engines.engine import LikelihoodEngine
from foreframe_engines.likelihood import open_likelihood_engine
from foreframe_engines.runtime.engine_cache import EngineCache
from foreframe_engines.serving_engine import open_serving_engine
from foreframe_server.settings import EngineSettings


@dataclass(frozen=True, slots=True, eq=False)
class OpenedEngines:
    """The engines of one model, at least one, and what they came with.

    `fingerprint` tells its bytes from other models', and from the same model's on another backend.
    """

    fingerprint: str
    rollout: RolloutEngine | None = None
    likelihood: LikelihoodEngine | None = None
    calibration: Calibration = UNCALIBRATED
    folder: Path | None = None
    """The bundle's, where clips lie beside the model."""

    @property
    def contract(self) -> Contract:
        """The model's contract. Raises ValueError when there is no engine."""
        return self._engine.contract

    @property
    def determinism(self) -> str:
        """What the model's engine says that equal queries may count on. Raises as `contract`."""
        return self._engine.determinism

    @property
    def _engine(self) -> RolloutEngine | LikelihoodEngine:
        engine = self.rollout or self.likelihood
        if engine is None:
            raise ValueError("a model needs an engine")
        return engine


OpenEngines: TypeAlias = Callable[[EngineSettings], OpenedEngines]
"""Opens the model that the settings name, in a thread of its own. Raises EngineError."""


def open_bundle(settings: EngineSettings) -> OpenedEngines:
    """Open the bundle of the settings, by default the built-in one, in the fastest way known. Raises EngineError."""
    bundle = Bundle.open(settings.bundle or builtin_bundle())
    rollout = likelihood = None
    if "predict" in bundle.contract.capabilities:
        cache = None if settings.cache is None else EngineCache(settings.cache)
        rollout = open_serving_engine(bundle, num_threads=settings.num_threads, cache=cache)
    if bundle.contract.tokens is not None:
        likelihood = open_likelihood_engine(bundle, num_threads=settings.num_threads)
    return OpenedEngines(bundle.digest, rollout, likelihood, bundle.calibration, bundle.path)


def given(
    rollout: RolloutEngine | None,
    likelihood: LikelihoodEngine | None = None,
    calibration: Calibration = UNCALIBRATED,
) -> OpenEngines:
    """Return what hands over engines that are open already; the server closes them."""
    engine = rollout or likelihood
    fingerprint = "" if engine is None else f"{engine.contract.model} {engine.contract.revision}"
    return lambda _: OpenedEngines(fingerprint, rollout, likelihood, calibration)
