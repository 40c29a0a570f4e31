"""What opens the model that settings name: the app's own way, or torch, which only the command line may import."""

from typing import TYPE_CHECKING

from foreframe_engines import Bundle, builtin_bundle, open_likelihood_engine
from foreframe_server.cli.faults import Fault, needs_torch
from foreframe_server.opening import OpenedEngines, OpenEngines
from foreframe_server.settings import EngineSettings

if TYPE_CHECKING:
    from foreframe_models.torch_engine import TorchOptions


def find_backend(settings: EngineSettings) -> OpenEngines | None:
    """Return what opens the model; None is the app's own way. Raises Fault or RuntimeUnavailable for a missing one."""
    if settings.backend != "torch":
        _refuse_options(settings)
        return None
    with needs_torch():
        from foreframe_models.torch_engine import require_options
    require_options(_read_options(settings))
    return open_on_torch


def _refuse_options(settings: EngineSettings) -> None:
    """Refuse what only torch heeds. Raises Fault."""
    plain = EngineSettings()
    if (settings.device, settings.precision) != (plain.device, plain.precision):
        raise Fault("--device and --precision need --backend torch")
    if settings.is_compiled or settings.has_cuda_graphs:
        raise Fault("IS_COMPILED and HAS_CUDA_GRAPHS of FOREFRAME_ENGINE__ need --backend torch")


def open_on_torch(settings: EngineSettings) -> OpenedEngines:
    """Open the rollout half on torch; likelihoods stay with ONNX Runtime. Raises EngineError."""
    from foreframe_models.torch_engine import open_torch_engine

    options = _read_options(settings)
    bundle = Bundle.open(settings.bundle or builtin_bundle())
    rollout = open_torch_engine(bundle, options) if "predict" in bundle.contract.capabilities else None
    likelihood = None
    if bundle.contract.tokens is not None:
        likelihood = open_likelihood_engine(bundle, num_threads=settings.num_threads)
    fingerprint = f"{bundle.digest} torch {options.device} {options.precision}"
    return OpenedEngines(fingerprint, rollout, likelihood, bundle.calibration, bundle.path)


def _read_options(settings: EngineSettings) -> "TorchOptions":
    from foreframe_engines.runtime.typed_graph import Precision
    from foreframe_models.torch_engine import SMALL_BUCKETS, TorchOptions

    return TorchOptions(
        device=settings.device,
        precision=Precision(settings.precision),
        is_compiled=settings.is_compiled,
        graph_buckets=SMALL_BUCKETS if settings.has_cuda_graphs else (),
    )
