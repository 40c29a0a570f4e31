"""The rollout model: transformer, state branch and prompt as one conditional flow over latents.

Time runs from 1 (noise) to 0 (data): x_t = (1 - t) x0 + t eps, v = eps - x0. Context latents stay clean at time 0.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor, nn

from foreframe_models.state_branch import StateBranch, StateBranchConfig, StateMap
from foreframe_models.wan import Conditions, WanConfig, WanTransformer

MAX_TIMESTEP = 1000.0
MIN_TIME = 1e-3


class Target(StrEnum):
    """What the network's output means: the flow's velocity (the paper) or the clean latents (small models)."""

    VELOCITY = "velocity"
    CLEAN = "clean"


@dataclass(frozen=True, slots=True)
class RolloutConfig:
    """One rollout model. `is_residual`, `target` and `state.is_mapped` are additions that a small model needs.

    num_state_rows: rows of states a clip; None where every latent frame has one. has_negative_prompt: the model holds
    a second prompt, from which guidance moves away.
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
    num_state_rows: int | None = None
    has_negative_prompt: bool = False

    @property
    def num_latents(self) -> int:
        """Latent frames of context and future together."""
        return self.context_latents + self.future_latents

    @property
    def state_rows(self) -> int:
        """Rows of states that `condition` takes."""
        return self.num_latents if self.num_state_rows is None else self.num_state_rows

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns after patching."""
        depth, height, width = self.transformer.patch_size
        rows, columns = self.latent_size
        return self.num_latents // depth, rows // height, columns // width


class RolloutModel(nn.Module):
    """Predicts the velocity of future latents from context latents, states and noise."""

    prompt: Tensor
    negative_prompt: Tensor | None
    states_mean: Tensor
    states_std: Tensor

    def __init__(self, config: RolloutConfig, transformer: WanTransformer | None = None) -> None:
        super().__init__()
        self.config = config
        wan, state = config.transformer, config.state
        self.transformer = WanTransformer(wan) if transformer is None else transformer
        self.state_branch = StateBranch(state, wan.width, wan.num_layers)
        depth, positions = wan.patch_size[0], math.prod(config.token_grid[1:])
        self.state_map = (
            StateMap(state, wan.width, context=config.context_latents, frames=depth, positions=positions)
            if state.is_mapped
            else None
        )
        prompt = torch.zeros(1, config.prompt_length, wan.text_dim)
        self.register_buffer("prompt", prompt)
        self.register_buffer("negative_prompt", prompt.clone() if config.has_negative_prompt else None)
        self.register_buffer("states_mean", torch.zeros(state.num_states))
        self.register_buffer("states_std", torch.ones(state.num_states))

    def normalise(self, states: Tensor) -> Tensor:
        """Turn physical states `b t n` into deviations from the training mean."""
        return (states - self.states_mean) / self.states_std

    def condition(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """Turn normalised states `b t n` into modulation `b f 6 d` and, if mapped, token offsets `b f s d`."""
        token_bias = None if self.state_map is None else self.state_map(states)
        return self.state_branch(states), token_bias

    @property
    def other_prompt(self) -> Tensor:
        """The prompt of the branch that guidance moves away from."""
        return self.prompt if self.negative_prompt is None else self.negative_prompt

    @property
    def is_guidable(self) -> bool:
        """Whether that branch can say something else."""
        return self.state_branch.no_states_token is not None or not torch.equal(self.prompt, self.other_prompt)

    def velocity(self, latents: Tensor, time: Tensor, modulation: Tensor, token_bias: Tensor | None) -> Tensor:
        """Predict the velocity `b t c h w` of latents `b t c h w` at times `b t` in 0..1 (0 for context)."""
        return self.as_velocity(self._answer(latents, time, modulation, token_bias), latents, time)

    def clean(self, latents: Tensor, time: Tensor, modulation: Tensor, token_bias: Tensor | None) -> Tensor:
        """Predict the clean latents `b t c h w`: at time 1 this is the posterior mean."""
        return self.as_clean(self._answer(latents, time, modulation, token_bias), latents, time)

    def as_velocity(self, answer: Tensor, latents: Tensor, time: Tensor) -> Tensor:
        """Turn the network's answer about latents `b t c h w` at times `b t` into their velocity."""
        if self.config.target is Target.VELOCITY:
            return answer
        return (latents - answer) / time.clamp(min=MIN_TIME)[..., None, None, None]

    def as_clean(self, answer: Tensor, latents: Tensor, time: Tensor) -> Tensor:
        """Turn the network's answer about latents `b t c h w` at times `b t` into clean latents."""
        if self.config.target is Target.CLEAN:
            return answer
        return latents - time[..., None, None, None] * answer

    def step(
        self, latents: Tensor, time: Tensor, next_time: Tensor, modulation: Tensor, token_bias: Tensor | None
    ) -> Tensor:
        """Take one Euler step from `time` to `next_time`, both `b t`; where they are equal nothing moves."""
        velocity = self.velocity(latents, time, modulation, token_bias)
        return latents + (next_time - time)[..., None, None, None] * velocity

    def answer(self, latents: Tensor, conditions: Conditions, *, first: int = 0) -> Tensor:
        """Run the network on latents `b t c h w`; return its answer for the patched latent frames from `first` on."""
        context = self.config.context_latents
        last = latents[:, context - 1 : context]
        shown = torch.cat([latents, last.expand_as(latents)], dim=2) if self.config.is_residual else latents
        output = self.transformer.predict(shown.transpose(1, 2), conditions, first=first).transpose(1, 2)
        return output + last if self.config.is_residual else output

    def frame_timesteps(self, time: Tensor) -> Tensor:
        """Turn times `b t` in 0..1 into timesteps `b f` of the patched latent frames."""
        return time[:, :: self.config.transformer.patch_size[0]] * MAX_TIMESTEP

    def _answer(self, latents: Tensor, time: Tensor, modulation: Tensor, token_bias: Tensor | None) -> Tensor:
        embedder = self.transformer.condition_embedder
        conditions = Conditions(
            time_terms=embedder.embed_time(self.frame_timesteps(time)),
            prompts=[embedder.embed_text(self.prompt)] * self.config.transformer.num_layers,
            frame_modulation=self.state_branch.per_block(modulation),
            token_bias=token_bias,
        )
        return self.answer(latents, conditions)


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
