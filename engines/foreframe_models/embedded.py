"""The embedded default: turns a finished training run and some held-out clips into the bundle that ships."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from foreframe_engines.contract_json import StateStatistics
from foreframe_engines.episodes import Clip, draw_clips, save_clips
from foreframe_engines.types import CameraSpec, Contract, SamplerSpec, StateSchema, TokenSpec
from foreframe_models.autoencoder import AutoencoderConfig, FrameAutoencoder
from foreframe_models.export import Models, TokenModels, export_bundle
from foreframe_models.rollout import RolloutConfig, RolloutModel, eve_tabletop_config
from foreframe_models.st_transformer import StTransformer, eve_tabletop_st_config
from foreframe_models.tokenizer import FrameTokenizer, TokenizerConfig
from foreframe_models.training.autoencoder import AUTOENCODER_FILE
from foreframe_models.training.likelihood import LIKELIHOOD_FILE
from foreframe_models.training.rollout import ROLLOUT_FILE, STATISTICS_FILE
from foreframe_models.training.tokenizer import TOKENIZER_FILE
from foreframe_models.worlds.eve_tabletop.names import STATE_NAMES, STATE_UNITS

MODEL = "eve-tabletop"
STATE_SCHEMA = "eve-25"
FPS = 15.0
BUCKETS = (1, 2, 4, 8, 16)
NUM_SHIPPED_CLIPS = 24
MAX_GRIDS = 16
MAX_CANDIDATES = 256
SAMPLER = SamplerSpec(steps=4, max_steps=64, shift=3.0, ensemble_size=1, max_ensemble_size=32)
CLIPS_FILE = "clips.npz"

CARD = """# eve-tabletop

A small world model of a simulated wheeled humanoid at a rimmed tray: 4 context frames of 64x64 and 12 rows of the
25-dim state in, 8 future frames (0.53 s at 15 a second) out. It is the embedded default of foreframe and was trained
by this project alone.

- **Architecture.** Wan-style video transformer ({transformer} parameters) with AdaLN-Zero state branch over the
  latents of a per-frame autoencoder ({autoencoder} parameters). Additions that the large model does not have: state
  map, last-frame residual, clean-latent target, PCA start of the autoencoder.
- **Data.** {episodes} simulated episodes of {frames} frames (`foreframe world generate`), seeds below 7,000,000.
  Nothing of a real robot, no person, no licence but this project's.
- **Recipe.** `foreframe train rollout`: autoencoder {autoencoder_steps} steps in {autoencoder_minutes:.0f} min, rollout
  {rollout_steps} steps of {batch} clips in {rollout_minutes:.0f} min on {processes} processor cores. Weights are the
  moving average, stored as float16.{notes}{tokens}
- **Uncertain on purpose.** Mass and friction of every object, and when and where the ball is kicked.
- **Limits.** One scene, one camera, half a second. It is a test bed for the server, not a model of any real robot.

## Measured

{measured}
"""


LIKELIHOOD_CARD = """
- **Tokens.** FSQ tokenizer ({tokenizer} parameters; 8x8 ids a frame, {vocabulary} ids with Cosmos' levels and id
  arithmetic), {tokenizer_steps} steps in {tokenizer_minutes:.0f} min. Spatio-temporal transformer ({likelihood}
  parameters, {layers} blocks, up to {grids} frames), `foreframe train likelihood`: {likelihood_steps} steps of {batch}
  clips in {likelihood_minutes:.0f} min on {processes} cores. Additions to the paper's model: a state map, the
  vocabulary in two factors, an empty slot in temporal attention."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run's folder: weights, statistics and what training took."""

    folder: Path

    def autoencoder(self) -> FrameAutoencoder:
        """Load the averaged autoencoder."""
        model = FrameAutoencoder(AutoencoderConfig())
        model.load_state_dict(torch.load(self.folder / "autoencoder" / AUTOENCODER_FILE, weights_only=True))
        return model.eval()

    def rollout(self, config: RolloutConfig) -> RolloutModel:
        """Load the averaged rollout model."""
        model = RolloutModel(config)
        model.load_state_dict(torch.load(self.folder / "rollout" / ROLLOUT_FILE, weights_only=True))
        return model.eval()

    def tokenizer(self) -> FrameTokenizer:
        """Load the averaged tokenizer."""
        model = FrameTokenizer(TokenizerConfig())
        model.load_state_dict(torch.load(self.folder / "tokenizer" / TOKENIZER_FILE, weights_only=True))
        return model.eval()

    def likelihood(self) -> StTransformer:
        """Load the averaged token model."""
        model = StTransformer(eve_tabletop_st_config())
        model.load_state_dict(torch.load(self.folder / "likelihood" / LIKELIHOOD_FILE, weights_only=True))
        return model.eval()

    def models(self) -> Models:
        """Load every model of the run; the likelihood half is None when it was not trained."""
        is_token_run = (self.folder / "likelihood" / LIKELIHOOD_FILE).exists()
        tokens = TokenModels(self.tokenizer(), self.likelihood()) if is_token_run else None
        return Models(self.autoencoder(), self.rollout(eve_tabletop_config()), tokens)

    def statistics(self) -> StateStatistics:
        """Read the training states' statistics."""
        rows = json.loads((self.folder / "rollout" / STATISTICS_FILE).read_text())
        return StateStatistics(**{name: np.array(row, np.float32) for name, row in rows.items()})

    def notes(self) -> str:
        """Read what a person wrote into `notes.txt` about how this run differs from its recipe."""
        path = self.folder / "notes.txt"
        return " " + path.read_text(encoding="utf-8").strip() if path.exists() else ""

    def facts(self, stage: str) -> dict[str, float]:
        """Read what a stage's training took."""
        return json.loads((self.folder / stage / "facts.json").read_text())


