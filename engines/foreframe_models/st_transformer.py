"""The spatio-temporal transformer over token grids: how likely is the next grid, given those before and the states.

A grid's tokens are predicted in parallel from earlier grids and the states up to and including that grid. Position k
of the sequence reads grid k, the states of grids k and k+1, and predicts grid k+1. Knows no tokenizer and no pixels.
Source: arXiv 2510.07092, compression track (24 blocks, additive states, causal in time).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from foreframe_models.state_branch import StateBranchConfig, augment, zeroed
from foreframe_models.wan import rotate

MLP_RATIO = 4
ROPE_THETA = 100.0
"""Times are few, so the slowest pair of a head need not turn slower than once in some hundred grids."""
LOGITS_AT_ONCE = 2**24
"""How many logits are in memory at a time: 64 MiB of them. A grid of 1024 tokens has 65 million."""


class Span(StrEnum):
    """What a token attends to: its grid and its own position's past in turn, or all positions' past at once."""

    FACTORISED = "factorised"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class StConfig:
    """One token model; the defaults are the paper's, its width and heads those of the nearest public model.

    factors: sizes whose product is the vocabulary, one or two; an id is `first + factors[0] * second`, and the second
    is predicted knowing the first, so probabilities stay exact. `state.is_mapped` adds per-position state offsets, as
    in the rollout model. `factor_hidden` is the width in which the second factor meets the first.
    """

    state: StateBranchConfig
    num_layers: int = 24
    num_heads: int = 8
    width: int = 512
    tokens: int = 1024
    factors: tuple[int, ...] = (64_000,)
    factor_hidden: int = 64
    span: Span = Span.FACTORISED

    @property
    def vocabulary(self) -> int:
        """How many ids there are."""
        return math.prod(self.factors)


class KeysValues(NamedTuple):
    """Keys and values of one temporal attention, each `b s t d`."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """Multi-head attention with normalised queries and keys; tokens `... n d`."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.norm_q = nn.RMSNorm(width // num_heads, eps=1e-6)
        self.norm_k = nn.RMSNorm(width // num_heads, eps=1e-6)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values `b n heads head_dim` of tokens `b n d`."""
        query, key, value = self.to_qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        precise = self.norm_q.weight.dtype  # under autocast the projections are of less
        return self.norm_q(query.to(precise)), self.norm_k(key.to(precise)), value

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend and project; `mask` is true where a query may look at a key."""
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


def rotary_table(positions: Tensor, head_dim: int) -> Tensor:
    """Return cosines and sines `2 ... 1 head_dim/2` for positions `...`."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions[..., None, None].float() * ROPE_THETA**-exponents
    return torch.stack([angles.cos(), angles.sin()])


def block_causal_mask(grids: int, tokens: int) -> Tensor:
    """Return `n n`, true where a token's grid is not earlier than the other's; n is grids times tokens."""
    grid = torch.arange(grids).repeat_interleave(tokens)
    return grid[:, None] >= grid[None, :]


class Block(nn.Module):
    """Attention within a grid, attention to the same position's past, feed-forward; a norm before each."""

    def __init__(self, config: StConfig) -> None:
        super().__init__()
        width = config.width
        self.span = config.span
        self.norm_space = nn.LayerNorm(width)
        self.space = Attention(width, config.num_heads)
        self.norm_time = nn.LayerNorm(width)
        self.time = Attention(width, config.num_heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, MLP_RATIO * width), nn.GELU(approximate="tanh"), nn.Linear(MLP_RATIO * width, width)
        )

    def forward(self, x: Tensor, rotary: Tensor, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        """Advance tokens `b t s d`; returns them and what their temporal attention adds to the past.

        `past` holds the grids before, and then t is 1; without it the sequence starts here. Every position may also
        look at an empty slot before the first grid: a zero key with a zero value.
        """
        x = x + self._within_grids(self.norm_space(x))
        mixed, added = self._over_time(self.norm_time(x), rotary, past)
        x = x + mixed
        return x + self.mlp(self.norm_mlp(x)), added

    def _within_grids(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        return self.space.mix(*self.space.project(flat)).reshape(x.shape)

    def _over_time(self, x: Tensor, rotary: Tensor, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        batch, grids, tokens = x.shape[:3]
        query, key, value = self.time.project(x.transpose(1, 2).flatten(0, 1))
        query, key = rotate(query, rotary), rotate(key, rotary)
        added = KeysValues(*(part.reshape(batch, tokens, grids, -1) for part in (key, value)))
        if past is not None:
            return self._over_past(query, past, added), added
        key, value = (functional.pad(part, (0, 0, 0, 0, 1, 0)) for part in (key, value))
        mask = torch.ones(grids, grids + 1, dtype=torch.bool, device=x.device).tril(1)
        mixed = self.time.mix(query, key, value, mask).reshape(batch, tokens, grids, -1)
        return mixed.transpose(1, 2), added

    def _over_past(self, query: Tensor, past: KeysValues, added: KeysValues) -> Tensor:
        """Attend from one grid to those before and itself, `b 1 s d`, without moving the past's memory about."""
        batch, tokens, _, width = added.keys.shape
        heads = (self.time.num_heads, width // self.time.num_heads)
        query = query.reshape(batch, 1, tokens, *heads)
        old, new = (
            KeysValues(*(part.transpose(1, 2).reshape(batch, -1, tokens, *heads) for part in parts))
            for parts in (past, added)
        )
        scores = torch.cat([(old.keys * query).sum(-1), (new.keys * query).sum(-1)], dim=1)
        weights = (scores * heads[1] ** -0.5).softmax(dim=1).unsqueeze(-1)
        mixed = (weights[:, :-1] * old.values).sum(1, keepdim=True) + weights[:, -1:] * new.values
        return self.time.to_out(mixed.flatten(-2))


class FullBlock(Block):
    """The same weights, but both attentions see every position of every grid up to the token's own."""

    def forward(self, x: Tensor, rotary: Tensor, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        """Advance tokens `b t s d` of a whole sequence; nothing is kept for later."""
        if past is not None:
            raise NotImplementedError("full space-time attention is a comparison and decodes without a cache")
        mask = block_causal_mask(*x.shape[1:3]).to(x.device)
        table = rotary.repeat_interleave(x.shape[2], dim=2)
        for norm, attention in ((self.norm_space, self.space), (self.norm_time, self.time)):
            query, key, value = attention.project(norm(x).flatten(1, 2))
            mixed = attention.mix(rotate(query, table), rotate(key, table), value, mask)
            x = x + mixed.reshape(x.shape)
        empty = x.new_zeros(0)
        return x + self.mlp(self.norm_mlp(x)), KeysValues(empty, empty)


class StateEmbedding(nn.Module):
    """States of a grid and of the next to an offset of the tokens: one for the grid, or one a position."""

    def __init__(self, config: StateBranchConfig, width: int, tokens: int) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Sequential(
            nn.Linear(2 * config.num_features, config.hidden), nn.SiLU(), nn.Linear(config.hidden, width)
        )
        self.mapped = None
        if config.is_mapped:
            self.mapped = nn.Sequential(
                nn.Linear(2 * config.num_features, config.map_hidden),
                nn.SiLU(),
                nn.Linear(config.map_hidden, config.map_hidden),
                nn.SiLU(),
                zeroed(nn.Linear(config.map_hidden, tokens * width)),
                nn.Unflatten(-1, (tokens, width)),
            )

    def forward(self, states: Tensor) -> Tensor:
        """Return `b t s d`, or `b t 1 d` without the map, for normalised states `b t 2 n`."""
        features = augment(states, self.config).flatten(-2)
        offset = self.shared(features).unsqueeze(-2)
        return offset if self.mapped is None else offset + self.mapped(features)


class Scores(NamedTuple):
    """Log-probabilities (nats) of the target ids, the likeliest ids, and their log-probabilities, each `... s`."""

    log_probability: Tensor
    greedy: Tensor
    greedy_log_probability: Tensor


def tokens_at_once(num_logits: int, logits_at_once: int = LOGITS_AT_ONCE) -> int:
    """Return how many tokens with so many logits each may be in memory together."""
    return max(1, logits_at_once // num_logits)


class Head(nn.Module):
    """Log-probabilities of ids in one or two factors; the second is predicted knowing the first."""

    def __init__(self, config: StConfig) -> None:
        super().__init__()
        self.factors, self.vocabulary = config.factors, config.vocabulary
        self.norm = nn.LayerNorm(config.width)
        self.first = zeroed(nn.Linear(config.width, config.factors[0]))
        if len(config.factors) > 1:
            self.meet = nn.Linear(config.width, config.factor_hidden)
            self.first_table = nn.Embedding(config.factors[0], config.factor_hidden)
            self.second = nn.Linear(config.factor_hidden, config.factors[1])

    def log_probability(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Return the log-probability (nats) `...` of ids `...` at hidden states `... d`."""
        hidden = self.norm(hidden)
        first, second = self._split(ids)
        found = _pick(self.first(hidden), first)
        if second is not None:
            found = found + _pick(self._second_logits(hidden, self.first_table(first)), second)
        return found

    def score(self, hidden: Tensor, target: Tensor) -> Scores:
        """Return log-probabilities (nats) of target ids `... s`, and the likeliest ids; `hidden` is `... s d`.

        Tokens are scored in slices, and the logits of the only factor once for both questions.
        """
        size = tokens_at_once(max(self.factors))
        parts = zip(torch.split(hidden, size, dim=-2), torch.split(target, size, dim=-1), strict=True)
        scores = [self._score(*part) for part in parts]
        return Scores(*(torch.cat(each, dim=-1) for each in zip(*scores, strict=True)))

    def _score(self, hidden: Tensor, target: Tensor) -> Scores:
        if len(self.factors) > 1:
            greedy = self.greedy(hidden)
            return Scores(self.log_probability(hidden, target), greedy, self.log_probability(hidden, greedy))
        logits = self.first(self.norm(hidden))
        greedy = logits.argmax(-1)
        return Scores(_pick(logits, target), greedy, _pick(logits, greedy))

    def greedy(self, hidden: Tensor) -> Tensor:
        """Return the likeliest ids `...`, factor by factor."""
        hidden = self.norm(hidden)
        first = self.first(hidden).argmax(-1)
        if len(self.factors) == 1:
            return first
        second = self._second_logits(hidden, self.first_table(first)).argmax(-1)
        return first + self.factors[0] * second

    def sample(self, hidden: Tensor, generator: torch.Generator) -> Tensor:
        """Draw ids `...`."""
        hidden = self.norm(hidden)
        first = _draw(self.first(hidden), generator)
        if len(self.factors) == 1:
            return first
        second = _draw(self._second_logits(hidden, self.first_table(first)), generator)
        return first + self.factors[0] * second

    def all_log_probabilities(self, hidden: Tensor) -> Tensor:
        """Return the log-probability of every id, `... v`, in the order of ids."""
        hidden = self.norm(hidden)
        first = self.first(hidden).log_softmax(-1)
        if len(self.factors) == 1:
            return first
        second = self._second_logits(hidden.unsqueeze(-2), self.first_table.weight).log_softmax(-1)
        return (first.unsqueeze(-1) + second).transpose(-1, -2).flatten(-2)

    def _split(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        if len(self.factors) == 1:
            return ids, None
        return ids % self.factors[0], ids // self.factors[0]

    def _second_logits(self, hidden: Tensor, known: Tensor) -> Tensor:
        return self.second(functional.gelu(self.meet(hidden) + known, approximate="tanh"))


class StTransformer(nn.Module):
    """Ids `b t s` and states to hidden states `b t s d`, from which the head reads the next grid's probabilities."""

    states_mean: Tensor
    states_std: Tensor

    def __init__(self, config: StConfig) -> None:
        super().__init__()
        if not 1 <= len(config.factors) <= 2:
            raise ValueError("a vocabulary has one or two factors")
        self.config = config
        self.embeddings = nn.ModuleList([_table(size, config.width) for size in config.factors])
        self.place = nn.Parameter(torch.zeros(config.tokens, config.width))
        self.state_embedding = StateEmbedding(config.state, config.width, config.tokens)
        kind = Block if config.span is Span.FACTORISED else FullBlock
        self.blocks = nn.ModuleList([kind(config) for _ in range(config.num_layers)])
        self.head = Head(config)
        self.register_buffer("states_mean", torch.zeros(config.state.num_states))
        self.register_buffer("states_std", torch.ones(config.state.num_states))

    def normalise(self, states: Tensor) -> Tensor:
        """Turn physical states `... n` into deviations from the training mean."""
        return (states - self.states_mean) / self.states_std

    def forward(self, ids: Tensor, states: Tensor) -> Tensor:
        """Return hidden states `b t s d` for ids `b t s` and normalised states `b t+1 n`: row t is the next grid's."""
        pairs = torch.stack([states[:, :-1], states[:, 1:]], dim=2)
        rotary = self._rotary(torch.arange(ids.shape[1], device=ids.device)[None])
        hidden, _ = self._run(ids, pairs, rotary, [None] * len(self.blocks))
        return hidden

    def advance(
        self, ids: Tensor, states: Tensor, position: Tensor, past: Sequence[KeysValues]
    ) -> tuple[Tensor, list[KeysValues]]:
        """Read one more grid: ids `b s`, normalised states `b 2 n` of it and the next, position `b`, a past a block.

        Returns hidden states `b s d` and what each block adds to its past, `b s 1 d`. An empty past is one zero slot.
        """
        rotary = self._rotary(position[:, None, None].expand(-1, ids.shape[1], -1).flatten(0, 1))
        hidden, added = self._run(ids[:, None], states[:, None], rotary, past)
        return hidden[:, 0], added

    def _rotary(self, positions: Tensor) -> Tensor:
        return rotary_table(positions, self.config.width // self.config.num_heads)

    def _run(
        self, ids: Tensor, states: Tensor, rotary: Tensor, past: Sequence[KeysValues | None]
    ) -> tuple[Tensor, list[KeysValues]]:
        x = self._embed(ids) + self.place + self.state_embedding(states)
        added = []
        for block, before in zip(self.blocks, past, strict=True):
            x, new = block(x, rotary, before)
            added.append(new)
        return x, added

    def _embed(self, ids: Tensor) -> Tensor:
        if len(self.embeddings) == 1:
            return self.embeddings[0](ids)
        size = self.config.factors[0]
        return self.embeddings[0](ids % size) + self.embeddings[1](ids // size)


def eve_tabletop_st_config() -> StConfig:
    """Return the configuration of the embedded model: grids of 8x8 tokens, 64,000 ids in factors of 512 and 125."""
    return StConfig(
        state=StateBranchConfig(hidden=128, is_mapped=True, map_hidden=192),
        num_layers=6,
        num_heads=5,
        width=160,
        tokens=64,
        factors=(512, 125),
    )


def cosmos_st_config() -> StConfig:
    """Return the paper's configuration: 24 blocks over grids of 32x32 Cosmos ids, states added, no factors."""
    return StConfig(state=StateBranchConfig())


def _table(size: int, width: int) -> nn.Embedding:
    table = nn.Embedding(size, width)
    nn.init.normal_(table.weight, std=width**-0.5)
    return table


def _pick(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the log-softmax of logits `... v` at ids `...`, in float32; the whole of it is never kept."""
    logits = logits.float()
    return logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.empty(logits.shape, device=generator.device).exponential_(generator=generator)
    return (logits - noise.log().to(logits.device)).argmax(-1)
