"""Bundles of the Wan family: a base pipeline's folder and an adapter become what the server runs.

The adapter is merged, the prompt is fixed, the text encoder stays behind. Weights are stored once, as bfloat16; what
diffusers keeps in single precision, and the state branch, as float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from foreframe_engines.contract_json import StateStatistics
from foreframe_engines.errors import CheckpointError
from foreframe_engines.runtime.memory import free_host_bytes, require_memory
from foreframe_engines.solvers import Solver
from foreframe_engines.types import CameraSpec, Contract, SamplerSpec
from foreframe_models.adapter_files import infer_state_config, read_adapter
from foreframe_models.adapters import activate, attach, merge
from foreframe_models.checkpoints import load_rollout
from foreframe_models.export import Models, export_bundle
from foreframe_models.likelihood_bundle import state_schema
from foreframe_models.precision import Storage
from foreframe_models.prompts import encode_empty_prompt, read_prompt
from foreframe_models.rollout import RolloutConfig, RolloutModel
from foreframe_models.state_branch import Combination
from foreframe_models.wan_vae import WanAutoencoder, count_frames, load_vae

FAMILY = "wan2.2-ti2v-5b-state"
STORAGE = Storage(
    torch.bfloat16, whole=("norm", "scale_shift_table", "time_embedder", "state_branch", "states_", "prompt")
)
_EXPORT_BYTES = 4
"""The exporter keeps each weight of the graph it works on once more, in single precision."""

_ADAPTER = "adapter"
_CARD = """# {model}

A Wan video transformer ({transformer:,} parameters) with an AdaLN-Zero state branch, over latents of Wan's video
autoencoder ({autoencoder:,} parameters): {context} frames of {height}x{width} and {rows} rows of {states} states in,
{horizon} future frames at {fps:g} a second out. The adapter is merged and the prompt is fixed.

Written by `foreframe convert wan`. The licences of the base and of the adapter's data apply.
"""


@dataclass(frozen=True, slots=True)
class WanSources:
    """What a bundle is made from: a base pipeline in diffusers' layout, and what was trained for it.

    prompt, negative_prompt: embedded texts; without the first the base's text encoder embeds the empty one.
    combination: of an adapter of the authors', whose tensors do not say it.
    """

    base: Path
    adapter: Path
    prompt: Path | None = None
    negative_prompt: Path | None = None
    combination: Combination = Combination.ADDITIVE


@dataclass(frozen=True, slots=True)
class WanServing:
    """How a bundle is served; the defaults are the paper's: 5 + 16 frames of 512x512, every fourth of 30 a second."""

    model: str = FAMILY
    revision: str = "1"
    height: int = 512
    width: int = 512
    context_frames: int = 5
    horizon: int = 16
    fps: float = 7.5
    solver: Solver = Solver.EULER
    steps: int = 10
    shift: float = 5.0
    prompt_length: int = 512
    max_ensemble_size: int = 32
    buckets: tuple[int, ...] = (1, 2, 4, 8)


def convert_wan(sources: WanSources, serving: WanServing, statistics: StateStatistics, out: Path) -> Contract:
    """Write a bundle into `out`, which is emptied first, and return its contract.

    Raises CheckpointError or BundleError naming what is missing or does not fit, RuntimeUnavailable for too little
    memory; `out` is not touched then.
    """
    autoencoder = load_vae(sources.base, torch.float32)
    rollout = load_wan(sources, serving, autoencoder)
    if len(statistics.mean) != rollout.config.state.num_states:
        raise CheckpointError(
            f"the statistics are of {len(statistics.mean)} states, the adapter takes {rollout.config.state.num_states}"
        )
    contract = wan_contract(rollout, autoencoder, serving, statistics)
    card = _model_card(rollout, autoencoder, contract).encode()
    models = Models(autoencoder, rollout)
    _require_memory(models)
    export_bundle(out, models, contract, statistics, extra_files={"README.md": card}, storage=STORAGE)
    return contract


