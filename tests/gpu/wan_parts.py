"""Models of the 5B's sizes with random weights, made on the device, and diffusers' own with the same weights."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from foreframe_engines import CameraSpec, Contract, SamplerSpec, StateSchema
from foreframe_engines.runtime.typed_graph import Precision
from foreframe_models.rollout import RolloutConfig, RolloutModel
from foreframe_models.torch_engine import lower_transformer
from foreframe_models.wan import WanConfig, WanTransformer
from foreframe_models.wan_vae import WanAutoencoder, WanVaeConfig, build_vae

FRAMES_PER_LATENT = 4
_THEIR_SINGLE = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")
"""What diffusers keeps in float32 when a pipeline is loaded in bfloat16."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured: the model, clips as latents of context and future, ensembles, and how long each thing runs."""

    model: RolloutConfig = field(default_factory=RolloutConfig)
    clips: tuple[tuple[int, int], ...] = ((2, 4), (5, 15))
    vae: WanVaeConfig = field(default_factory=WanVaeConfig)
    parity_layers: int = 4
    runtime_layers: int = 2
    members: int = 20
    loop_steps: int = 4
    rounds: int = 8
    loop_rounds: int = 2
    square: int = 8192
    copy_bytes: int = 2**30
    picture: int = 128

    def config(self, clip: tuple[int, int]) -> RolloutConfig:
        """Return the model for clips of so many latents; states come one row a frame."""
        context, future = clip
        rows = 1 + FRAMES_PER_LATENT * (context + future - 1)
        return replace(self.model, context_latents=context, future_latents=future, num_state_rows=rows)

    def tokens(self, clip: tuple[int, int]) -> int:
        """Count the transformer's tokens of a clip."""
        return int(np.prod(self.config(clip).token_grid))


def tiny_sizes() -> Sizes:
    """Return sizes for a rehearsal on a CPU."""
    wan = WanConfig(
        num_layers=3,
        num_attention_heads=2,
        attention_head_dim=24,
        ffn_dim=96,
        freq_dim=32,
        text_dim=16,
        in_channels=4,
        out_channels=4,
    )
    vae = WanVaeConfig(8, 8, 4, (1, 1, 1, 1), 1, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4)
    return Sizes(
        model=RolloutConfig(wan, latent_size=(4, 4), prompt_length=16),
        clips=((2, 4), (2, 6)),
        vae=vae,
        parity_layers=2,
        members=3,
        loop_steps=2,
        rounds=2,
        loop_rounds=1,
        square=128,
        copy_bytes=2**18,
        picture=8,
    )


def build_rollout(config: RolloutConfig, device: torch.device, precision: Precision, seed: int = 0) -> RolloutModel:
    """Make a model with random weights on the device, in the types that it is served in, and an empty prompt.

    Its states say nothing, as before training, so that it answers what diffusers' model of the same weights answers.
    """
    with torch.device("meta"):
        model = RolloutModel(config)
    lower_transformer(model.transformer, precision)
    model.to_empty(device=device).eval().requires_grad_(requires_grad=False)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        _fill(name, parameter, generator)
    for buffer in model.buffers():
        buffer.zero_()
    model.states_std.fill_(1.0)
    model.prompt[:, 0].normal_(generator=generator)  # the end of an empty text; the rest is padding
    return model


