"""The rollout model: transformer, state branch and prompt as one conditional flow over latents.

Time runs from 1 (noise) to 0 (data): x_t = (1 - t) x0 + t eps, v = eps - x0. Context latents stay clean at time 0.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor, nn

from foreframe_models.state_branch import StateBranch, StateBranchConfig, StateMap
from foreframe_models.wan import WanConfig, WanTransformer

MAX_TIMESTEP = 1000.0
MIN_TIME = 1e-3


class Target(StrEnum):
    """What the network's output means: the flow's velocity (the paper) or the clean latents (small models)."""

    VELOCITY = "velocity"
    CLEAN = "clean"


@dataclass(frozen=True, slots=True)
class RolloutConfig:
    """One rollout model. The last three fields are additions that a small model needs; the 5B leaves them off.

    is_residual: the last context latent is shown to every frame and added to the output, so that the untrained
    model already copies the last frame. target: see `Target`. `state.is_mapped`: see `StateMap`.
    """

    transformer: WanConfig = field(default_factory=WanConfig)
    state: StateBranchConfig = field(default_factory=StateBranchConfig)
    context_latents: int = 2
    future_latents: int = 4
    latent_size: tuple[int, int] = (32, 32)
    prompt_length: int = 512
    is_residual: bool = False
    target: Target = Target.VELOCITY

    @property
    def num_latents(self) -> int:
        """Latent frames of context and future together."""
        return self.context_latents + self.future_latents


class RolloutModel(nn.Module):
    """Predicts the velocity of future latents from context latents, states and noise."""

    prompt: Tensor
    states_mean: Tensor
    states_std: Tensor

    def __init__(self, config: RolloutConfig) -> None:
        super().__init__()
        self.config = config
        wan, state = config.transformer, config.state
        depth, height, width = wan.patch_size
        self.transformer = WanTransformer(wan)
        self.state_branch = StateBranch(state, wan.width, wan.num_layers)
        positions = math.prod((config.latent_size[0] // height, config.latent_size[1] // width))
        self.state_map = (
            StateMap(state, wan.width, context=config.context_latents, frames=depth, positions=positions)
            if state.is_mapped
            else None
        )
        self.register_buffer("prompt", torch.zeros(1, config.prompt_length, wan.text_dim))
        self.register_buffer("states_mean", torch.zeros(state.num_states))
        self.register_buffer("states_std", torch.ones(state.num_states))

    def normalise(self, states: Tensor) -> Tensor:
        """Turn physical states `b t n` into deviations from the training mean."""
        return (states - self.states_mean) / self.states_std

    def condition(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """Turn normalised states `b t n` into modulation `b f 6 d` and, if mapped, token offsets `b f s d`."""
        token_bias = None if self.state_map is None else self.state_map(states)
        return self.state_branch(states), token_bias

    def velocity(self, latents: Tensor, time: Tensor, modulation: Tensor, token_bias: Tensor | None) -> Tensor:
        """Predict the velocity `b t c h w` of latents `b t c h w` at times `b t` in 0..1 (0 for context)."""
        output = self._network(latents, time, modulation, token_bias)
        if self.config.target is Target.VELOCITY:
            return output
        return (latents - output) / time.clamp(min=MIN_TIME)[..., None, None, None]

    def clean(self, latents: Tensor, time: Tensor, modulation: Tensor, token_bias: Tensor | None) -> Tensor:
        """Predict the clean latents `b t c h w`: at time 1 this is the posterior mean."""
        output = self._network(latents, time, modulation, token_bias)
        if self.config.target is Target.CLEAN:
            return output
        return latents - time[..., None, None, None] * output

    def step(
        self, latents: Tensor, time: Tensor, next_time: Tensor, modulation: Tensor, token_bias: Tensor | None
    ) -> Tensor:
        """Take one Euler step from `time` to `next_time`, both `b t`; where they are equal nothing moves."""
        velocity = self.velocity(latents, time, modulation, token_bias)
        return latents + (next_time - time)[..., None, None, None] * velocity

    def _network(self, latents: Tensor, time: Tensor, modulation: Tensor, token_bias: Tensor | None) -> Tensor:
        config = self.config
        last = latents[:, config.context_latents - 1 : config.context_latents]
        shown = torch.cat([latents, last.expand_as(latents)], dim=2) if config.is_residual else latents
        depth = config.transformer.patch_size[0]
        output = self.transformer(
            shown.transpose(1, 2),
            time[:, ::depth] * MAX_TIMESTEP,
            self.prompt,
            frame_modulation=self.state_branch.per_block(modulation),
            token_bias=token_bias,
        ).transpose(1, 2)
        return output + last if config.is_residual else output


def eve_tabletop_config() -> RolloutConfig:
    """Return the configuration of the embedded model: 4 context and 8 future frames of 64x64 at 15 a second."""
    return RolloutConfig(
        transformer=WanConfig(
            num_layers=6,
            num_attention_heads=6,
            attention_head_dim=32,
            ffn_dim=768,
            freq_dim=128,
            text_dim=32,
            in_channels=64,
            out_channels=32,
            patch_size=(2, 2, 2),
        ),
        state=StateBranchConfig(strides=(2,), is_mapped=True),
        context_latents=4,
        future_latents=8,
        latent_size=(8, 8),
        prompt_length=4,
        is_residual=True,
        target=Target.CLEAN,
    )
