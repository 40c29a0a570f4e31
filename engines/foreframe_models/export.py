"""Write a bundle: ONNX graphs that share one half-precision safetensors file, contract, statistics, model card.

Weights are stored once in half precision and cast in the graphs, so a graph is kilobytes; the reference runs the same
rounded weights, so parity is about the runtimes alone.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from foreframe_engines.bundle import write_contract, write_manifest
from foreframe_engines.contract_json import GraphFiles, StateStatistics
from foreframe_engines.types import Contract
from foreframe_models.autoencoder import AutoencoderConfig, FrameAutoencoder
from foreframe_models.config_json import MODEL_FILE, ModelConfig, config_to_json
from foreframe_models.graph import Graph, export_graph
from foreframe_models.precision import HALF, Storage, round_to_half
from foreframe_models.rollout import RolloutModel
from foreframe_models.rollout_graphs import flow_graphs_of, frame_graphs_of
from foreframe_models.st_transformer import StTransformer
from foreframe_models.token_graphs import token_graphs_of
from foreframe_models.tokenizer import FrameTokenizer
from foreframe_models.wan_vae import WanAutoencoder, WanVaeConfig
from foreframe_models.wan_vae_graphs import wan_vae_graphs
from foreframe_models.weights import WEIGHTS, StoredWeights, save_weights


@dataclass(frozen=True, slots=True, eq=False)
class TokenModels:
    """The two models of the likelihood half of a bundle."""

    tokenizer: FrameTokenizer
    likelihood: StTransformer


@dataclass(frozen=True, slots=True, eq=False)
class Models:
    """The models of one bundle; `tokens` is None where it only predicts."""

    autoencoder: FrameAutoencoder | WanAutoencoder
    rollout: RolloutModel
    tokens: TokenModels | None = None

    @property
    def config(self) -> ModelConfig:
        """Everything that is needed to build them anew."""
        tokens, pictures = self.tokens, self.autoencoder.config
        return ModelConfig(
            self.rollout.config,
            pictures if isinstance(pictures, AutoencoderConfig) else None,
            None if tokens is None else tokens.tokenizer.config,
            None if tokens is None else tokens.likelihood.config,
            pictures if isinstance(pictures, WanVaeConfig) else None,
        )

    def by_name(self) -> dict[str, nn.Module]:
        """Return every model under the prefix its weights are stored with."""
        named: dict[str, nn.Module] = {"autoencoder": self.autoencoder, "rollout": self.rollout}
        if self.tokens is not None:
            named |= {"tokenizer": self.tokens.tokenizer, "likelihood": self.tokens.likelihood}
        return named


def graphs_of(models: Models, contract: Contract) -> dict[str, Graph]:
    """Return every graph of a bundle by name. Raises ValueError when contract and models disagree about tokens."""
    graphs = picture_graphs_of(models) | flow_graphs_of(models.rollout, solver=contract.sampler.solver)
    if (contract.tokens is None) != (models.tokens is None):
        raise ValueError("contract and models disagree on whether there is a likelihood model")
    if contract.tokens is not None and models.tokens is not None:
        size = contract.camera.height
        graphs |= token_graphs_of(models.tokens.tokenizer, models.tokens.likelihood, contract.tokens, size)
    return graphs


def picture_graphs_of(models: Models) -> dict[str, Graph]:
    """Return `encode`, `decode` and, where the autoencoder has it, `decode_tail`."""
    config = models.rollout.config
    if isinstance(models.autoencoder, FrameAutoencoder):
        return frame_graphs_of(models.autoencoder, config)
    return wan_vae_graphs(
        models.autoencoder,
        context_latents=config.context_latents,
        num_latents=config.num_latents,
        latent_size=config.latent_size,
    )


def export_bundle(
    folder: Path,
    models: Models,
    contract: Contract,
    statistics: StateStatistics,
    *,
    extra_files: Mapping[str, bytes],
    storage: Storage = HALF,
) -> None:
    """Write the whole bundle into `folder`, which is emptied first. Every model is rounded as it is stored."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for model in models.by_name().values():
        model.eval()
        round_to_half(model, storage)
    save_weights(folder / WEIGHTS, models.by_name(), storage)
    weights = StoredWeights.read(folder / WEIGHTS)
    graphs = graphs_of(models, contract)
    for name, graph in graphs.items():
        proto = export_graph(graph, weights)
        (folder / f"{name}.onnx").write_bytes(proto.SerializeToString())
    write_contract(folder, contract, statistics, GraphFiles(**{name: f"{name}.onnx" for name in graphs}))
    (folder / MODEL_FILE).write_text(config_to_json(models.config), encoding="utf-8")
    for file_name, content in extra_files.items():
        (folder / file_name).write_bytes(content)
    write_manifest(folder)
