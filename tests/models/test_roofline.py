"""How much work a step is, and what a device can do: counted against torch's own counter, measured on this machine."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from foreframe_models.flow import FlowNetwork, Tables
from foreframe_models.rollout import RolloutConfig, RolloutModel
from foreframe_models.roofline import Ceilings, Shapes, Work, measure_ceilings, own_work, reference_work
from foreframe_models.savings import NO_SAVINGS, Savings
from foreframe_models.state_branch import StateBranchConfig
from foreframe_models.timing import time_in_turns
from foreframe_models.wan import WanConfig

CPU = torch.device("cpu")
CONFIG = RolloutConfig(
    transformer=WanConfig(
        num_layers=3,
        num_attention_heads=2,
        attention_head_dim=24,
        ffn_dim=96,
        freq_dim=32,
        text_dim=8,
        in_channels=4,
        out_channels=4,
    ),
    state=StateBranchConfig(hidden=16),
    latent_size=(8, 8),
    prompt_length=16,
    num_state_rows=21,
)
MEMBERS = 2


def count(savings: Savings) -> float:
    """Let torch count a forward; what does not grow with the clip is taken away by counting a second one."""
    small, large = (_count(replace(CONFIG, latent_size=size), savings) for size in ((8, 8), (16, 8)))
    return large - small


def _count(config: RolloutConfig, savings: Savings) -> float:
    torch.manual_seed(0)
    model = RolloutModel(config).eval()
    model.prompt[:, 0].normal_()
    network = FlowNetwork(model, savings)
    latents = torch.zeros(MEMBERS, config.num_latents, 4, *config.latent_size)
    times = torch.zeros(MEMBERS, config.num_latents)
    with torch.inference_mode():
        tables = network.tables(torch.zeros(1, 21, 25))
        shared = Tables(tables.modulation.expand(MEMBERS, -1, -1, -1))
        # The counter knows the plain kernel of attention alone, on a CPU.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            network(latents, times, shared)
    return counter.get_total_flops()


@pytest.mark.parametrize(("work", "savings"), [(reference_work, NO_SAVINGS), (own_work, Savings())])
def test_work_is_what_torch_counts(work, savings) -> None:
    small, large = (work(replace(CONFIG, latent_size=size), MEMBERS).total for size in ((8, 8), (16, 8)))
    assert large - small == pytest.approx(count(savings), rel=0.01)


def test_the_5bs_work_is_what_its_sizes_say() -> None:
    config = RolloutConfig(context_latents=5, future_latents=15)
    assert reference_work(config, 1).total == pytest.approx(55.7e12, rel=0.01)
    assert reference_work(config, 20).total == 20 * reference_work(config, 1).total
    assert own_work(config, 1).total / reference_work(config, 1).total == pytest.approx(0.914, abs=0.005)


def test_a_floor_adds_what_both_units_need() -> None:
    ceilings = Ceilings(products=2e12, attention=1e12, convolutions=1.0, copies=1.0, measured={})
    assert Work(4e9, 3e9).floor_ms(ceilings) == pytest.approx(5.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ceilings_are_the_best_that_was_measured(dtype: torch.dtype) -> None:
    shapes = Shapes(CONFIG.transformer, (24, 32), square=64, copy_bytes=2**16, picture=4)
    ceilings = measure_ceilings(CPU, dtype, shapes)
    products = [value for name, value in ceilings.measured.items() if name.startswith("product")]
    assert len(products) == 1 + 3 * 2
    assert ceilings.products == max(products)
    assert all(math.isfinite(value) and value > 0 for value in ceilings.measured.values())


def test_ways_take_turns_and_the_first_rounds_do_not_count() -> None:
    calls: list[str] = []
    ways = {name: lambda name=name: calls.append(name) for name in "ab"}
    timings = time_in_turns(ways, CPU, rounds=2, warm_ups=1)
    assert calls == list("ababab")
    assert all(0 <= each.least <= each.median <= each.most for each in timings.values())
