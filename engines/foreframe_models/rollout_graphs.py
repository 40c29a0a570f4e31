"""The four graphs of a rollout model: encode, condition, step and decode. Knows no files."""

import torch
from torch import Tensor, nn

from foreframe_models.autoencoder import FrameAutoencoder
from foreframe_models.graph import Graph
from foreframe_models.rollout import RolloutModel


class Encode(nn.Module):
    """Frames uint8 `1 t h w 3` to clean latents `1 t c y x`."""

    def __init__(self, autoencoder: FrameAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, frames: Tensor) -> Tensor:
        """Encode each frame by itself."""
        pictures = frames[0].permute(0, 3, 1, 2).float() / 127.5 - 1.0
        return self.autoencoder.encode(pictures)[None]


class Condition(nn.Module):
    """Physical states `1 n d` to modulation `1 f 6 d` and, if the model has a state map, token offsets `1 f s d`.

    Every bundle's graph is also given the clean context latents `1 t c y x`; this family conditions on states alone.
    """

    def __init__(self, rollout: RolloutModel) -> None:
        super().__init__()
        self.rollout = rollout

    def forward(self, states: Tensor, context_latents: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG002 - see above
        """Compute what all steps of all members share."""
        modulation, token_bias = self.rollout.condition(self.rollout.normalise(states))
        return (modulation,) if token_bias is None else (modulation, token_bias)


class Step(nn.Module):
    """One solver step of `b` members; the update is inside."""

    def __init__(self, rollout: RolloutModel) -> None:
        super().__init__()
        self.rollout = rollout

    def forward(
        self, latents: Tensor, time: Tensor, next_time: Tensor, modulation: Tensor, token_bias: Tensor | None = None
    ) -> Tensor:
        """Move latents `b t c y x` from times `b t` to `next_time`."""
        return self.rollout.step(latents, time, next_time, modulation, token_bias)


class Decode(nn.Module):
    """Latents `b f c y x` to frames uint8 `b f h w 3`, rounded and clipped."""

    def __init__(self, autoencoder: FrameAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        """Decode each latent by itself."""
        pictures = self.autoencoder.decode(latents.flatten(0, 1))
        grey = ((pictures + 1.0) * 127.5).round().clamp(0.0, 255.0).to(torch.uint8)
        return grey.permute(0, 2, 3, 1).unflatten(0, latents.shape[:2])  # type: ignore[no-untyped-call]


def rollout_graphs_of(autoencoder: FrameAutoencoder, rollout: RolloutModel) -> dict[str, Graph]:
    """Return the four graphs of a rollout bundle with example inputs."""
    config = rollout.config
    rows, columns = config.latent_size
    channels, patch = autoencoder.config.channels, autoencoder.config.patch
    latents = torch.zeros(2, config.num_latents, channels, rows, columns)
    states = rollout.states_mean.expand(1, config.num_latents, -1).clone()
    condition_inputs = {"states": states, "context_latents": latents[:1, : config.context_latents]}
    tables = Condition(rollout)(**condition_inputs)
    names = ("modulation", "token_bias")[: len(tables)]
    time = torch.full((2, config.num_latents), 0.5)
    step_inputs = {"latents": latents, "time": time, "next_time": time * 0.5}
    step_inputs |= {name: torch.cat([table, table]).detach() for name, table in zip(names, tables, strict=True)}
    frames = torch.zeros(1, config.context_latents, rows * patch, columns * patch, 3, dtype=torch.uint8)
    return {
        "encode": Graph(Encode(autoencoder), {"frames": frames}, ("latents",), {}),
        "condition": Graph(Condition(rollout), condition_inputs, names, {}),
        "step": Graph(Step(rollout), step_inputs, ("latents_next",), {name: {0: "b"} for name in step_inputs}),
        "decode": Graph(Decode(autoencoder), {"latents": latents[:, :3]}, ("frames",), {"latents": {0: "b", 1: "f"}}),
    }
