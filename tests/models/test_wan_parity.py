"""Our transformer and sampling loops against diffusers' own parts, which hold the same weights."""

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foreframe_engines import get_schedule
from foreframe_engines.solvers import Solver
from foreframe_models.flow import FlowNetwork
from foreframe_models.rollout import RolloutConfig, RolloutModel
from foreframe_models.sampling import Plan, sample_latents
from foreframe_models.savings import NO_SAVINGS
from foreframe_models.state_branch import StateBranchConfig
from foreframe_models.wan import WanConfig, WanTransformer

SEEDS = range(8)
TOLERANCE = 1e-4
LOOP_TOLERANCE = 1e-3
STEPS, SHIFT = 10, 5.0
CONTEXT = 2


@pytest.fixture(scope="session")
def diffusers() -> ModuleType:
    """The library, without what it says about itself while it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers  # noqa: PLC0415 - takes seconds

        diffusers.logging.set_verbosity_error()
        assert diffusers.WanTransformer3DModel  # loaded when first asked for
        assert diffusers.UniPCMultistepScheduler
        assert diffusers.FlowMatchEulerDiscreteScheduler
    return diffusers


def random_config(rng: np.random.Generator) -> WanConfig:
    """Draw the sizes of a small transformer."""
    return WanConfig(
        num_layers=int(rng.integers(1, 4)),
        num_attention_heads=int(rng.integers(1, 5)),
        attention_head_dim=int(rng.choice([8, 12, 24, 32])),
        ffn_dim=int(rng.integers(16, 96)),
        freq_dim=int(rng.choice([16, 32, 256])),
        text_dim=int(rng.integers(4, 24)),
        in_channels=int(rng.integers(2, 9)),
        out_channels=int(rng.integers(2, 9)),
        patch_size=tuple(int(length) for length in (rng.integers(1, 3), rng.integers(1, 3), rng.integers(1, 3))),  # type: ignore[arg-type]
    )


def randomise(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def theirs_of(diffusers: ModuleType, transformer: WanTransformer) -> nn.Module:
    """Build diffusers' model of the same sizes and give it our weights by name, all of them and no others."""
    sizes = asdict(transformer.config)
    del sizes["rope_theta"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = diffusers.WanTransformer3DModel(**sizes, cross_attn_norm=True, qk_norm="rms_norm_across_heads")
    model.load_state_dict(transformer.state_dict(), strict=True)
    return model.eval()


def per_token(timestep: Tensor, config: WanConfig, latents: Tensor) -> Tensor:
    """Repeat timesteps `b f` for every token of their latent frame."""
    _, height, width = config.patch_size
    return timestep.repeat_interleave((latents.shape[3] // height) * (latents.shape[4] // width), dim=1)


def compare(diffusers: ModuleType, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Run both on a random clip with a random timestep for every latent frame."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    config = random_config(rng)
    ours = WanTransformer(config).eval()
    randomise(ours)
    grid = rng.integers(1, 5, 3)
    size = [int(cells * patch) for cells, patch in zip(grid, config.patch_size, strict=True)]
    batch = int(rng.integers(1, 4))
    latents = torch.randn(batch, config.in_channels, *size)
    timestep = 1000 * torch.rand(batch, int(grid[0]))
    timestep[:, 0] = 0.0
    prompt = torch.randn(batch, int(rng.integers(1, 9)), config.text_dim)
    theirs = theirs_of(diffusers, ours).to(dtype)
    with torch.no_grad():
        expected = theirs(latents.to(dtype), per_token(timestep, config, latents), prompt.to(dtype), return_dict=False)[
            0
        ]
        return ours.to(dtype)(latents, timestep, prompt), expected.float()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_forward_is_diffusers(diffusers: ModuleType, seed: int) -> None:
    ours, theirs = compare(diffusers, seed)
    assert theirs.std() > 0.05
    assert (ours - theirs).abs().max() <= TOLERANCE


def test_half_precision_is_no_farther_from_single_than_diffusers_is(diffusers: ModuleType) -> None:
    errors = torch.zeros(2)
    for seed in SEEDS:
        _, exact = compare(diffusers, seed)
        both = compare(diffusers, seed, torch.bfloat16)
        assert both[0].dtype == torch.float32  # of the latents, so that a solver adds up in single precision
        errors += torch.stack([(answer - exact).square().mean() / exact.var() for answer in both])
    assert errors[0] <= errors[1]
    assert errors[0] > 0


def test_a_rotated_head_would_be_noticed(diffusers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(config: WanConfig, grid: tuple[int, int, int], device: torch.device | None = None) -> Tensor:
        frames, rows, columns = grid
        return rotary_table(config, (frames, columns, rows), device)

    from foreframe_models import wan  # noqa: PLC0415 - to plant a fault

    rotary_table = wan.rotary_table
    monkeypatch.setattr(wan, "rotary_table", swapped)
    differences = [(ours - theirs).abs().max().item() for ours, theirs in (compare(diffusers, seed) for seed in SEEDS)]
    assert max(differences) > 10 * TOLERANCE


def test_every_key_of_the_5b_is_consumed_and_none_is_left(diffusers: ModuleType) -> None:
    with torch.device("meta"):
        ours = {name: tensor.shape for name, tensor in WanTransformer(WanConfig()).state_dict().items()}
        sizes = asdict(WanConfig())
        del sizes["rope_theta"]
        theirs = diffusers.WanTransformer3DModel(**sizes, cross_attn_norm=True).state_dict()
    assert ours == {name: tensor.shape for name, tensor in theirs.items()}
    assert len(ours) == 825
    assert sum(math.prod(shape) for shape in ours.values()) == 4_999_787_712


PAPER_LIKE = RolloutConfig(
    transformer=WanConfig(
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=24,
        ffn_dim=64,
        freq_dim=32,
        text_dim=8,
        in_channels=6,
        out_channels=6,
    ),
    state=StateBranchConfig(hidden=16),
    context_latents=CONTEXT,
    future_latents=4,
    latent_size=(4, 6),
    prompt_length=7,
    num_state_rows=21,
    has_negative_prompt=True,
)


@pytest.fixture
def rollout() -> RolloutModel:
    """A model of the paper's shape without trained states, with a prompt of one row and padding."""
    torch.manual_seed(0)
    model = RolloutModel(PAPER_LIKE).eval()
    randomise(model.transformer)
    model.prompt[:, 0].normal_()
    model.negative_prompt[:, :4].normal_()  # type: ignore[index]
    return model


@pytest.fixture
def clip() -> tuple[Tensor, Tensor, Tensor]:
    """Clean context, noise of three members, states."""
    generator = torch.Generator().manual_seed(1)
    size = (6, 4, 6)
    context, noise = (torch.randn(*shape, *size, generator=generator) for shape in ((CONTEXT,), (3, 4)))
    return context, noise, torch.randn(21, 25, generator=generator)


def scheduler_of(diffusers: ModuleType, solver: Solver, times: tuple[float, ...]) -> object:
    """Set diffusers' solver to our times, which are already shifted."""
    if solver is Solver.EULER:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    else:
        scheduler = diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0
        )
    scheduler.set_timesteps(sigmas=np.array(times[:-1]))
    return scheduler


Loop = Callable[[Tensor, Tensor, Tensor], Tensor]


@torch.no_grad()
def their_loop(diffusers: ModuleType, rollout: RolloutModel, clip: tuple[Tensor, Tensor, Tensor], plan: Plan) -> Tensor:
    """Draw by diffusers' parts: clean context at timestep 0, per-token timesteps, the solver moves the rest alone."""
    network = theirs_of(diffusers, rollout.transformer)
    context, future, _ = clip
    context = context.expand(len(future), -1, -1, -1, -1)
    scheduler = scheduler_of(diffusers, plan.solver, tuple(plan.times))

    def velocity(latents: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
        each = prompt.expand(len(latents), -1, -1)
        return network(latents, timestep, each, return_dict=False)[0].transpose(1, 2)[:, CONTEXT:]

    for timestep, time in zip(scheduler.timesteps, plan.times, strict=False):  # type: ignore[attr-defined]
        latents = torch.cat([context, future], dim=1).transpose(1, 2)
        frames = torch.tensor([0.0] * CONTEXT + [1000.0 * time] * 4).expand(len(latents), -1)
        tokens = per_token(frames, rollout.config.transformer, latents)
        answer = velocity(latents, tokens, rollout.prompt)
        if plan.guidance != 1.0:
            other = velocity(latents, tokens, rollout.other_prompt)
            answer = other + plan.guidance * (answer - other)
        future = scheduler.step(answer, timestep, future, return_dict=False)[0]  # type: ignore[attr-defined]
    return future


@pytest.mark.parametrize("savings_are_on", [True, False])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("solver", Solver)
def test_a_whole_loop_is_diffusers(
    diffusers: ModuleType,
    rollout: RolloutModel,
    clip: tuple[Tensor, Tensor, Tensor],
    solver: Solver,
    guidance: float,
    savings_are_on: bool,
) -> None:
    plan = Plan(get_schedule(STEPS, SHIFT), solver, guidance)
    network = FlowNetwork(rollout) if savings_are_on else FlowNetwork(rollout, NO_SAVINGS)
    ours, theirs = sample_latents(network, *clip, plan), their_loop(diffusers, rollout, clip, plan)
    assert (theirs - clip[1]).abs().mean() > 0.1
    assert (ours - theirs).abs().max() <= LOOP_TOLERANCE


def test_another_solver_time_or_guidance_would_be_noticed(
    diffusers: ModuleType, rollout: RolloutModel, clip: tuple[Tensor, Tensor, Tensor]
) -> None:
    plan = Plan(get_schedule(STEPS, SHIFT), Solver.UNIPC, 4.0)
    network, theirs = FlowNetwork(rollout), their_loop(diffusers, rollout, clip, plan)
    for other in (
        replace(plan, solver=Solver.EULER),
        replace(plan, guidance=4.1),
        replace(plan, times=get_schedule(STEPS, 4.0)),
    ):
        assert (sample_latents(network, *clip, other) - theirs).abs().max() > LOOP_TOLERANCE


@pytest.mark.parametrize(("steps", "largest"), [(4, 0.002), (10, 0.003), (50, 0.005)])
def test_diffusers_own_times_end_a_thousandth_early(diffusers: ModuleType, steps: int, largest: float) -> None:
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
    )
    scheduler.set_timesteps(steps)
    difference = scheduler.sigmas.numpy() - np.array(get_schedule(steps, SHIFT))
    assert difference[1:-1].min() > 0
    assert np.abs(difference).argmax() == steps - 1
    assert difference.max() < largest
