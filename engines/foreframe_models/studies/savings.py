"""What each exact saving saves: whole draws with and without it, by turns in one run, and how far their ends differ."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from foreframe_engines.schedule import get_schedule
from foreframe_engines.solvers import Solver
from foreframe_models.flow import FlowNetwork
from foreframe_models.rollout import MAX_TIMESTEP, RolloutConfig, RolloutModel
from foreframe_models.sampling import Plan, sample_latents
from foreframe_models.savings import NO_SAVINGS, Savings
from foreframe_models.state_branch import StateBranchConfig
from foreframe_models.wan import WanConfig

GUIDANCE = 3.0
"""So that there is another branch to spare, although it says the same."""


@dataclass(frozen=True, slots=True)
class Saved:
    """One saving: median seconds without and with it, the median ratio of the turns, largest difference of results."""

    name: str
    plain_s: float
    saved_s: float
    ratio: float
    max_difference: float


@dataclass(frozen=True, slots=True)
class Workload:
    """What is drawn: so many members of one clip, in so many steps, so many times."""

    members: int = 1
    steps: int = 4
    rounds: int = 5


def twenty_million_config() -> RolloutConfig:
    """Return a model of the paper's kind with 20 million parameters, 512 tokens and an empty prompt of 512 rows."""
    return RolloutConfig(
        transformer=WanConfig(
            num_layers=8,
            num_attention_heads=6,
            attention_head_dim=64,
            ffn_dim=1536,
            text_dim=64,
            in_channels=16,
            out_channels=16,
        ),
        state=StateBranchConfig(hidden=64),
        future_latents=6,
        latent_size=(16, 16),
        num_state_rows=29,
    )


def random_model(config: RolloutConfig, seed: int = 0) -> RolloutModel:
    """Return a model with random weights everywhere, and a prompt of one row and padding."""
    torch.manual_seed(seed)
    model = RolloutModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        model.prompt[:, 0].normal_()
    return model


def measure_savings(model: RolloutModel, workload: Workload) -> Iterator[Saved]:
    """Measure each switch by itself against none of them, then all together."""
    context, noise, states = _draw_clip(model.config, workload.members)
    plan = Plan(get_schedule(workload.steps, 5.0), Solver.UNIPC, GUIDANCE)

    def draw(savings: Savings) -> Callable[[], Tensor]:
        network = FlowNetwork(model, savings)
        return lambda: sample_latents(network, context, noise, states, plan)

    plain = draw(NO_SAVINGS)
    for field in fields(Savings):
        yield compare(field.name, plain, draw(replace(NO_SAVINGS, **{field.name: True})), workload.rounds)
    yield compare("all", plain, draw(Savings()), workload.rounds)


def measure_shared_conditions(model: RolloutModel, workload: Workload) -> Saved:
    """Measure states that are conditioned on once for all members against once for each."""
    _, _, states = _draw_clip(model.config, workload.members)
    network = FlowNetwork(model)

    @torch.no_grad()
    def condition(rows: Tensor) -> Tensor:
        return network.tables(rows).modulation.expand(workload.members, -1, -1, -1)

    each = states.expand(workload.members, -1, -1)
    return compare("one condition", lambda: condition(each), lambda: condition(states[None]), workload.rounds)


def measure_time_terms(model: RolloutModel, workload: Workload) -> Iterator[Saved]:
    """Measure a schedule's timestep modulation by token, as reference implementations do, by frame, and by time."""
    config, embedder = model.config, model.transformer.condition_embedder
    frames, rows, columns = config.token_grid
    times = torch.tensor(get_schedule(workload.steps, 5.0)[:-1]) * MAX_TIMESTEP

    @torch.no_grad()
    def per_step(repeats: int) -> Tensor:
        steps = [embedder.embed_time(t.expand(workload.members, frames * repeats)).blocks for t in times]
        return torch.stack([step[:, ::repeats] for step in steps])

    @torch.no_grad()
    def once() -> Tensor:
        return embedder.embed_time(times).blocks[:, None, None].expand(-1, workload.members, frames, -1, -1)

    yield compare("time terms by frame", lambda: per_step(rows * columns), lambda: per_step(1), workload.rounds)
    yield compare("time terms by schedule", lambda: per_step(rows * columns), once, workload.rounds)


def compare(name: str, plain: Callable[[], Tensor], saved: Callable[[], Tensor], rounds: int) -> Saved:
    """Run two ways by turns; the first turn of each warms up and is compared, not timed."""
    difference = (plain() - saved()).abs().max().item()
    turns = [(_seconds(plain), _seconds(saved)) for _ in range(rounds)]
    slow, fast = zip(*turns, strict=True)
    return Saved(name, statistics.median(slow), statistics.median(fast), _median_ratio(turns), difference)


def _median_ratio(turns: Sequence[tuple[float, float]]) -> float:
    return statistics.median(slow / fast for slow, fast in turns)


def _seconds(run: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _draw_clip(config: RolloutConfig, members: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw context latents, noise and states."""
    generator = torch.Generator().manual_seed(0)
    size = (config.transformer.out_channels, *config.latent_size)
    context = torch.randn(config.context_latents, *size, generator=generator)
    noise = torch.randn(members, config.future_latents, *size, generator=generator)
    return context, noise, torch.randn(config.state_rows, config.state.num_states, generator=generator)
