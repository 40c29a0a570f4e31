"""A bundle run by torch: the same weights and the same graphs, as modules. What other runtimes are compared with.

Weights are the bundle's, computed with in float32 as the graphs do.
"""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from foreframe_engines.bundle import LIKELIHOOD_GRAPHS, Bundle, rollout_graph_names
from foreframe_engines.errors import BundleError
from foreframe_engines.likelihood import GraphLikelihoodEngine, MemoryShape
from foreframe_engines.rollout import GraphRolloutEngine
from foreframe_engines.runtime.torch_session import TorchSession
from foreframe_engines.types import Contract
from foreframe_models.autoencoder import FrameAutoencoder
from foreframe_models.config_json import MODEL_FILE, ModelConfig, config_from_json
from foreframe_models.export import Models, TokenModels, graphs_of
from foreframe_models.likelihood_bundle import open_token_reference
from foreframe_models.rollout import RolloutModel
from foreframe_models.st_transformer import StTransformer
from foreframe_models.tokenizer import FrameTokenizer
from foreframe_models.wan_vae import WanAutoencoder, build_vae
from foreframe_models.weights import WEIGHTS


def open_reference_engine(bundle_path: Path) -> GraphRolloutEngine:
    """Open a bundle's rollout model on torch.

    Raises BundleError when the bundle is damaged, was not exported by this package, or its weights do not fit.
    """
    bundle = Bundle.open(bundle_path)
    sessions = _open_sessions(load_models(bundle_path), bundle.contract)
    return GraphRolloutEngine(bundle.contract, {name: sessions[name] for name in rollout_graph_names(bundle.graphs)})


def open_reference_likelihood_engine(bundle_path: Path) -> GraphLikelihoodEngine:
    """Open a bundle's likelihood model on torch. Raises BundleError as above, and when the bundle has none."""
    bundle = Bundle.open(bundle_path)
    if "predict" not in bundle.contract.capabilities:
        return open_token_reference(bundle)
    models = load_models(bundle_path)
    if models.tokens is None:
        raise BundleError(f"{bundle_path} has no likelihood model")
    config = models.tokens.likelihood.config
    sessions = _open_sessions(models, bundle.contract)
    memory = MemoryShape(config.num_layers, config.width)
    return GraphLikelihoodEngine(bundle.contract, {name: sessions[name] for name in LIKELIHOOD_GRAPHS}, memory)


def load_models(bundle_path: Path) -> Models:
    """Build a bundle's models from `model.json` and its weights, in evaluation mode. Raises BundleError."""
    models = build_models(bundle_path)
    try:
        tensors = load_file(bundle_path / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{bundle_path} does not hold {WEIGHTS}") from error
    for name, model in models.by_name().items():
        _load_weights(model, f"{name}.", tensors)
    return models


def build_models(bundle_path: Path) -> Models:
    """Build the models that a bundle's `model.json` describes, with fresh weights. Raises BundleError."""
    try:
        config = config_from_json((bundle_path / MODEL_FILE).read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{bundle_path} does not hold {MODEL_FILE}") from error
    autoencoder = _build_autoencoder(config)
    if config.rollout is None or autoencoder is None:
        raise BundleError(f"{bundle_path} has no rollout model")
    tokens = None
    if config.tokenizer is not None and config.likelihood is not None:
        tokens = TokenModels(FrameTokenizer(config.tokenizer), StTransformer(config.likelihood))
    return Models(autoencoder, RolloutModel(config.rollout), tokens)


def _build_autoencoder(config: ModelConfig) -> FrameAutoencoder | WanAutoencoder | None:
    if config.autoencoder is not None:
        return FrameAutoencoder(config.autoencoder)
    return None if config.wan_vae is None else WanAutoencoder(build_vae(config.wan_vae))


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
