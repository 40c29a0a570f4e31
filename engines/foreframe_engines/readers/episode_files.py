"""This project's own episodes, as recordings: a data set's folder, or one of its files."""

import json
from dataclasses import dataclass
from pathlib import Path

from foreframe_engines.episodes import Episode, episode_paths, load_episode
from foreframe_engines.errors import DatasetError
from foreframe_engines.readers.recordings import check_index


@dataclass(frozen=True, slots=True)
class EpisodeFiles:
    """Episode files in the order in which they are read."""

    paths: tuple[Path, ...]
    fps: float | None
    state_names: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> "EpisodeFiles":
        """Open a data set's folder or one episode. Raises DatasetError."""
        paths = tuple(episode_paths(path)) if path.is_dir() else (path,)
        fps, names = _read_card(paths[0].parent / "dataset.json")
        return cls(paths, fps, names)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Episode:
        """Read one episode. Raises DatasetError."""
        check_index(index, self, self.paths[0].parent.name)
        return load_episode(self.paths[index])


def _read_card(path: Path) -> tuple[float | None, tuple[str, ...]]:
    """Read frame rate and names, where an episode has its data set beside it."""
    if not path.is_file():
        return None, ()
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        return float(card["fps"]), tuple(str(name) for name in card["state_names"])
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: fps or state_names cannot be read") from error