def _fill(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    if "r_projection.1" in name or "robot_modulation" in name:
        parameter.zero_()
    elif "norm" in name and name.endswith("weight"):
        parameter.fill_(1.0)
    elif parameter.ndim == 1:
        parameter.normal_(0.0, 0.02, generator=generator)
    else:
        spread = 0.3 if "table" in name else parameter[0].numel() ** -0.5
        parameter.normal_(0.0, spread, generator=generator)


def like(model: RolloutModel, config: RolloutConfig | None = None) -> RolloutModel:
    """Make another model of the same weights, which are not copied; for other clips with another configuration."""
    with torch.device("meta"):
        other = RolloutModel(config or model.config)
    other.load_state_dict(model.state_dict(), assign=True)
    return other.eval().requires_grad_(requires_grad=False)


def import_diffusers() -> ModuleType:
    """Import the library without what it says about itself. Raises ImportError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers  # noqa: PLC0415 - may be missing

        diffusers.logging.set_verbosity_error()
        assert diffusers.WanTransformer3DModel  # loaded when first asked for
        assert diffusers.FlowMatchEulerDiscreteScheduler
    return diffusers


def theirs_of(transformer: WanTransformer, device: torch.device) -> nn.Module:
    """Make diffusers' transformer of the same weights, in the types that its own loader would give them."""
    diffusers = import_diffusers()
    sizes = asdict(transformer.config)
    del sizes["rope_theta"]
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model = diffusers.WanTransformer3DModel(**sizes, cross_attn_norm=True, qk_norm="rms_norm_across_heads")
    half = transformer.proj_out.weight.dtype
    tensors = {
        name: tensor.float() if any(part in name for part in _THEIR_SINGLE) else tensor.to(half)
        for name, tensor in transformer.state_dict().items()
    }
    model.load_state_dict(tensors, strict=True, assign=True)
    config = transformer.config
    model.rope = type(model.rope)(config.attention_head_dim, config.patch_size, 1024).to(device)  # it holds no weights
    return model.eval().requires_grad_(requires_grad=False)


def build_autoencoder(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> WanAutoencoder:
    """Make the autoencoder with random weights on the device. Raises ImportError without diffusers."""
    import_diffusers()
    with device:
        vae = build_vae(sizes.vae)
    return WanAutoencoder(vae).to(device, dtype).eval().requires_grad_(requires_grad=False)


def contract_of(sizes: Sizes, clip: tuple[int, int], buckets: tuple[int, ...]) -> Contract:
    """Say what a model takes and gives, for the engine."""
    config = sizes.config(clip)
    cell, num_states = sizes.vae.scale_factor_spatial, config.state.num_states
    rows, columns = config.latent_size
    zeros, ones = (np.full(num_states, number, np.float32) for number in (0, 1))
    names = tuple(f"s{index}" for index in range(num_states))
    return Contract(
        model="random",
        family="wan2.2-ti2v-5b-state",
        revision="1",
        description="Random weights.",
        cameras=(CameraSpec("head", rows * cell, columns * cell),),
        context_frames=1 + FRAMES_PER_LATENT * (config.context_latents - 1),
        horizon=FRAMES_PER_LATENT * config.future_latents,
        fps=7.5,
        state=StateSchema("random", names, ("",) * num_states, zeros, ones, -ones, ones),
        sampler=SamplerSpec(10, 100, 5.0, 1, 32),
        latent_shape=(config.transformer.out_channels, *config.latent_size),
        frames_per_latent=FRAMES_PER_LATENT,
        capabilities=("predict",),
        buckets=buckets,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """Random inputs of one clip size: clean context, noise of every member, states."""

    context: Tensor
    noise: Tensor
    states: Tensor

    @classmethod
    def draw(cls, config: RolloutConfig, members: int, device: torch.device, seed: int = 1) -> "Clip":
        """Draw a clip."""
        generator = torch.Generator(device).manual_seed(seed)
        size = (config.transformer.out_channels, *config.latent_size)
        shapes = (
            (config.context_latents, *size),
            (members, config.future_latents, *size),
            (config.state_rows, config.state.num_states),
        )
        return cls(*(torch.randn(shape, device=device, generator=generator) for shape in shapes))

    def latents(self, members: int = 1) -> Tensor:
        """Return `b n c y x` of the first members at time 1."""
        return torch.cat([self.context.expand(members, *self.context.shape), self.noise[:members]], dim=1)


def frame_times(config: RolloutConfig, time: float, members: int, device: torch.device) -> Tensor:
    """Give every latent frame its time `b n`, the context 0."""
    row = torch.full((members, config.num_latents), time, device=device)
    row[:, : config.context_latents] = 0.0
    return row


def their_velocity(model: nn.Module, config: RolloutConfig, latents: Tensor, time: float, prompt: Tensor) -> Tensor:
    """Run diffusers' forward as its pipeline does, a timestep a token; return the future's velocity `b f c y x`."""
    _, height, width = config.transformer.patch_size
    cells = (latents.shape[3] // height) * (latents.shape[4] // width)
    steps = 1000 * frame_times(config, time, len(latents), latents.device).repeat_interleave(cells, dim=1)
    half = model.proj_out.weight.dtype
    shown = prompt.to(half).expand(len(latents), -1, -1)
    answer = model(latents.transpose(1, 2).to(half), steps, shown, return_dict=False)[0]
    return answer.transpose(1, 2)[:, config.context_latents :].float()


def relative(answer: Tensor, expected: Tensor) -> float:
    """Return the error's length as a share of what is expected; infinite where anything is not a number."""
    error = (answer.float() - expected.float()).norm() / expected.float().norm()
    return float(error) if torch.isfinite(error) else float("inf")


def as_numpy(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Copy tensors to the host."""
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
