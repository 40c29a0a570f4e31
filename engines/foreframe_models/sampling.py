"""Whole draws of future latents on torch, a batch of members at once. Knows no frames, no requests, no files."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foreframe_engines.solvers import Solver, coefficients, num_slots
from foreframe_models.flow import FlowNetwork, Tables, euler_move, unipc_move
from foreframe_models.wan import TimeTerms


@dataclass(frozen=True, slots=True)
class Plan:
    """How to draw: `times` fall from 1.0 to 0.0; guidance 1 is none, and more moves further from the other branch."""

    times: Sequence[float]
    solver: Solver = Solver.UNIPC
    guidance: float = 1.0


class TimeTables:
    """The modulation of every time of a schedule, computed once; only distinct times count, not tokens."""

    def __init__(self, network: FlowNetwork, times: Sequence[float]) -> None:
        config = network.rollout.config
        depth = config.transformer.patch_size[0]
        frames, context = config.num_latents // depth, config.context_latents // depth
        self._is_future = (torch.arange(frames) >= context).long().to(network.rotary.device)
        instants = torch.tensor([0.0, *times[:-1]], device=network.rotary.device)
        terms = network.embed_times(instants[:, None])
        self._terms = TimeTerms(terms.head[:, 0], terms.blocks[:, 0])

    def at(self, index: int) -> TimeTerms:
        """Return the terms `1 f ...` of step `index`, where the context is at time 0."""
        rows = self._is_future * (index + 1)
        return TimeTerms(self._terms.head[rows][None], self._terms.blocks[rows][None])


@torch.no_grad()
def sample_latents(network: FlowNetwork, context: Tensor, noise: Tensor, states: Tensor, plan: Plan) -> Tensor:
    """Draw future latents `b f c y x` from noise of that shape.

    Clean context latents `t c y x` and physical states `n d` are shared by all rows, and so is what is made of them.
    """
    return sample_with_tables(network, context, noise, network.tables(states[None]), plan)


@torch.no_grad()
def sample_with_tables(network: FlowNetwork, context: Tensor, noise: Tensor, tables: Tables, plan: Plan) -> Tensor:
    """Draw as `sample_latents` does; the tables `1 ...` are shared by all rows, or `b ...` hold one a row."""
    latents = torch.cat([context.expand(len(noise), -1, -1, -1, -1), noise], dim=1)
    state = latents[:, None].repeat(1, num_slots(plan.solver), 1, 1, 1, 1)
    guidance = None
    if plan.guidance != 1.0 and network.is_guidable:
        guidance = torch.full((len(noise),), plan.guidance, device=noise.device)
    kept = TimeTables(network, plan.times) if network.savings.keeps_time_tables else None
    for index, time in enumerate(plan.times[:-1]):
        row = _frame_times(network, latents, time)
        answer = network(state[:, 0], row, tables, guidance, None if kept is None else kept.at(index))
        state = _move(network, answer, state, row, plan, index)
    return state[:, 0, len(context) :]


def _move(network: FlowNetwork, answer: Tensor, state: Tensor, row: Tensor, plan: Plan, index: int) -> Tensor:
    if plan.solver is Solver.EULER:
        next_row = _frame_times(network, state[:, 0], plan.times[index + 1])
        return euler_move(network.rollout, answer, state[:, 0], row, next_row)[:, None]
    weights = torch.from_numpy(coefficients(plan.times, index)).to(state)
    return unipc_move(network.rollout, answer, state, row, weights.expand(len(state), -1, -1))


def _frame_times(network: FlowNetwork, latents: Tensor, time: float) -> Tensor:
    """Give every latent frame of `b n c y x` its time, the context 0."""
    row = torch.full(latents.shape[:2], time, device=latents.device)
    row[:, : network.rollout.config.context_latents] = 0.0
    return row
