"""Adapt Wan2.2-TI2V-5B to the 1X robot as arXiv 2510.07092 does: LoRA and state branch by flow matching.

A run's folder holds recipe, log, checkpoints, the prompt, cached latents, and `adapter.safetensors` of the newest
checkpoint. The base is read and never written.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreframe_engines.errors import CheckpointError, DatasetError
from foreframe_models.adapters import activate, attach, digest_base, read_adapter, save_adapter, start_adapter
from foreframe_models.checkpoints import digest_tensors, load_transformer, read_transformer_config
from foreframe_models.data.latent_clips import ClipPlan, LatentCache, LatentClips, LatentSource
from foreframe_models.data.raw_shards import find_raw_shards, read_hz
from foreframe_models.prompts import PROMPT_FILE, encode_empty_prompt, read_prompt, write_prompt
from foreframe_models.recipes.accelerated import CHECKPOINTS, AcceleratedTrainer, RunConfig, open_accelerator
from foreframe_models.recipes.flow_matching import Disturbed, FlowConfig, FlowObjective, disturb
from foreframe_models.recipes.held_out import EvaluationConfig, HeldOutClip, HeldOutPlan, held_out_loss, held_out_psnr
from foreframe_models.rollout import RolloutConfig, RolloutModel
from foreframe_models.state_branch import StateBranch, StateBranchConfig
from foreframe_models.training.data import state_statistics
from foreframe_models.training.loop import RECIPE_FILE, Progress, write_json
from foreframe_models.training.rollout import STATISTICS_FILE
from foreframe_models.wan import WanConfig, WanTransformer
from foreframe_models.wan_vae import FRAMES_PER_LATENT, load_vae

WAN_1X = "wan2.2-1x"
ADAPTER_FILE = "adapter.safetensors"
FACTS_FILE = "facts.json"
ADAPTER = "trained"
LATENTS = "latents"
_MAY_CHANGE = ("steps", "log_every", "evaluate_every", "checkpoint_every", "micro_batch_size")
"""Of a run's settings, those that change nothing that was trained before."""


