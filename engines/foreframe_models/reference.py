"""A bundle run by torch: the same weights and the same graphs, as modules. What other runtimes are compared with.

Weights are the bundle's float16, computed with in float32 as the graphs do.
"""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from foreframe_engines.bundle import GRAPHS, LIKELIHOOD_GRAPHS, Bundle
from foreframe_engines.errors import BundleError
from foreframe_engines.likelihood import GraphLikelihoodEngine, MemoryShape
from foreframe_engines.rollout import GraphRolloutEngine
from foreframe_engines.runtime.torch_session import TorchSession
from foreframe_engines.types import Contract
from foreframe_models.autoencoder import FrameAutoencoder
from foreframe_models.config_json import MODEL_FILE, config_from_json
from foreframe_models.export import Models, TokenModels, graphs_of
from foreframe_models.rollout import RolloutModel
from foreframe_models.st_transformer import StTransformer
from foreframe_models.tokenizer import FrameTokenizer
from foreframe_models.weights import WEIGHTS


def open_reference_engine(bundle_path: Path) -> GraphRolloutEngine:
    """Open a bundle's rollout model on torch.

    Raises BundleError when the bundle is damaged, was not exported by this package, or its weights do not fit.
    """
    bundle = Bundle.open(bundle_path)
    sessions = _open_sessions(load_models(bundle_path), bundle.contract)
    return GraphRolloutEngine(bundle.contract, {name: sessions[name] for name in GRAPHS})


def open_reference_likelihood_engine(bundle_path: Path) -> GraphLikelihoodEngine:
    """Open a bundle's likelihood model on torch. Raises BundleError as above, and when the bundle has none."""
    bundle, models = Bundle.open(bundle_path), load_models(bundle_path)
    if models.tokens is None:
        raise BundleError(f"{bundle_path} has no likelihood model")
    config = models.tokens.likelihood.config
    sessions = _open_sessions(models, bundle.contract)
    memory = MemoryShape(config.num_layers, config.width)
    return GraphLikelihoodEngine(bundle.contract, {name: sessions[name] for name in LIKELIHOOD_GRAPHS}, memory)


def load_models(bundle_path: Path) -> Models:
    """Build a bundle's models from `model.json` and its weights, in evaluation mode. Raises BundleError."""
    try:
        config = config_from_json((bundle_path / MODEL_FILE).read_text(encoding="utf-8"))
        tensors = load_file(bundle_path / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{bundle_path} does not hold {MODEL_FILE} and {WEIGHTS}") from error
    tokens = None
    if config.tokenizer is not None and config.likelihood is not None:
        tokens = TokenModels(FrameTokenizer(config.tokenizer), StTransformer(config.likelihood))
    models = Models(FrameAutoencoder(config.autoencoder), RolloutModel(config.rollout), tokens)
    for name, model in models.by_name().items():
        _load_weights(model, f"{name}.", tensors)
    return models


def _open_sessions(models: Models, contract: Contract) -> dict[str, TorchSession]:
    graphs = graphs_of(models, contract)
    return {name: TorchSession(graph.module, tuple(graph.inputs), graph.outputs) for name, graph in graphs.items()}


def _load_weights(model: nn.Module, prefix: str, tensors: dict[str, Tensor]) -> None:
    own = {name.removeprefix(prefix): half.float() for name, half in tensors.items() if name.startswith(prefix)}
    try:
        model.load_state_dict(own)
    except RuntimeError as error:
        raise BundleError(f"{WEIGHTS} does not fit {MODEL_FILE}: {error}") from error
    model.eval()
