"""The rollout model as it is sampled: its network with every saving that is switched on, and the solvers' steps.

The network's folded prompts hold the weights as they are when it is built: build it anew after a merge of adapters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foreframe_models.folding import HalvedReading, fold_prompt
from foreframe_models.rollout import RolloutModel
from foreframe_models.savings import ALL_SAVINGS, Savings
from foreframe_models.wan import Conditions, Prompt, TimeTerms, rotary_table


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """What all steps share: modulation `b f 6 d`, that of the branch without states, token offsets `b f s d`."""

    modulation: Tensor
    free_modulation: Tensor | None = None
    token_bias: Tensor | None = None


class FlowNetwork(nn.Module):
    """Answers for the future latents of a rollout model, with or without guidance.

    Cast or move the model before it is given here: tables that must stay float32 are made of it.
    """

    rotary: Tensor

    def __init__(self, rollout: RolloutModel, savings: Savings = ALL_SAVINGS) -> None:
        super().__init__()
        self.rollout, self.savings = rollout, savings
        wan = rollout.config.transformer
        self.register_buffer("rotary", rotary_table(wan, rollout.config.token_grid, rollout.prompt.device))
        self.is_guidable = rollout.is_guidable or not savings.skips_equal_branch
        self.folded: nn.ModuleList | None = None
        self.halved: nn.ModuleList | None = None
        if savings.folds_prompt:
            self.folded = fold_prompt(rollout.transformer, rollout.prompt)
            self.halved = self._fold_both(self.folded)

    def tables(self, states: Tensor) -> Tables:
        """Compute what all steps share from physical states `b t n`."""
        normalised = self.rollout.normalise(states)
        modulation, token_bias = self.rollout.condition(normalised)
        return Tables(modulation, self._free_modulation(normalised, modulation), token_bias)

    def embed_times(self, time: Tensor) -> TimeTerms:
        """Embed times `b t` in 0..1, one a latent frame."""
        return self.rollout.transformer.condition_embedder.embed_time(self.rollout.frame_timesteps(time))

    def forward(
        self,
        latents: Tensor,
        time: Tensor,
        tables: Tables,
        guidance: Tensor | None = None,
        time_terms: TimeTerms | None = None,
    ) -> Tensor:
        """Answer for the future of latents `b n c y x` at times `b n`: `b f c y x`, as `RolloutModel.target` means it.

        `guidance` `b` moves each row away from the other branch's answer: 1 is none, and more is further.
        """
        terms = self.embed_times(time) if time_terms is None else time_terms
        if guidance is None:
            return self._answer(latents, terms, tables.modulation, tables.token_bias, self._prompts())
        both = self._answer_both(latents, terms, tables)
        told, free = both[: latents.shape[0]], both[latents.shape[0] :]
        return free + guidance[:, None, None, None, None] * (told - free)

    def _answer_both(self, latents: Tensor, terms: TimeTerms, tables: Tables) -> Tensor:
        count = latents.shape[0]  # an export makes len() a constant
        free = tables.modulation if tables.free_modulation is None else tables.free_modulation
        modulation = torch.cat([table.expand(count, -1, -1, -1) for table in (tables.modulation, free)])
        terms = TimeTerms(_twice(terms.head, count), _twice(terms.blocks, count))
        bias = None if tables.token_bias is None else _twice(tables.token_bias, count)
        return self._answer(_twice(latents, count), terms, modulation, bias, self._both_prompts(count))

    def _answer(
        self, latents: Tensor, terms: TimeTerms, modulation: Tensor, bias: Tensor | None, prompts: Sequence[Prompt]
    ) -> Tensor:
        config, tables = self.rollout.config, self.rollout.state_branch.per_block(modulation)
        depth = config.transformer.patch_size[0]
        first = config.context_latents // depth if self.savings.drops_context_queries else 0
        answer = self.rollout.answer(latents, Conditions(terms, prompts, tables, bias, self.rotary), first=first)
        return answer[:, config.context_latents - first * depth :]

    def _free_modulation(self, states: Tensor, modulation: Tensor) -> Tensor | None:
        if not self.is_guidable:
            return None
        branch = self.rollout.state_branch
        if branch.no_states_token is None:
            return modulation
        return branch(states, torch.ones(len(states), dtype=torch.bool, device=states.device))

    def _prompts(self) -> Sequence[Prompt]:
        if self.folded is not None:
            return list(self.folded)
        return [self._embed_text(self.rollout.prompt)] * self.rollout.config.transformer.num_layers

    def _both_prompts(self, count: int) -> Sequence[Prompt]:
        if self.halved is not None:
            return list(self.halved)
        both = (self.rollout.prompt, self.rollout.other_prompt)
        source = torch.cat([self._embed_text(prompt).expand(count, -1, -1) for prompt in both])
        return [source] * self.rollout.config.transformer.num_layers

    def _embed_text(self, prompt: Tensor) -> Tensor:
        return self.rollout.transformer.condition_embedder.embed_text(prompt)

    def _fold_both(self, folded: nn.ModuleList) -> nn.ModuleList:
        """Fold the prompt of either branch; where they read the same text, one reading serves both."""
        if torch.equal(self.rollout.prompt, self.rollout.other_prompt):
            return folded
        other = fold_prompt(self.rollout.transformer, self.rollout.other_prompt)
        return nn.ModuleList([HalvedReading(own, theirs) for own, theirs in zip(folded, other, strict=True)])


def euler_move(rollout: RolloutModel, answer: Tensor, latents: Tensor, time: Tensor, next_time: Tensor) -> Tensor:
    """Move the future of latents `b n c y x` along the velocity, from times `b n` to `next_time`."""
    context = rollout.config.context_latents
    future, now = latents[:, context:], time[:, context:]
    span = (next_time[:, context:] - now)[..., None, None, None]
    moved = future + span * rollout.as_velocity(answer, future, now)
    return torch.cat([latents[:, :context], moved], dim=1)


def unipc_move(rollout: RolloutModel, answer: Tensor, slots: Tensor, time: Tensor, coefficients: Tensor) -> Tensor:
    """Correct and move the future of the slots `b 4 n c y x`; see `foreframe_engines.solvers.coefficients`, `b 2 5`.

    The answer is about slot 0 at times `b n`. In every slot the context stays as it is.
    """
    context = rollout.config.context_latents
    future, last, older, oldest = slots[:, :, context:].unbind(1)
    clean = rollout.as_clean(answer, future, time[:, context:])
    correct, predict = coefficients[..., None, None, None, None].unbind(1)
    corrected = _weighted(correct, (future, last, older, oldest, clean))
    moved = _weighted(predict, (corrected, clean, older))
    state = torch.stack([moved, corrected, clean, older], dim=1)
    return torch.cat([slots[:, :, :context], state], dim=2)


def _weighted(weights: Tensor, parts: Sequence[Tensor]) -> Tensor:
    first, *others = (weights[:, index] * part for index, part in enumerate(parts))
    return sum(others, first)


def _twice(rows: Tensor, count: int) -> Tensor:
    """Give each of `count` clips its row, once for either branch; `1 ...` is shared by all."""
    whole = rows.expand(count, *rows.shape[1:])
    return torch.cat([whole, whole])