def export_embedded(run_folder: Path, data: Path, out: Path, *, revision: str, measured: Mapping[str, object]) -> None:
    """Write the embedded bundle: graphs, weights, contract, held-out clips of `data`, model card with `measured`."""
    run = Run(run_folder)
    models, statistics = run.models(), run.statistics()
    clips = draw_clips(data, models.rollout.config.num_latents, NUM_SHIPPED_CLIPS)
    contract = embedded_contract(models, statistics, revision)
    extra = {"README.md": model_card(run, models, measured).encode(), CLIPS_FILE: _clip_bytes(clips)}
    export_bundle(out, models, contract, statistics, extra_files=extra)


def embedded_contract(models: Models, statistics: StateStatistics, revision: str) -> Contract:
    """Say what the embedded model takes and gives."""
    config, autoencoder = models.rollout.config, models.autoencoder.config
    if not isinstance(autoencoder, AutoencoderConfig):
        raise TypeError("the embedded model encodes frames one by one")
    rows, columns = config.latent_size
    return Contract(
        model=MODEL,
        family=MODEL,
        revision=revision,
        description="A simulated wheeled humanoid pushing objects in a tray, seen by its head camera.",
        cameras=(CameraSpec("head", rows * autoencoder.patch, columns * autoencoder.patch),),
        context_frames=config.context_latents,
        horizon=config.future_latents,
        fps=FPS,
        state=StateSchema(
            name=STATE_SCHEMA,
            names=STATE_NAMES,
            units=STATE_UNITS,
            mean=statistics.mean,
            std=statistics.std,
            low=statistics.low,
            high=statistics.high,
        ),
        sampler=SAMPLER,
        latent_shape=(autoencoder.channels, rows, columns),
        frames_per_latent=1,
        capabilities=("predict", "score") if models.tokens is None else ("predict", "score", "likelihood"),
        buckets=BUCKETS,
        tokens=None if models.tokens is None else token_spec(models.tokens.tokenizer.config, (rows, columns)),
    )


def token_spec(tokenizer: TokenizerConfig, grid: tuple[int, int]) -> TokenSpec:
    """Say how frames become ids: every frame by itself."""
    return TokenSpec(tokenizer.levels, grid, 1, 1, max_grids=MAX_GRIDS, max_candidates=MAX_CANDIDATES)


def model_card(run: Run, models: Models, measured: Mapping[str, object]) -> str:
    """Write the model card."""
    encoder, flow = run.facts("autoencoder"), run.facts("rollout")
    rows = [f"| {name} | {json.dumps(value)} |" for name, value in measured.items() if name != "curves"]
    table = "\n".join(["| measure | value |", "| --- | --- |", *rows]) if rows else "Not measured yet."
    return CARD.format(
        transformer=_num_weights(models.rollout),
        autoencoder=_num_weights(models.autoencoder),
        episodes=f"{flow['episodes']:,.0f}",
        frames=f"{flow['frames']:.0f}",
        autoencoder_steps=f"{encoder['steps']:,.0f}",
        autoencoder_minutes=encoder["seconds"] / 60,
        rollout_steps=f"{flow['steps']:,.0f}",
        batch=f"{flow['batch_size']:.0f}",
        rollout_minutes=flow["seconds"] / 60,
        processes=f"{flow['processes']:.0f}",
        notes=run.notes(),
        tokens=likelihood_card(run, models.tokens) if models.tokens is not None else "",
        measured=table,
    )


def likelihood_card(run: Run, tokens: TokenModels) -> str:
    """Write the model card's lines on the likelihood half."""
    quantizer, model = run.facts("tokenizer"), run.facts("likelihood")
    return LIKELIHOOD_CARD.format(
        vocabulary=f"{tokens.tokenizer.config.vocabulary:,}",
        tokenizer=_num_weights(tokens.tokenizer),
        likelihood=_num_weights(tokens.likelihood),
        layers=tokens.likelihood.config.num_layers,
        tokenizer_steps=f"{quantizer['steps']:,.0f}",
        tokenizer_minutes=quantizer["seconds"] / 60,
        likelihood_steps=f"{model['steps']:,.0f}",
        batch=f"{model['batch_size']:.0f}",
        grids=MAX_GRIDS,
        likelihood_minutes=model["seconds"] / 60,
        processes=f"{model['processes']:.0f}",
    )


def _num_weights(model: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()):,}"


def _clip_bytes(clips: Sequence[Clip]) -> bytes:
    buffer = io.BytesIO()
    save_clips(buffer, clips)
    return buffer.getvalue()
