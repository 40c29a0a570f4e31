"""LeRobotDataset v3 as recordings: one camera and one vector of states of every episode. Knows no policy.

Frames come from the episode's own span of a shared video, or from pictures in the tables; rows by episode, so nothing
of a neighbour is ever read as one's own.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from foreframe_engines.episodes import Episode
from foreframe_engines.errors import DatasetError
from foreframe_engines.readers.lerobot_tables import (
    INFO_PATH,
    EpisodePlace,
    Info,
    Table,
    locate,
    read_info,
    read_places,
    read_rows,
    to_numbers,
)
from foreframe_engines.readers.pixels import decode_still, read_span
from foreframe_engines.readers.recordings import check_index, unmasked_episode

CAMERA_PREFIX = "observation.images."
STATE_KEY = "observation.state"


@dataclass(frozen=True, slots=True)
class LeRobotRecordings:
    """A data set's folder, and which camera and states of it are read."""

    folder: Path
    info: Info
    places: tuple[EpisodePlace, ...]
    camera_key: str
    state_key: str

    @staticmethod
    def is_at(folder: Path) -> bool:
        """Whether a folder looks like a LeRobotDataset."""
        return (folder / INFO_PATH).is_file()

    @classmethod
    def open(cls, folder: Path, camera: str | None = None, state_key: str = STATE_KEY) -> "LeRobotRecordings":
        """Open a data set. camera: with or without `observation.images.`; needed where there are several.

        Raises DatasetError naming what is missing.
        """
        info = read_info(folder)
        state = info.features.get(state_key)
        if state is None or len(state.shape) != 1:
            raise DatasetError(f"{folder} has no vector {state_key}; its keys are {', '.join(info.features)}")
        return cls(folder, info, tuple(read_places(folder, info)), _find_camera(info, camera), state_key)

    @property
    def fps(self) -> float:
        """Frames a second."""
        return self.info.fps

    @property
    def state_names(self) -> tuple[str, ...]:
        """Name the columns of the states; empty where the data set does not say."""
        return self.info.features[self.state_key].names

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> Episode:
        """Read one episode; its states as recorded, its frames as decoded. Raises DatasetError naming the file."""
        check_index(index, self, self.folder.name)
        place = self.places[index]
        has_video = self.info.features[self.camera_key].dtype == "video"
        columns = [self.state_key] if has_video else [self.state_key, self.camera_key]
        rows = read_rows(self.folder, place, columns)
        frames = self._read_video(place) if has_video else self._read_pictures(place, rows)
        states = to_numbers(rows, self.state_key, place.length)
        if (states.shape[1],) != self.info.features[self.state_key].shape:
            raise DatasetError(f"{self.state_key} has {states.shape[1]} values a row, not as {INFO_PATH} says")
        metadata: dict[str, object] = {
            "source": self.folder.name,
            "camera": self.camera_key,
            "tasks": list(place.tasks),
        }
        return unmasked_episode(index, frames, states, metadata)

    def _read_video(self, place: EpisodePlace) -> UInt8[np.ndarray, "t h w 3"]:
        span = place.videos[self.camera_key]
        room = round((span.to_s - span.from_s) * self.fps)
        if room < place.length:
            raise DatasetError(f"episode {place.index} has {place.length} rows and {room} frames of {self.camera_key}")
        return read_span(locate(self.folder, span.path), span.from_s, place.length, self.fps)

    def _read_pictures(self, place: EpisodePlace, rows: Table) -> UInt8[np.ndarray, "t h w 3"]:
        frames = [
            self._read_picture(cell, f"{self.camera_key} of frame {row} of episode {place.index}")
            for row, cell in enumerate(rows[self.camera_key].to_pylist())
        ]
        if any(frame.shape != frames[0].shape for frame in frames):
            raise DatasetError(f"the pictures of episode {place.index} are not all of one size")
        return np.stack(frames)

    def _read_picture(self, cell: object, name: str) -> UInt8[np.ndarray, "h w 3"]:
        """Decode a cell of `bytes` and `path`: what is not in the table is a file of the data set."""
        if not isinstance(cell, dict):
            raise DatasetError(f"{name} is not a picture")
        data, path = cell.get("bytes"), cell.get("path")
        if isinstance(data, bytes):
            return decode_still(data, name)
        if not isinstance(path, str):
            raise DatasetError(f"{name} has neither bytes nor a path")
        return decode_still(locate(self.folder, path).read_bytes(), name)


def _find_camera(info: Info, camera: str | None) -> str:
    keys = [key for key, feature in info.features.items() if feature.is_camera]
    if camera is None and len(keys) == 1:
        return keys[0]
    found = [key for key in keys if camera in (key, key.removeprefix(CAMERA_PREFIX))]
    if not found:
        asked = "several cameras; name one" if camera is None else f"no camera {camera!r}"
        names = ", ".join(key.removeprefix(CAMERA_PREFIX) for key in keys) or "none"
        raise DatasetError(f"the data set has {asked} of: {names}" if keys else "the data set has no camera")
    return found[0]