def load_wan(sources: WanSources, serving: WanServing, autoencoder: WanAutoencoder) -> RolloutModel:
    """Load base, adapter and prompts into one model in single precision. Raises CheckpointError."""
    adapter = read_adapter(sources.adapter)
    state, cell = infer_state_config(adapter, sources.combination), autoencoder.config.scale_factor_spatial
    context, latents = (_count_latents(frames) for frames in _lengths(serving))
    num_rows = serving.context_frames + serving.horizon
    if state.num_latents(num_rows) != latents:
        raise CheckpointError(
            f"{sources.adapter}: the state branch makes {state.num_latents(num_rows)} latent frames of {num_rows} rows "
            f"of states, the clip has {latents}; only branches that take one row a frame can be served"
        )
    config = RolloutConfig(
        state=state,
        context_latents=context,
        future_latents=latents - context,
        latent_size=(_whole(serving.height, cell, "height"), _whole(serving.width, cell, "width")),
        prompt_length=serving.prompt_length,
        num_state_rows=num_rows,
        has_negative_prompt=sources.negative_prompt is not None,
    )
    model = load_rollout(sources.base, config, torch.float32)
    _check_fit(model, autoencoder)
    attach(model, adapter, _ADAPTER)
    activate(model, _ADAPTER)
    merge(model)
    _set_prompts(model, sources)
    return model.eval()


def wan_contract(
    rollout: RolloutModel, autoencoder: WanAutoencoder, serving: WanServing, statistics: StateStatistics
) -> Contract:
    """Say what a model of the Wan family takes and gives."""
    sampler = SamplerSpec(
        steps=serving.steps,
        max_steps=max(100, serving.steps),
        shift=serving.shift,
        ensemble_size=1,
        max_ensemble_size=serving.max_ensemble_size,
        solver=serving.solver,
        guidance=1.0 if rollout.is_guidable else None,
    )
    return Contract(
        model=serving.model,
        family=FAMILY,
        revision=serving.revision,
        description="What a humanoid's head camera sees next, given its states.",
        cameras=(CameraSpec("head", serving.height, serving.width),),
        context_frames=serving.context_frames,
        horizon=serving.horizon,
        fps=serving.fps,
        state=state_schema(statistics),
        sampler=sampler,
        latent_shape=(autoencoder.config.z_dim, *rollout.config.latent_size),
        frames_per_latent=autoencoder.config.scale_factor_temporal,
        capabilities=("predict", "score"),
        buckets=serving.buckets,
    )


def _lengths(serving: WanServing) -> Sequence[int]:
    return serving.context_frames, serving.context_frames + serving.horizon


def _count_latents(num_frames: int) -> int:
    latents = 1 + num_frames // 4
    if count_frames(latents) != num_frames:
        raise CheckpointError(f"{num_frames} frames are not 1 and a multiple of 4, as the autoencoder takes them")
    return latents


def _whole(size: int, cell: int, name: str) -> int:
    if size % cell:
        raise CheckpointError(f"{name} {size} is no multiple of the {cell} pixels of a latent")
    return size // cell


def _check_fit(model: RolloutModel, autoencoder: WanAutoencoder) -> None:
    wan, channels = model.config.transformer, autoencoder.config.z_dim
    if (wan.in_channels, wan.out_channels) != (channels, channels):
        raise CheckpointError(
            f"the base's autoencoder has {channels} channels, its transformer {wan.in_channels} and {wan.out_channels}"
        )
    for size, patch in zip(model.config.latent_size, wan.patch_size[1:], strict=True):
        if size % patch:
            raise CheckpointError(f"{size} latents a side are no whole patches of {patch}")


def _set_prompts(model: RolloutModel, sources: WanSources) -> None:
    length, width = model.config.prompt_length, model.config.transformer.text_dim
    if sources.prompt is None:
        model.prompt.copy_(encode_empty_prompt(sources.base, length, width))
    else:
        model.prompt.copy_(read_prompt(sources.prompt, length, width))
    if sources.negative_prompt is not None and model.negative_prompt is not None:
        model.negative_prompt.copy_(read_prompt(sources.negative_prompt, length, width))


def _require_memory(models: Models) -> None:
    weights = sum(parameter.numel() for model in models.by_name().values() for parameter in model.parameters())
    free_bytes = free_host_bytes()
    if free_bytes is not None:
        require_memory("the export of the graphs", _EXPORT_BYTES * weights, free_bytes, "in memory")


def _model_card(rollout: RolloutModel, autoencoder: WanAutoencoder, contract: Contract) -> str:
    return _CARD.format(
        model=contract.model,
        transformer=sum(parameter.numel() for parameter in rollout.parameters()),
        autoencoder=sum(parameter.numel() for parameter in autoencoder.parameters()),
        context=contract.context_frames,
        height=contract.camera.height,
        width=contract.camera.width,
        rows=contract.num_frames,
        states=contract.state.dim,
        horizon=contract.horizon,
        fps=contract.fps,
    )
