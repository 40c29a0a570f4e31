"""Held-out clips as grids of ids, and what a likelihood engine says of them. Knows no statistics."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Int64

from foreframe_engines import DatasetError
from foreframe_engines.engine import LikelihoodEngine
from foreframe_engines.episodes import Clip
from foreframe_engines.reading import grid_states, read_history
from foreframe_engines.types import TokenContext, TokenSpec


@dataclass(frozen=True, slots=True)
class Split:
    """How many grids of a clip are seen, and how many after them are scored."""

    context_grids: int = 4
    target_grids: int = 8

    def num_frames(self, tokens: TokenSpec) -> int:
        """Return how long a clip is. Raises DatasetError for parts of windows or more grids than the model reads."""
        if self.context_grids % tokens.window_grids or self.target_grids % tokens.window_grids:
            raise DatasetError(
                f"the model's windows have {tokens.window_grids} grids; context and target need whole ones"
            )
        if self.context_grids + self.target_grids > tokens.max_grids:
            raise DatasetError(f"the model reads at most {tokens.max_grids} grids, context and target together")
        return self.num_windows(tokens) * tokens.window_frames

    def num_windows(self, tokens: TokenSpec) -> int:
        """Return how many windows context and target have together."""
        return (self.context_grids + self.target_grids) // tokens.window_grids

    def target_frames(self, tokens: TokenSpec) -> int:
        """Return how many frames the target stands for."""
        return self.target_grids // tokens.window_grids * tokens.window_frames


@dataclass(frozen=True, slots=True, eq=False)
class TokenClip:
    """One clip as a likelihood model sees it. states: of each grid, physical units."""

    seed: int
    split: Split
    ids: Int64[np.ndarray, "g s"]
    states: Float32[np.ndarray, "g n"]

    @classmethod
    def of(cls, engine: LikelihoodEngine, clip: Clip, split: Split) -> "TokenClip":
        """Tokenise a clip of whole windows."""
        return cls(clip.seed, split, engine.tokenize(clip.frames), grid_states(clip.states, engine.tokens))

    def with_states(self, states: Float32[np.ndarray, "g n"]) -> "TokenClip":
        """Return the clip as if the robot had moved otherwise."""
        return replace(self, states=states)

    def read(self, engine: LikelihoodEngine) -> TokenContext:
        """Read what is seen."""
        seen = self.split.context_grids
        return read_history(engine, self.ids[:seen], self.states[:seen])

    @property
    def target(self) -> Int64[np.ndarray, "g s"]:
        """The ids that are scored."""
        return self.ids[self.split.context_grids :]

    @property
    def previous(self) -> Int64[np.ndarray, "g s"]:
        """The ids before those, position by position."""
        return self.ids[self.split.context_grids - 1 : -1]

    @property
    def target_states(self) -> Float32[np.ndarray, "g n"]:
        """The states of the grids that are scored."""
        return self.states[self.split.context_grids :]
