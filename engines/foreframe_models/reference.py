"""A bundle run by torch: the same weights and the same four graphs, as modules. What other runtimes are compared with.

Weights are the bundle's float16, computed with in float32 as the graphs do.
"""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from foreframe_engines.bundle import Bundle, GraphName
from foreframe_engines.errors import BundleError
from foreframe_engines.rollout import GraphRolloutEngine
from foreframe_engines.runtime.torch_session import TorchSession
from foreframe_models.autoencoder import FrameAutoencoder
from foreframe_models.config_json import MODEL_FILE, config_from_json
from foreframe_models.export import WEIGHTS, graphs_of
from foreframe_models.rollout import RolloutModel


def open_reference_engine(bundle_path: Path) -> GraphRolloutEngine:
    """Open a bundle on torch.

    Raises BundleError when the bundle is damaged, was not exported by this package, or its weights do not fit.
    """
    bundle = Bundle.open(bundle_path)
    autoencoder, rollout = load_models(bundle_path)
    sessions: dict[GraphName, TorchSession] = {
        name: TorchSession(graph.module, tuple(graph.inputs), graph.outputs)
        for name, graph in graphs_of(autoencoder, rollout).items()
    }
    return GraphRolloutEngine(bundle.contract, sessions)


def load_models(bundle_path: Path) -> tuple[FrameAutoencoder, RolloutModel]:
    """Build a bundle's two models from `model.json` and its weights, in evaluation mode. Raises BundleError."""
    try:
        config = config_from_json((bundle_path / MODEL_FILE).read_text(encoding="utf-8"))
        tensors = load_file(bundle_path / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{bundle_path} does not hold {MODEL_FILE} and {WEIGHTS}") from error
    autoencoder, rollout = FrameAutoencoder(config.autoencoder), RolloutModel(config.rollout)
    _load_weights(autoencoder, "autoencoder.", tensors)
    _load_weights(rollout, "rollout.", tensors)
    return autoencoder, rollout


def _load_weights(model: nn.Module, prefix: str, tensors: dict[str, Tensor]) -> None:
    own = {name.removeprefix(prefix): half.float() for name, half in tensors.items() if name.startswith(prefix)}
    try:
        model.load_state_dict(own)
    except RuntimeError as error:
        raise BundleError(f"{WEIGHTS} does not fit {MODEL_FILE}: {error}") from error
    model.eval()
