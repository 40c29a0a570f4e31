"""Flow matching by the paper's recipe: what a clip is mixed with, and the loss that makes of it. Knows no files.

A clip's time and noise are functions of (seed, place in the series) alone. Times come from the shifted table of 1,000
that Wan is trained on, weighted by a bell around the middle, as DiffSynth-Studio, the authors' framework, does it.
Source: arXiv 2510.07092, section 3; paper.md 1.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from foreframe_engines.schedule import get_schedule
from foreframe_models.data.latent_clips import Clips
from foreframe_models.rollout import RolloutModel

NUM_TIMES = 1000


@dataclass(frozen=True, slots=True)
class FlowConfig:
    """How clips are disturbed.

    is_bell_weighted: errors at times in the middle count more, on average once.
    state_dropout: this share of clips loses its states, so that guidance is possible; the paper's final system has 0.
    """

    shift: float = 5.0
    is_bell_weighted: bool = True
    state_dropout: float = 0.0

    def times(self) -> Float32[np.ndarray, " n"]:
        """Return the times that are drawn from, all equally likely."""
        return np.array(get_schedule(NUM_TIMES, self.shift)[:-1], np.float32)

    def weights(self) -> Float32[np.ndarray, " n"]:
        """Return how much an error at each of the times counts."""
        if not self.is_bell_weighted:
            return np.ones(NUM_TIMES, np.float32)
        bell = np.exp(-2.0 * (self.times().astype(np.float64) - 0.5) ** 2)
        bell -= bell.min()
        return (bell / bell.mean()).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Disturbed:
    """Clips b and what disturbs them: latents and noise `b t c y x`, states `b r d`, time and weight `b`, 0..1.

    is_dropped `b`: which clips lose their states.
    """

    latents: Tensor
    states: Tensor
    noise: Tensor
    time: Tensor
    weight: Tensor
    is_dropped: Tensor

    def to(self, device: torch.device) -> "Disturbed":
        """Copy every tensor to a device."""
        return Disturbed(*(getattr(self, field.name).to(device) for field in fields(self)))


def disturb(clips: Clips, config: FlowConfig, seed: int, places: Sequence[int]) -> Disturbed:
    """Draw time, noise and dropout of the clips at these places of the series."""
    times, weights = config.times(), config.weights()
    rngs = [np.random.default_rng((seed, place)) for place in places]
    indices = [int(rng.integers(NUM_TIMES)) for rng in rngs]
    shares = torch.tensor([float(rng.random()) for rng in rngs])
    noise = [rng.standard_normal(clips.latents.shape[1:], dtype=np.float32) for rng in rngs]
    return Disturbed(
        clips.latents,
        clips.states,
        torch.from_numpy(np.stack(noise)),
        torch.from_numpy(times[indices]),
        torch.from_numpy(weights[indices]),
        shares < config.state_dropout,
    )


class FlowObjective(nn.Module):
    """The flow-matching loss of a rollout model as one module, which is what a distributed run wraps."""

    def __init__(self, model: RolloutModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, clips: Disturbed) -> Tensor:
        """Return the weighted squared error of the velocity noise - clean over the future latents."""
        context = self.model.config.context_latents
        time = clips.time[:, None].repeat(1, clips.latents.shape[1])
        time[:, :context] = 0.0
        mixed = torch.lerp(clips.latents, clips.noise, time[..., None, None, None])
        velocity = self.model.velocity(mixed, time, self._modulation(clips), None)
        error = velocity.float() - (clips.noise - clips.latents)
        return (clips.weight * error[:, context:].square().mean(dim=(1, 2, 3, 4))).mean()

    def _modulation(self, clips: Disturbed) -> Tensor:
        branch = self.model.state_branch
        is_absent = None if branch.no_states_token is None else clips.is_dropped
        return branch(self.model.normalise(clips.states), is_absent)
