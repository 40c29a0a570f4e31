"""What a command has to know of a model, whether it is opened here or behind an address."""

from dataclasses import dataclass
from pathlib import Path

from foreframe_engines import Bundle, Contract, RolloutEngine, builtin_bundle, open_rollout_engine
from foreframe_engines.engine import LikelihoodEngine
from foreframe_engines.likelihood import open_likelihood_engine
from foreframe_server.cli.faults import Fault
from foreframe_server.settings import Settings


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Sizes and limits of one model."""

    model: str
    revision: str
    context_frames: int
    horizon: int
    fps: float
    camera: str
    height: int
    width: int
    state_names: tuple[str, ...]
    steps: int
    max_steps: int
    max_ensemble_size: int

    @classmethod
    def of(cls, contract: Contract) -> "ModelFacts":
        """Take the facts of a contract."""
        return cls(
            model=contract.model,
            revision=contract.revision,
            context_frames=contract.context_frames,
            horizon=contract.horizon,
            fps=contract.fps,
            camera=contract.camera.name,
            height=contract.camera.height,
            width=contract.camera.width,
            state_names=contract.state.names,
            steps=contract.sampler.steps,
            max_steps=contract.sampler.max_steps,
            max_ensemble_size=contract.sampler.max_ensemble_size,
        )

    @property
    def state_dim(self) -> int:
        """Width d of a state row."""
        return len(self.state_names)

    @property
    def num_frames(self) -> int:
        """Frames of context and horizon together."""
        return self.context_frames + self.horizon


def bundle_path(settings: Settings) -> Path:
    """Return where the model of the settings lies. Raises BundleError when there is none."""
    return settings.engine.bundle or builtin_bundle()


def read_contract(settings: Settings) -> Contract:
    """Verify the model of the settings and read its contract. Raises BundleError."""
    return Bundle.open(bundle_path(settings)).contract


def open_engine(settings: Settings) -> RolloutEngine:
    """Open the model of the settings in this process. Raises BundleError or RuntimeUnavailable."""
    return open_rollout_engine(Bundle.open(bundle_path(settings)), num_threads=settings.engine.num_threads)


def open_likelihood(path: Path, settings: Settings) -> LikelihoodEngine:
    """Open a bundle's likelihood model in this process.

    Raises BundleError, RuntimeUnavailable, or Fault when it has none.
    """
    bundle = Bundle.open(path)
    if bundle.contract.tokens is None:
        raise Fault(f"{bundle.contract.model} {bundle.contract.revision} has no likelihood model")
    return open_likelihood_engine(bundle, num_threads=settings.engine.num_threads)
