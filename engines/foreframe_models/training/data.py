"""Training data in memory: frames and states of many episodes, drawn by (seed, step)."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from foreframe_engines.episodes import Episode, episode_paths, load_episode
from foreframe_engines.errors import DatasetError


@dataclass(frozen=True, slots=True, eq=False)
class EpisodeTensors:
    """Many episodes e of equal length: RGB frames, states in physical units, labels of uncertain objects."""

    frames: UInt8[np.ndarray, "e t h w 3"]
    states: Float32[np.ndarray, "e t d"]
    masks: UInt8[np.ndarray, "e t h w"]

    @classmethod
    def load(cls, folder: Path) -> "EpisodeTensors":
        """Read a data set's episodes in seed order. Raises DatasetError when there are none or they differ in shape."""
        paths = episode_paths(folder)
        first = load_episode(paths[0])
        whole = cls(*(np.empty((len(paths), *array.shape), array.dtype) for array in _arrays(first)))
        for index, path in enumerate(paths):
            episode = load_episode(path)
            if episode.frames.shape != first.frames.shape:
                raise DatasetError(f"{path.name} differs from {paths[0].name} in length or size")
            whole.frames[index], whole.states[index], whole.masks[index] = _arrays(episode)
        return whole

    @property
    def num_episodes(self) -> int:
        """How many episodes there are."""
        return len(self.frames)

    @property
    def num_frames(self) -> int:
        """How many frames an episode has."""
        return self.frames.shape[1]

    def spread(self, num_episodes: int, stride: int) -> UInt8[np.ndarray, "b h w 3"]:
        """Return every `stride`-th frame of about so many episodes, spread over the data set."""
        some = self.frames[:: max(1, self.num_episodes // num_episodes), ::stride]
        return some.reshape(-1, *self.frames.shape[2:])

    def draw_frames(self, rng: np.random.Generator, count: int) -> UInt8[np.ndarray, "b h w 3"]:
        """Draw frames uniformly, with replacement."""
        episodes = rng.integers(self.num_episodes, size=count)
        return self.frames[episodes, rng.integers(self.num_frames, size=count)]


def _arrays(episode: Episode) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return episode.frames, episode.states, episode.masks


def step_rng(seed: int, step: int, rank: int = 0) -> np.random.Generator:
    """Return the generator of one training step: the same for a resumed run as for an uninterrupted one."""
    return np.random.default_rng((seed, step, rank))


def to_input(frames: UInt8[np.ndarray, "... h w 3"]) -> Tensor:
    """Turn RGB 0..255 into float32 `... 3 h w` in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, -3))).float() / 127.5 - 1.0


def state_statistics(states: Float32[np.ndarray, "... d"]) -> dict[str, list[float]]:
    """Return mean, std, low, high, q01 and q99 of every state dim; each number is exact in float32."""
    flat = states.reshape(-1, states.shape[-1]).astype(np.float64)
    q01, q99 = np.quantile(flat, (0.01, 0.99), axis=0)
    rows = {"mean": flat.mean(0), "std": flat.std(0), "low": flat.min(0), "high": flat.max(0), "q01": q01, "q99": q99}
    return {name: [float(np.float32(value)) for value in row] for name, row in rows.items()}


def psnr(mse: float | Tensor) -> float:
    """Return PSNR in dB for a mean squared error on a scale where white is 1."""
    return -10.0 * math.log10(max(float(mse), 1e-12))
