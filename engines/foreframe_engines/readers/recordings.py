"""What every reader of recordings offers. Knows no format."""

from collections.abc import Sized
from typing import Protocol

import numpy as np
from jaxtyping import Float32, UInt8

from foreframe_engines.episodes import Episode
from foreframe_engines.errors import DatasetError


class Recordings(Sized, Protocol):
    """Episodes in one file or folder, read one at a time; no episode holds anything of another.

    fps: frames a second, None where the recording does not say.
    """

    @property
    def fps(self) -> float | None:
        """Frames a second, None where the recording does not say."""
        ...

    @property
    def state_names(self) -> tuple[str, ...]:
        """Name the columns of the states; empty where the recording does not say."""
        ...

    def read(self, index: int) -> Episode:
        """Read one episode, counted from 0. Raises DatasetError."""
        ...


def check_index(index: int, recordings: Sized, name: str) -> None:
    """Refuse the number of an episode that is not there. Raises DatasetError."""
    if not 0 <= index < len(recordings):
        raise DatasetError(f"{name} holds episodes 0 to {len(recordings) - 1}, {index} was asked")


def unmasked_episode(
    index: int,
    frames: UInt8[np.ndarray, "t h w 3"],
    states: Float32[np.ndarray, "t d"],
    metadata: dict[str, object],
) -> Episode:
    """Make an episode in which nothing is masked, with its number as its seed. Raises DatasetError for odd states."""
    if len(frames) != len(states):
        raise DatasetError(f"episode {index} has {len(frames)} frames and {len(states)} rows of states")
    if not np.isfinite(states).all():
        raise DatasetError(f"the states of episode {index} are not all finite")
    return Episode(index, frames, states, np.zeros(frames.shape[:3], np.uint8), metadata)
