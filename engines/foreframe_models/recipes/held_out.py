"""Held-out clips of raw shards and what a model makes of them: flow loss, and PSNR of the challenge's last frame.

Source: arXiv 2510.07092, evaluation; the authors' validation draws with 10 Euler steps (paper.md 1.6).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from foreframe_engines.errors import DatasetError
from foreframe_engines.schedule import get_schedule
from foreframe_engines.solvers import Solver
from foreframe_models.data.latent_clips import ClipPlan, Clips
from foreframe_models.data.raw_shards import RawShard, find_raw_shards, read_clips
from foreframe_models.flow import FlowNetwork
from foreframe_models.recipes.flow_matching import FlowConfig, FlowObjective, disturb
from foreframe_models.rollout import RolloutModel
from foreframe_models.sampling import Plan, sample_latents
from foreframe_models.savings import NO_SAVINGS
from foreframe_models.training.data import psnr, to_input
from foreframe_models.wan_vae import WanAutoencoder


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """How progress is watched: so many windows, that far apart, each drawn once in so many Euler steps."""

    num_clips: int = 8
    stride: int = 77
    steps: int = 10
    shift: float = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class HeldOutClip:
    """One clip: latents `t c y x`, physical states `r d`, last frame and last context frame `3 h w` in -1..1."""

    latents: Tensor
    states: Tensor
    last: Tensor
    context: Tensor


@dataclass(frozen=True, slots=True)
class HeldOutPlan:
    """Which frames and rows of states a clip has, and how many clips are held out of a data set."""

    clip: ClipPlan
    rows: tuple[int, ...]
    context_frames: int
    evaluation: EvaluationConfig

    @torch.no_grad()
    def read(self, data: Path, autoencoder: WanAutoencoder, device: torch.device) -> list[HeldOutClip]:
        """Read windows spread over a data set. Raises DatasetError when it has none."""
        plan = replace(self.clip, stride=self.evaluation.stride)
        places = [(shard, start) for shard in find_raw_shards(data) for start in plan.starts(shard).tolist()]
        if not places:
            raise DatasetError(f"{data} holds no window of {plan.length} frames in one segment")
        chosen = places[:: -(-len(places) // self.evaluation.num_clips)]
        return [self._hold(shard, start, frames, autoencoder, device) for shard, start, frames in self._decode(chosen)]

    def _decode(self, places: list[tuple[RawShard, int]]) -> Iterator[tuple[RawShard, int, np.ndarray]]:
        for shard in dict.fromkeys(shard for shard, _ in places):
            starts = np.array([start for other, start in places if other == shard])
            for start, frames in zip(starts.tolist(), read_clips(shard, starts, self.clip.offsets), strict=True):
                yield shard, start, frames

    def _hold(
        self,
        shard: RawShard,
        start: int,
        frames: UInt8[np.ndarray, "t h w 3"],
        autoencoder: WanAutoencoder,
        device: torch.device,
    ) -> HeldOutClip:
        pictures = to_input(frames).to(device)
        states = torch.from_numpy(shard.read_states()[start + np.asarray(self.rows)]).to(device)
        latents = autoencoder.encode(pictures.movedim(0, 1)[None])[0]
        return HeldOutClip(latents, states, pictures[-1], pictures[self.context_frames - 1])


@torch.no_grad()
def held_out_loss(model: RolloutModel, clips: Sequence[HeldOutClip], flow: FlowConfig) -> dict[str, float]:
    """Return the loss that is trained, under noise and times that are the same at every call."""
    objective, device = FlowObjective(model), clips[0].latents.device
    whole = [Clips(clip.latents[None].cpu(), clip.states[None].cpu()) for clip in clips]
    losses = [objective(disturb(one, flow, 0, [place]).to(device)) for place, one in enumerate(whole)]
    return {"held_out_loss": fmean(float(loss) for loss in losses)}


@torch.no_grad()
def held_out_psnr(
    model: RolloutModel, autoencoder: WanAutoencoder, clips: Sequence[HeldOutClip], config: EvaluationConfig
) -> dict[str, float]:
    """Return PSNR in dB at the last frame: copying the last context frame, the posterior mean, one sample."""
    network = FlowNetwork(model, NO_SAVINGS)
    schedules = {"mean": (1.0, 0.0), "sample": get_schedule(config.steps, config.shift)}
    errors = {"copy": [_squared_error(clip.context, clip.last) for clip in clips]}
    for name, times in schedules.items():
        plan = Plan(times, Solver.EULER)
        errors[name] = [_error(network, autoencoder, clip, plan, seed) for seed, clip in enumerate(clips)]
    return {f"{name}_last": psnr(fmean(values)) for name, values in errors.items()}


def _error(network: FlowNetwork, autoencoder: WanAutoencoder, clip: HeldOutClip, plan: Plan, seed: int) -> float:
    num_context = network.rollout.config.context_latents
    context, future = clip.latents[:num_context], clip.latents[num_context:]
    noise = torch.randn(future.shape, generator=torch.Generator().manual_seed(seed)).to(future)
    drawn = sample_latents(network, context, noise[None], clip.states, plan)
    pictures = autoencoder.decode_tail(torch.cat([context[None], drawn.float()], dim=1))
    return _squared_error(pictures[0, :, -1], clip.last)


def _squared_error(picture: Tensor, truth: Tensor) -> float:
    return float((picture.float() - truth).square().mean()) / 4.0
