"""Plain folders: frames as pictures or one video, states as a table. Knows no robot.

    DIR/frame_0000.png …      PNG, JPEG or WebP, in the order of the numbers in their names; or DIR/clip.mp4
    DIR/states.csv            a row a frame, perhaps under a row of names; or states.npy, or states.json (rows)
    DIR/recording.json        {"fps": 15}; pictures cannot say it themselves

A folder of such folders is as many episodes, in the order of their names.
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from foreframe_engines.episodes import Episode
from foreframe_engines.errors import BundleError, DatasetError
from foreframe_engines.readers.pixels import decode_still, read_rate, read_video
from foreframe_engines.readers.recordings import check_index, unmasked_episode
from foreframe_engines.strict_json import parse_json

_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
_STATES = ("states.csv", "states.npy", "states.json")
_CARD = "recording.json"


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    names: tuple[str, ...]
    rows: Float32[np.ndarray, "t d"]


@dataclass(frozen=True, slots=True)
class PlainRecordings:
    """Plain folders, one an episode."""

    folders: tuple[Path, ...]
    fps: float | None
    state_names: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path) -> "PlainRecordings":
        """Open a folder of frames and states, or a folder of such. Raises DatasetError."""
        folders = (folder,) if _find_states(folder) else tuple(_episode_folders(folder))
        if not folders:
            raise DatasetError(f"{folder} holds neither {', '.join(_STATES)} nor folders that do")
        return cls(folders, _read_fps(folders[0]), _read_table(folders[0]).names)

    def __len__(self) -> int:
        return len(self.folders)

    def read(self, index: int) -> Episode:
        """Read one episode. Raises DatasetError naming the file."""
        check_index(index, self, self.folders[0].parent.name)
        folder = self.folders[index]
        return unmasked_episode(index, _read_frames(folder), _read_table(folder).rows, {"source": folder.name})


def _episode_folders(folder: Path) -> list[Path]:
    return sorted((each for each in folder.iterdir() if each.is_dir() and _find_states(each)), key=_natural)


def _natural(path: Path) -> tuple[tuple[int, str], ...]:
    """Order names by the numbers in them: frame_9 before frame_10."""
    parts = re.split(r"(\d+)", path.name)
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in parts)


def _find_states(folder: Path) -> list[Path]:
    return [folder / name for name in _STATES if (folder / name).is_file()]


def _read_fps(folder: Path) -> float | None:
    path = folder / _CARD
    if path.is_file():
        return _fps_of_card(path)
    videos = sorted(folder.glob("*.mp4"))
    return read_rate(videos[0]) if videos else None


def _fps_of_card(path: Path) -> float:
    try:
        card = parse_json(path.read_text(encoding="utf-8"), path.name)
    except (BundleError, UnicodeDecodeError) as error:
        raise DatasetError(str(error)) from error
    fps = card.get("fps") if isinstance(card, dict) else None
    if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps < 1e6:
        raise DatasetError(f"{path}: fps is not a positive number")
    return float(fps)


def _read_frames(folder: Path) -> UInt8[np.ndarray, "t h w 3"]:
    pictures = sorted((each for each in folder.iterdir() if each.suffix.lower() in _PICTURES), key=_natural)
    videos = sorted(folder.glob("*.mp4"))
    if bool(pictures) == bool(videos) or len(videos) > 1:
        raise DatasetError(
            f"{folder} holds {len(pictures)} pictures and {len(videos)} videos; give pictures or one mp4"
        )
    if videos:
        return read_video(videos[0])
    frames = [decode_still(path.read_bytes(), path.name) for path in pictures]
    for path, frame in zip(pictures, frames, strict=True):
        if frame.shape != frames[0].shape:
            raise DatasetError(f"{path.name} is not of the size of {pictures[0].name}")
    return np.stack(frames)


def _read_table(folder: Path) -> _Table:
    found = _find_states(folder)
    if len(found) > 1:
        raise DatasetError(f"{folder} holds both {found[0].name} and {found[1].name}")
    path = found[0]
    read = {".csv": _read_csv, ".npy": _read_npy, ".json": _read_json}[path.suffix]
    try:
        return read(path)
    except (ValueError, TypeError, OSError, EOFError, BundleError) as error:
        raise DatasetError(f"{path} is not a table of numbers, a row a frame: {error}") from error


def _read_csv(path: Path) -> _Table:
    with path.open(newline="", encoding="utf-8") as file:
        lines = [line for line in csv.reader(file) if line]
    if not lines:
        raise ValueError("it is empty")
    names = () if _is_row(lines[0]) else tuple(name.strip() for name in lines[0])
    return _Table(names, _to_rows([[float(cell) for cell in line] for line in lines[len(names) > 0 :]]))


def _is_row(cells: Sequence[str]) -> bool:
    try:
        return all(float(cell) is not None for cell in cells)
    except ValueError:
        return False


def _read_npy(path: Path) -> _Table:
    return _Table((), _to_rows(np.load(path, allow_pickle=False)))


def _read_json(path: Path) -> _Table:
    return _Table((), _to_rows(parse_json(path.read_text(encoding="utf-8"), path.name)))


def _to_rows(values: object) -> Float32[np.ndarray, "t d"]:
    rows = np.asarray(values)
    if rows.dtype.kind not in "fiu":
        raise ValueError("not every value is a number")
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"its axes {rows.shape} are not rows and columns")
    return rows.astype(np.float32)
