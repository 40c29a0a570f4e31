"""The embedded default: turns a finished training run and some held-out clips into the bundle that ships."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from foreframe_engines.contract_json import StateStatistics
from foreframe_engines.episodes import Clip, draw_clips, save_clips
from foreframe_engines.types import CameraSpec, Contract, SamplerSpec, StateSchema
from foreframe_models.autoencoder import AutoencoderConfig, FrameAutoencoder
from foreframe_models.export import export_bundle
from foreframe_models.rollout import RolloutConfig, RolloutModel, eve_tabletop_config
from foreframe_models.training.autoencoder import AUTOENCODER_FILE
from foreframe_models.training.rollout import ROLLOUT_FILE, STATISTICS_FILE
from foreframe_models.worlds.eve_tabletop.names import STATE_NAMES, STATE_UNITS

MODEL = "eve-tabletop"
STATE_SCHEMA = "eve-25"
FPS = 15.0
BUCKETS = (1, 2, 4, 8, 16)
NUM_SHIPPED_CLIPS = 24
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
  moving average, stored as float16.{notes}
- **Uncertain on purpose.** Mass and friction of every object, and when and where the ball is kicked.
- **Limits.** One scene, one camera, half a second. It is a test bed for the server, not a model of any real robot.

## Measured

{measured}
"""


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
    run, config = Run(run_folder), eve_tabletop_config()
    autoencoder, rollout, statistics = run.autoencoder(), run.rollout(config), run.statistics()
    clips = draw_clips(data, config.num_latents, NUM_SHIPPED_CLIPS)
    contract = embedded_contract(config, autoencoder.config, statistics, revision)
    card = model_card(run, autoencoder, rollout, measured)
    extra = {"README.md": card.encode(), CLIPS_FILE: _clip_bytes(clips)}
    export_bundle(out, autoencoder, rollout, contract, statistics, extra_files=extra)


def embedded_contract(
    config: RolloutConfig, autoencoder: AutoencoderConfig, statistics: StateStatistics, revision: str
) -> Contract:
    """Say what the embedded model takes and gives."""
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
        capabilities=("predict",),
        buckets=BUCKETS,
    )


def model_card(run: Run, autoencoder: FrameAutoencoder, rollout: RolloutModel, measured: Mapping[str, object]) -> str:
    """Write the model card."""
    encoder, flow = run.facts("autoencoder"), run.facts("rollout")
    rows = [f"| {name} | {json.dumps(value)} |" for name, value in measured.items() if name != "curves"]
    table = "\n".join(["| measure | value |", "| --- | --- |", *rows]) if rows else "Not measured yet."
    return CARD.format(
        transformer=f"{sum(parameter.numel() for parameter in rollout.parameters()):,}",
        autoencoder=f"{sum(parameter.numel() for parameter in autoencoder.parameters()):,}",
        episodes=f"{flow['episodes']:,.0f}",
        frames=f"{flow['frames']:.0f}",
        autoencoder_steps=f"{encoder['steps']:,.0f}",
        autoencoder_minutes=encoder["seconds"] / 60,
        rollout_steps=f"{flow['steps']:,.0f}",
        batch=f"{flow['batch_size']:.0f}",
        rollout_minutes=flow["seconds"] / 60,
        processes=f"{flow['processes']:.0f}",
        notes=run.notes(),
        measured=table,
    )


def _clip_bytes(clips: Sequence[Clip]) -> bytes:
    buffer = io.BytesIO()
    save_clips(buffer, clips)
    return buffer.getvalue()
