"""The four graphs of a likelihood model: tokenize, detokenize, frame_step and top_k. Knows no files.

The head is fused: a session gives back a few numbers a token, never its 64,000 logits.
"""

from typing import cast

import torch
from torch import Tensor, nn

from foreframe_engines.types import TokenSpec
from foreframe_models.graph import Graph
from foreframe_models.st_transformer import KeysValues, StTransformer, tokens_at_once
from foreframe_models.tokenizer import FrameTokenizer


class Tokenize(nn.Module):
    """Frames uint8 `b t h w 3` to ids `b t s`: each frame is a window of its own."""

    def __init__(self, tokenizer: FrameTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, frames: Tensor) -> Tensor:
        """Quantise each frame by itself."""
        pictures = frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        return self.tokenizer.tokenize(pictures).reshape(*frames.shape[:2], -1)


class Detokenize(nn.Module):
    """Ids `b t s` to frames uint8 `b t h w 3`, rounded and clipped."""

    def __init__(self, tokenizer: FrameTokenizer, grid: tuple[int, int]) -> None:
        super().__init__()
        self.tokenizer, self.grid = tokenizer, grid

    def forward(self, ids: Tensor) -> Tensor:
        """Decode each grid by itself."""
        pictures = self.tokenizer.detokenize(ids.flatten(0, 1), *self.grid)
        grey = ((pictures + 1.0) * 127.5).round().clamp(0.0, 255.0).to(torch.uint8)
        return grey.permute(0, 2, 3, 1).reshape(*ids.shape[:2], *grey.shape[2:], 3)


class FrameStep(nn.Module):
    """Read one grid: what follows, how likely a given next grid is, and what to remember."""

    def __init__(self, model: StTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, ids: Tensor, states: Tensor, target: Tensor, position: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, ...]:
        """Score `target` `b s` after ids `b s`, with physical states `b 2 n`; keys and values are `l b p s d`."""
        past = [KeysValues(key.transpose(1, 2), value.transpose(1, 2)) for key, value in zip(keys, values, strict=True)]
        hidden, added = self.model.advance(ids, self.model.normalise(states), position, past)
        return (
            *self.model.head.score(hidden, target),
            hidden,
            torch.stack([new.keys.transpose(1, 2) for new in added]),
            torch.stack([new.values.transpose(1, 2) for new in added]),
        )


class TopK(nn.Module):
    """How much probability the k likeliest ids of each place hold, and whether the target is among them."""

    def __init__(self, model: StTransformer) -> None:
        super().__init__()
        self.head = model.head

    def forward(self, hidden: Tensor, target: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return log masses and memberships `b s` for hidden states `b s d`; `k` has one element."""
        count = cast("int", k.item())
        for is_possible in (count >= 1, count <= self.head.vocabulary):
            torch._check(is_possible)  # type: ignore[no-untyped-call]  # noqa: SLF001 - how the exporter learns bounds
        size = tokens_at_once(self.head.vocabulary)
        parts = zip(torch.split(hidden, size, dim=1), torch.split(target, size, dim=1), strict=True)
        masses, members = zip(*(self._ask(*part, count) for part in parts), strict=True)
        return torch.cat(masses, dim=1), torch.cat(members, dim=1)

    def _ask(self, hidden: Tensor, target: Tensor, count: int) -> tuple[Tensor, Tensor]:
        every = self.head.all_log_probabilities(hidden)
        top = torch.topk(every, count, dim=-1).values
        found = every.gather(-1, target.unsqueeze(-1)).squeeze(-1)
        return top.logsumexp(-1), found >= top.amin(-1)


def token_graphs_of(tokenizer: FrameTokenizer, model: StTransformer, tokens: TokenSpec, size: int) -> dict[str, Graph]:
    """Return the four graphs with example inputs; `size` is the frames' height and width."""
    frames = torch.zeros(2, tokens.window_frames, size, size, 3, dtype=torch.uint8)
    windows = torch.zeros(2, tokens.window_grids, model.config.tokens, dtype=torch.int64)
    return {
        "tokenize": Graph(Tokenize(tokenizer), {"frames": frames}, ("ids",), {"frames": {0: "b"}}),
        "detokenize": Graph(Detokenize(tokenizer, tokens.grid), {"ids": windows}, ("frames",), {"ids": {0: "b"}}),
        **likelihood_graphs_of(model),
    }


def likelihood_graphs_of(model: StTransformer) -> dict[str, Graph]:
    """Return `frame_step` and `top_k` with example inputs."""
    config = model.config
    ids = torch.zeros(2, config.tokens, dtype=torch.int64)
    past = torch.zeros(config.num_layers, 2, 3, config.tokens, config.width)
    step_inputs = {
        "ids": ids,
        "states": model.states_mean.expand(2, 2, -1).clone(),
        "target": ids + 1,
        "position": torch.tensor([2, 2]),
        "keys": past,
        "values": past + 0.5,
    }
    step_outputs = ("log_probability", "greedy", "greedy_log_probability", "hidden", "keys_next", "values_next")
    step_axes = {name: {0: "b"} for name in ("ids", "states", "target", "position")}
    step_axes |= {name: {1: "b", 2: "p"} for name in ("keys", "values")}
    top_inputs = {"hidden": torch.zeros(2, config.tokens, config.width), "target": ids, "k": torch.tensor([2])}
    return {
        "frame_step": Graph(FrameStep(model), step_inputs, step_outputs, step_axes),
        "top_k": Graph(
            TopK(model), top_inputs, ("log_mass", "is_in_top"), {"hidden": {0: "b"}, "target": {0: "b"}, "k": {}}
        ),
    }
