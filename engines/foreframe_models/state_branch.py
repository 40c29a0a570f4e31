"""How robot states reach the transformer: AdaLN-Zero per latent frame, and for small models a spatial map.

Source of the branch: arXiv 2510.07092, section on state conditioning; layer names follow the authors' code.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foreframe_models.wan import NUM_TERMS


@dataclass(frozen=True, slots=True)
class StateBranchConfig:
    """Sizes of the branch. `strides` are the temporal convolutions' strides from frames to latent frames.

    `is_mapped` adds the state map: per-position offsets of the tokens, which the paper's model does not have.
    """

    num_states: int = 25
    raw_states: tuple[int, ...] = (21, 22)
    """Dims that get no sine and cosine: the hands' closures."""
    hidden: int = 256
    strides: tuple[int, ...] = (2, 2)
    is_mapped: bool = False
    map_hidden: int = 512

    @property
    def num_features(self) -> int:
        """Width of a state row after the augmentation: 71 for the 25 states of the challenge."""
        return 3 * (self.num_states - len(self.raw_states)) + len(self.raw_states)


def augment(states: Tensor, config: StateBranchConfig) -> Tensor:
    """Append sines and cosines: all continuous values, their sines, their cosines, then the raw dims."""
    continuous = [index for index in range(config.num_states) if index not in config.raw_states]
    values = states[..., continuous]
    return torch.cat([values, values.sin(), values.cos(), states[..., list(config.raw_states)]], dim=-1)


class StateBranch(nn.Module):
    """States `b t n` to modulation terms `b f 6 d`, one row a latent frame."""

    def __init__(self, config: StateBranchConfig, width: int, num_layers: int) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden
        self.robot_state_compression = nn.Sequential(
            nn.Linear(config.num_features, hidden), nn.SiLU(), nn.Linear(hidden, hidden)
        )
        self.robot_temporal_compression = nn.Sequential(
            *(layer for stride in config.strides for layer in _temporal_stage(hidden, stride))
        )
        self.r_embedding = nn.Sequential(nn.Linear(hidden, width), nn.SiLU(), nn.Linear(width, width))
        self.r_projection = nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, NUM_TERMS * width)))
        self.robot_modulation = nn.ParameterList(
            [nn.Parameter(torch.zeros(1, NUM_TERMS, width)) for _ in range(num_layers)]
        )

    def forward(self, states: Tensor) -> Tensor:
        """Return modulation `b f 6 d` for normalised states `b t n`; f is t after the strides, rounded up each."""
        hidden = self.robot_state_compression(augment(states, self.config))
        hidden = self.robot_temporal_compression(hidden.transpose(1, 2)).transpose(1, 2)
        return self.r_projection(self.r_embedding(hidden)).unflatten(-1, (NUM_TERMS, -1))

    def per_block(self, modulation: Tensor) -> list[Tensor]:
        """Add each block's own zero-initialised table to the shared terms."""
        return [modulation + table for table in self.robot_modulation]


class StateMap(nn.Module):
    """States to an offset for every token: an addition that lets a small model place limbs in the picture.

    A latent frame's row sees the last context frame's states, its own frames' and one neighbour on either side.
    """

    def __init__(self, config: StateBranchConfig, width: int, *, context: int, frames: int, positions: int) -> None:
        super().__init__()
        self.config, self.context, self.frames, self.positions = config, context, frames, positions
        rows = frames + 3
        self.net = nn.Sequential(
            nn.Linear(rows * config.num_features, config.map_hidden),
            nn.SiLU(),
            nn.Linear(config.map_hidden, config.map_hidden),
            nn.SiLU(),
            zeroed(nn.Linear(config.map_hidden, positions * width)),
        )

    def forward(self, states: Tensor) -> Tensor:
        """Return token offsets `b f s d` for normalised states `b t n`."""
        features = augment(states, self.config)
        last = states.shape[1] - 1
        windows = []
        for start in range(0, states.shape[1], self.frames):
            around = [min(max(row, 0), last) for row in range(start - 1, start + self.frames + 1)]
            windows.append(features[:, [self.context - 1, *around]].flatten(1))
        return self.net(torch.stack(windows, dim=1)).unflatten(-1, (self.positions, -1))


def _temporal_stage(hidden: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv1d(hidden, hidden, 3, stride, padding=1), nn.SiLU(), nn.GroupNorm(8, hidden)


def zeroed(layer: nn.Linear) -> nn.Linear:
    """Start a linear layer at zero, so that what it feeds is at first not there."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