@dataclass(frozen=True, slots=True)
class WanRecipe:
    """The recipe of one run; every default is the paper's (paper.md 1.2 to 1.5)."""

    clip: ClipPlan = field(default_factory=ClipPlan)
    context_frames: int = 5
    prompt_length: int = 512
    state: StateBranchConfig = field(default_factory=StateBranchConfig)
    lora_rank: int = 32
    lora_alpha: int = 32
    flow: FlowConfig = field(default_factory=FlowConfig)
    run: RunConfig = field(default_factory=RunConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @property
    def num_latents(self) -> int:
        """Latent frames of a clip."""
        return latents_of(len(self.clip.offsets))

    @property
    def state_rows(self) -> tuple[int, ...]:
        """Frames whose states condition a clip: the clip's own, or all between, as the branch's strides ask.

        Raises DatasetError when the branch makes another number of latent frames of either.
        """
        for rows in (self.clip.offsets, tuple(range(self.clip.length))):
            if self.state.num_latents(len(rows)) == self.num_latents:
                return rows
        raise DatasetError(f"the state branch makes no {self.num_latents} latent frames of the clip's states")

    def model_config(self, transformer: WanConfig, latent_size: tuple[int, int]) -> RolloutConfig:
        """Return the model that is trained on a base."""
        context = latents_of(self.context_frames)
        return RolloutConfig(
            transformer=transformer,
            state=replace(self.state, has_no_states_token=self.flow.state_dropout > 0.0),
            context_latents=context,
            future_latents=self.num_latents - context,
            latent_size=latent_size,
            prompt_length=self.prompt_length,
            num_state_rows=len(self.state_rows),
        )


@dataclass(frozen=True, slots=True)
class WanSources:
    """What a run reads: a base pipeline's folder, raw shards to train on and to watch, an embedded prompt.

    Without `prompt` the base's text encoder embeds the empty text; without `validation` nothing is measured.
    """

    base: Path
    data: Path
    validation: Path | None = None
    prompt: Path | None = None


def latents_of(num_frames: int) -> int:
    """Count the latent frames of a clip. Raises DatasetError unless frames are 4k + 1."""
    if num_frames % FRAMES_PER_LATENT != 1:
        raise DatasetError(f"{num_frames} frames are not 1 and a multiple of {FRAMES_PER_LATENT}")
    return 1 + num_frames // FRAMES_PER_LATENT


class WanRun:
    """One run in its folder: cache the latents, then train; both go on where they were interrupted."""

    def __init__(self, recipe: WanRecipe, sources: WanSources, folder: Path) -> None:
        """Open sources and accelerator. Raises DatasetError, or CheckpointError for a base that does not fit."""
        self.recipe, self.sources, self.folder = recipe, sources, folder
        self.accelerator = open_accelerator(recipe.run)
        if self.accelerator.is_main_process:
            keep_recipe(recipe, folder)
        self._dtype = torch.bfloat16 if self.accelerator.device.type == "cuda" else torch.float32
        self._wan = read_transformer_config(sources.base)
        self._autoencoder = load_vae(sources.base, self._dtype, device=self.accelerator.device)
        self.cache = LatentCache(folder / LATENTS, sources.data, self._latent_source())

    @property
    def is_first(self) -> bool:
        """Whether this process logs, measures and saves for all."""
        return self.accelerator.is_main_process

    def count_missing(self) -> int:
        """Count the windows that this process has yet to encode."""
        state = self.accelerator
        return self.cache.count_missing(part=state.process_index, parts=state.num_processes)

    def cache_latents(self) -> Iterator[int]:
        """Encode this process's share of the windows, yielding 1 for each; then wait for the other processes."""
        state, encode = self.accelerator, self._autoencoder.encode
        yield from self.cache.fill(encode, state.device, part=state.process_index, parts=state.num_processes)
        state.wait_for_everyone()

    def train(self) -> Iterator[Progress]:
        """Train on the cached latents and leave `adapter.safetensors`; yields progress in the first process."""
        recipe, device = self.recipe, self.accelerator.device
        clips = self.cache.open(recipe.state_rows, recipe.state.num_states)
        model = self._load_model()
        base_digest, held_out = digest_base(model), self._hold_out()
        self._require_base(base_digest)
        trainer = AcceleratedTrainer[Disturbed](FlowObjective(model), recipe.run, self.folder, self.accelerator)

        def batch(places: range) -> Disturbed:
            chosen = clips.read(clips.shuffled(recipe.run.seed, places))
            return disturb(chosen, recipe.flow, recipe.run.seed, places).to(device)

        def evaluate() -> dict[str, float]:
            return self._evaluate(model, held_out) if held_out else {}

        yield from trainer.run(batch, evaluate, lambda: save_adapter(model, self.folder / ADAPTER_FILE, base_digest))
        if self.is_first:
            self._leave_facts(clips, trainer.clock.step, trainer.clock.seconds)

    def close(self) -> None:
        """Leave the processes of the run."""
        self.accelerator.end_training()

    def _latent_source(self) -> LatentSource:
        vae, patch = self._autoencoder.config, self._wan.patch_size
        height, width = find_raw_shards(self.sources.data)[0].frame_size()
        cell = vae.scale_factor_spatial
        if height % (cell * patch[1]) or width % (cell * patch[2]):
            raise DatasetError(f"videos of {height} x {width} pixels are no whole patches of {cell * patch[1]} pixels")
        if vae.z_dim != self._wan.in_channels:
            raise CheckpointError(
                f"the base's autoencoder has {vae.z_dim} channels, its transformer {self._wan.in_channels}"
            )
        shape = (self.recipe.num_latents, vae.z_dim, height // cell, width // cell)
        return LatentSource(self.recipe.clip, (height, width), shape, digest_tensors(self._autoencoder.state_dict()))

    def _load_model(self) -> RolloutModel:
        config = self.recipe.model_config(self._wan, self.cache.source.shape[2:])
        transformer = load_transformer(self.sources.base, self._dtype, device=self.accelerator.device)
        model = assemble(config, transformer, self._prompt(), self.recipe.run.seed).to(self.accelerator.device)
        make_trainable(model, self.recipe)
        return model

    def _require_base(self, digest: str) -> None:
        path = self.folder / ADAPTER_FILE
        if path.exists() and (before := read_adapter(path).facts.base_digest) != digest:
            raise CheckpointError(f"{path} was trained on the base {str(before)[:12]}, this one is {digest[:12]}")

    def _prompt(self) -> Tensor:
        """Read the prompt, which the first process of a run embeds once."""
        path = self.folder / PROMPT_FILE
        if self.is_first and not path.exists():
            write_prompt(path, self._embed_prompt())
        self.accelerator.wait_for_everyone()
        return read_prompt(path, self.recipe.prompt_length, self._wan.text_dim)

    def _embed_prompt(self) -> Tensor:
        length, width = self.recipe.prompt_length, self._wan.text_dim
        if self.sources.prompt is not None:
            return read_prompt(self.sources.prompt, length, width)
        return encode_empty_prompt(self.sources.base, length, width)

    def _hold_out(self) -> list[HeldOutClip]:
        if self.sources.validation is None or not self.is_first:
            return []
        recipe = self.recipe
        plan = HeldOutPlan(recipe.clip, recipe.state_rows, recipe.context_frames, recipe.evaluation)
        return plan.read(self.sources.validation, self._autoencoder, self.accelerator.device)

    def _evaluate(self, model: RolloutModel, held_out: Sequence[HeldOutClip]) -> dict[str, float]:
        with self.accelerator.autocast():
            loss = held_out_loss(model, held_out, replace(self.recipe.flow, state_dropout=0.0))
            return loss | held_out_psnr(model, self._autoencoder, held_out, self.recipe.evaluation)

    def _leave_facts(self, clips: LatentClips, step: int, seconds: float) -> None:
        run = self.recipe.run
        write_json(self.folder / STATISTICS_FILE, state_statistics(clips.all_states()))
        facts = {
            "steps": step,
            "seconds": seconds,
            "batch_size": run.batch_size,
            "processes": self.accelerator.num_processes,
            "windows": len(clips),
            "frames": sum(len(shard.states) for shard in clips.shards),
            "hz": read_hz(self.sources.data),
        }
        write_json(self.folder / FACTS_FILE, facts)


def assemble(config: RolloutConfig, transformer: WanTransformer, prompt: Tensor, seed: int = 0) -> RolloutModel:
    """Put a loaded transformer, a prompt `1 l d` and a fresh state branch together; states are taken raw."""
    with torch.device("meta"):  # no second transformer in memory
        model = RolloutModel(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        branch = StateBranch(config.state, config.transformer.width, config.transformer.num_layers)
    model.transformer, model.state_branch, model.prompt = transformer, branch, prompt
    model.states_mean, model.states_std = torch.zeros(config.state.num_states), torch.ones(config.state.num_states)
    return model.eval()


def make_trainable(model: RolloutModel, recipe: WanRecipe) -> None:
    """Attach an untrained adapter, whose own parameters are float32 whatever the base is, and freeze all else."""
    attach(model, start_adapter(model, recipe.lora_rank, recipe.lora_alpha, recipe.run.seed), ADAPTER)
    activate(model, ADAPTER, is_trainable=True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def keep_recipe(recipe: WanRecipe, folder: Path) -> None:
    """Write `recipe.json`. Raises DatasetError when checkpoints there were trained by another recipe."""
    path, written = folder / RECIPE_FILE, asdict(recipe)
    if path.exists() and (folder / CHECKPOINTS).exists():
        before = _settings(json.loads(path.read_text(encoding="utf-8")))
        for name, value in _settings(json.loads(json.dumps(written))).items():
            if before.get(name) != value:
                raise DatasetError(f"{folder} holds a run whose {name} is {before.get(name)}; choose another folder")
    write_json(path, written)


def _settings(record: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Name every setting that a checkpoint depends on by its way through the record."""
    settings: dict[str, object] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            settings |= _settings(value, f"{prefix}{name}.")
        elif name not in _MAY_CHANGE and prefix != "evaluation.":
            settings[prefix + name] = value
    return settings
