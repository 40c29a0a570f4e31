"""Bundles that only tell likelihoods: a token model beside a tokenizer that was converted to graphs.

The tokenizer's graphs and their weights are copied as they are; the token model is stored once as float16.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from foreframe_engines.bundle import LIKELIHOOD_GRAPHS, Bundle, LikelihoodGraphName, write_contract, write_manifest
from foreframe_engines.contract_json import NO_LATENTS, NO_SAMPLER, GraphFiles, StateStatistics
from foreframe_engines.errors import BundleError
from foreframe_engines.likelihood import GraphLikelihoodEngine, MemoryShape
from foreframe_engines.runtime.ort import OrtSession
from foreframe_engines.runtime.session import Session
from foreframe_engines.runtime.torch_session import TorchSession
from foreframe_engines.types import CameraSpec, Contract, StateSchema
from foreframe_models.config_json import MODEL_FILE, ModelConfig, config_to_json
from foreframe_models.cosmos_tokenizer import GRAPH_FILES, TokenizerFacts, open_tokenizer
from foreframe_models.graph import export_graph
from foreframe_models.precision import round_to_half
from foreframe_models.st_transformer import StTransformer
from foreframe_models.token_checkpoint import TokenCheckpoint, load_token_model
from foreframe_models.token_graphs import likelihood_graphs_of
from foreframe_models.weights import WEIGHTS, StoredWeights, save_weights
from foreframe_models.worlds.eve_tabletop.names import STATE_NAMES, STATE_UNITS

FAMILY = "st-transformer-cosmos"
STATE_SCHEMA = "1x-25"
FPS = 30.0
MAX_GRIDS = 6
"""Three grids seen and three to come, as the model is trained."""
MAX_CANDIDATES = 64
BUCKETS = (1,)
"""A converted tokenizer takes one window at a time."""
_PREFIX = "likelihood"

CARD = """# Likelihoods of Cosmos tokens

- **Model.** Spatio-temporal transformer ({weights} parameters, {layers} blocks of width {width}) over grids of {tokens}
  tokens, {vocabulary} ids; weights stored as float16. It tells how likely the next grids are and predicts no frames.
- **Tokens.** {window} frames of {size}x{size} become {grids} grids, by a discrete Cosmos tokenizer converted from
  TorchScript (encoder sha256 {encoder}). Against the original: {equal_ids} of golden ids equal, decoded pixels
  within {pixel_levels} of 255. Its weights are under NVIDIA's licence.
"""


def export_likelihood_bundle(
    folder: Path, checkpoint: TokenCheckpoint, tokenizer: Path, contract: Contract, *, extra_files: Mapping[str, bytes]
) -> None:
    """Write the whole bundle into `folder`, which is emptied first. The model is rounded to float16.

    `tokenizer` is a folder that `convert_tokenizer` wrote. Raises BundleError when the two do not fit together.
    """
    _check_fit(checkpoint.model, open_tokenizer(tokenizer))
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for name in GRAPH_FILES:
        shutil.copyfile(tokenizer / name, folder / name)
    _write_model(folder, checkpoint.model)
    graphs = GraphFiles(**{name: f"{name}.onnx" for name in LIKELIHOOD_GRAPHS})
    write_contract(folder, contract, checkpoint.statistics, graphs)
    for name, content in extra_files.items():
        (folder / name).write_bytes(content)
    write_manifest(folder)


def likelihood_contract(
    tokenizer: TokenizerFacts, statistics: StateStatistics, *, model: str = FAMILY, revision: str = "1"
) -> Contract:
    """Say what a token model of 1X recordings takes and gives: a window seen, the likelihood of the next."""
    return Contract(
        model=model,
        family=FAMILY,
        revision=revision,
        description="How likely the tokens of what a humanoid's head camera sees next are, given its states.",
        cameras=(CameraSpec("head", tokenizer.height, tokenizer.width),),
        context_frames=tokenizer.window_frames,
        horizon=tokenizer.window_frames,
        fps=FPS,
        state=state_schema(statistics),
        sampler=NO_SAMPLER,
        latent_shape=NO_LATENTS,
        frames_per_latent=1,
        capabilities=("likelihood", "score"),
        buckets=BUCKETS,
        tokens=tokenizer.token_spec(MAX_GRIDS, MAX_CANDIDATES),
    )


def model_card(model: StTransformer, tokenizer: TokenizerFacts) -> str:
    """Write the model card."""
    return CARD.format(
        weights=f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        layers=model.config.num_layers,
        width=model.config.width,
        vocabulary=f"{model.config.vocabulary:,}",
        grids=tokenizer.window_grids,
        tokens=model.config.tokens,
        window=tokenizer.window_frames,
        size=tokenizer.height,
        equal_ids=f"{tokenizer.equal_ids:.2%}",
        pixel_levels=tokenizer.pixel_levels,
        encoder=tokenizer.encoder_sha256,
    )


def open_token_reference(bundle: Bundle) -> GraphLikelihoodEngine:
    """Open a likelihood-only bundle with its token model on torch; the tokenizer is graphs and runs as they do.

    Raises BundleError when the weights do not fit.
    """
    model = load_token_model(bundle.path, f"{_PREFIX}.")
    sessions: dict[LikelihoodGraphName, Session] = {
        "tokenize": OrtSession(bundle.graph("tokenize"), num_threads=1),
        "detokenize": OrtSession(bundle.graph("detokenize"), num_threads=1),
    }
    graphs = likelihood_graphs_of(model)
    names: tuple[LikelihoodGraphName, ...] = ("frame_step", "top_k")
    for name in names:
        sessions[name] = TorchSession(graphs[name].module, tuple(graphs[name].inputs), graphs[name].outputs)
    memory = MemoryShape(model.config.num_layers, model.config.width)
    return GraphLikelihoodEngine(bundle.contract, sessions, memory)


def _write_model(folder: Path, model: StTransformer) -> None:
    model.eval()
    round_to_half(model)
    save_weights(folder / WEIGHTS, {_PREFIX: model})
    weights = StoredWeights.read(folder / WEIGHTS)
    for name, graph in likelihood_graphs_of(model).items():
        (folder / f"{name}.onnx").write_bytes(export_graph(graph, weights).SerializeToString())
    (folder / MODEL_FILE).write_text(config_to_json(ModelConfig(likelihood=model.config)), encoding="utf-8")


def _check_fit(model: StTransformer, tokenizer: TokenizerFacts) -> None:
    config, tokens = model.config, tokenizer.token_spec(MAX_GRIDS, MAX_CANDIDATES)
    if config.vocabulary != tokens.vocabulary:
        raise BundleError(f"the model knows {config.vocabulary} ids, the tokenizer makes {tokens.vocabulary}")
    if config.tokens != tokens.tokens:
        raise BundleError(f"the model's grids have {config.tokens} tokens, the tokenizer's {tokens.tokens}")


def state_schema(statistics: StateStatistics) -> StateSchema:
    """Name the states of 1X recordings; those of other robots, whose names nobody gave, are numbered."""
    dim = len(statistics.mean)
    is_known = dim == len(STATE_NAMES)
    return StateSchema(
        name=STATE_SCHEMA if is_known else f"states-{dim}",
        names=STATE_NAMES if is_known else tuple(f"state_{index}" for index in range(dim)),
        units=STATE_UNITS if is_known else ("1",) * dim,
        mean=statistics.mean,
        std=statistics.std,
        low=statistics.low,
        high=statistics.high,
    )
