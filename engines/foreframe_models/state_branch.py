"""How robot states reach the transformer: AdaLN-Zero per latent frame, and for small models a spatial map.

Source of the branch: arXiv 2510.07092, section on state conditioning; layer names follow the authors' code.
"""

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from foreframe_models.wan import NUM_TERMS

NO_STATES_STD = 0.02


class Combination(StrEnum):
    """How a block's own table meets the states' shared terms. A table starts at zero, so either starts as nothing."""

    ADDITIVE = "additive"
    MULTIPLICATIVE = "multiplicative"


@dataclass(frozen=True, slots=True)
class StateBranchConfig:
    """Sizes of the branch, by default the paper's for 21 rows of states at 7.5 a second.

    kernel, strides, paddings: of the temporal convolutions from rows to latent frames; None pads half a kernel.
    has_no_states_token: there is a learned token for absent states, which guidance by states needs.
    is_mapped: adds the state map, per-position offsets of the tokens, which the paper's model does not have.
    """

    num_states: int = 25
    raw_states: tuple[int, ...] = (21, 22)
    """Dims that get no sine and cosine: the hands' closures."""
    hidden: int = 256
    strides: tuple[int, ...] = (2, 2)
    is_mapped: bool = False
    map_hidden: int = 512
    kernel: int = 3
    paddings: tuple[int, ...] | None = None
    combination: Combination = Combination.ADDITIVE
    has_no_states_token: bool = False

    @property
    def num_features(self) -> int:
        """Width of a state row after the augmentation: 71 for the 25 states of the challenge."""
        return 3 * (self.num_states - len(self.raw_states)) + len(self.raw_states)

    @property
    def stages(self) -> tuple[tuple[int, int], ...]:
        """Stride and padding of every temporal convolution."""
        paddings = (self.kernel // 2,) * len(self.strides) if self.paddings is None else self.paddings
        return tuple(zip(self.strides, paddings, strict=True))

    def num_latents(self, num_rows: int) -> int:
        """Count the latent frames that rows of states become."""
        for stride, padding in self.stages:
            num_rows = (num_rows + 2 * padding - self.kernel) // stride + 1
        return num_rows


def full_rate_states() -> StateBranchConfig:
    """Return the paper's branch for all 77 rows of states at 30 a second: 77, 20, then 6 latent frames."""
    return StateBranchConfig(kernel=5, strides=(4, 3), paddings=(2, 1))


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
            *(layer for stage in config.stages for layer in _temporal_stage(hidden, config.kernel, *stage))
        )
        self.r_embedding = nn.Sequential(nn.Linear(hidden, width), nn.SiLU(), nn.Linear(width, width))
        projection = nn.Linear(width, NUM_TERMS * width)
        self.r_projection = nn.Sequential(nn.SiLU(), projection)
        self.robot_modulation = nn.ParameterList(
            [nn.Parameter(torch.zeros(1, NUM_TERMS, width)) for _ in range(num_layers)]
        )
        token = torch.randn(1, 1, hidden) * NO_STATES_STD if config.has_no_states_token else None
        self.no_states_token = None if token is None else nn.Parameter(token)
        # Tables alone make a product nothing; zero terms besides would let neither factor ever learn.
        if config.combination is Combination.ADDITIVE:
            zeroed(projection)

    def forward(self, states: Tensor, is_absent: Tensor | None = None) -> Tensor:
        """Return modulation `b f 6 d` for states `b t n`, as the model was trained on them: normalised or raw.

        `is_absent` `b` replaces every row of a clip by the token for absent states; ValueError where there is none.
        """
        hidden = self.robot_state_compression(augment(states, self.config).to(self.robot_modulation[0].dtype))
        if is_absent is not None:
            hidden = torch.where(is_absent[:, None, None], self._absent_row(), hidden)
        hidden = self.robot_temporal_compression(hidden.transpose(1, 2)).transpose(1, 2)
        return self.r_projection(self.r_embedding(hidden)).unflatten(-1, (NUM_TERMS, -1))

    def per_block(self, modulation: Tensor) -> list[Tensor]:
        """Combine the shared terms `b f 6 d` with each block's own zero-initialised table."""
        if self.config.combination is Combination.MULTIPLICATIVE:
            return [modulation * table for table in self.robot_modulation]
        return [modulation + table for table in self.robot_modulation]

    def _absent_row(self) -> Tensor:
        # The authors published the token's shape and start, not its place: here it stands for a state row.
        if self.no_states_token is None:
            raise ValueError("this state branch has no token for absent states (has_no_states_token)")
        return self.no_states_token


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


def _temporal_stage(hidden: int, kernel: int, stride: int, padding: int) -> tuple[nn.Module, ...]:
    return nn.Conv1d(hidden, hidden, kernel, stride, padding), nn.SiLU(), nn.GroupNorm(8, hidden)


def zeroed(layer: nn.Linear) -> nn.Linear:
    """Start a linear layer at zero, so that what it feeds is at first not there."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
