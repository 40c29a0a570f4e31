"""The tables of a LeRobotDataset v3: what `info.json` says, where episodes lie, and their rows. Knows no pixels.

Source: huggingface/lerobot, codebase_version v3.0. Several episodes share a parquet file, and several share a video.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float32

from foreframe_engines.errors import BundleError, DatasetError
from foreframe_engines.strict_json import Json, parse_json

VERSION = "v3.0"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
INFO_PATH = "meta/info.json"

Table: TypeAlias = Any
"""A pyarrow table, which has no types of its own."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One key of a data set: `video` and `image` are cameras, other dtypes are numbers of a shape."""

    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    is_depth: bool

    @property
    def is_camera(self) -> bool:
        """Whether it is RGB frames."""
        return self.dtype in {"video", "image"} and not self.is_depth


@dataclass(frozen=True, slots=True)
class Info:
    """What `info.json` says, as far as reading needs it."""

    fps: float
    features: Mapping[str, Feature]
    data_path: str
    video_path: str


@dataclass(frozen=True, slots=True)
class VideoSpan:
    """Where one episode's frames lie in a video that others share."""

    path: str
    from_s: float
    to_s: float


@dataclass(frozen=True, slots=True)
class EpisodePlace:
    """Where one episode lies."""

    index: int
    length: int
    data: str
    videos: Mapping[str, VideoSpan]
    tasks: tuple[str, ...]


def read_info(folder: Path) -> Info:
    """Read `meta/info.json`. Raises DatasetError, also for another version of the format."""
    path = folder / INFO_PATH
    try:
        record = parse_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, BundleError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    if not isinstance(record, dict):
        raise DatasetError(f"{path}: expected an object")
    version = record.get("codebase_version")
    if not isinstance(version, str) or not version.startswith("v3."):
        raise DatasetError(f"{path} is of version {version!r}, not {VERSION}; lerobot's own converter brings it there")
    try:
        return _build_info(record)
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path}: fps, features, data_path or video_path is missing or odd: {error}") from error


def _build_info(record: Mapping[str, Any]) -> Info:
    fps = float(record["fps"])
    if not 0 < fps < 1e6:
        raise ValueError(f"fps is {fps}")
    features = {str(key): _build_feature(feature) for key, feature in dict(record["features"]).items()}
    return Info(fps, features, str(record["data_path"]), str(record.get("video_path") or VIDEO_PATH))


def _build_feature(record: Mapping[str, Any]) -> Feature:
    details = {**(record.get("video_info") or {}), **(record.get("info") or {})}
    is_depth = bool(details.get("is_depth_map") or details.get("video.is_depth_map"))
    shape = tuple(int(side) for side in record["shape"])
    return Feature(str(record["dtype"]), shape, _flat_names(record.get("names")), is_depth)


def _flat_names(names: Json) -> tuple[str, ...]:
    """Names are a list, or lists by group."""
    if isinstance(names, dict):
        groups = [group for group in names.values() if isinstance(group, list)]
        return tuple(str(name) for group in groups for name in group)
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


def read_places(folder: Path, info: Info) -> list[EpisodePlace]:
    """Read where every episode lies, in order. Raises DatasetError."""
    paths = sorted((folder / "meta" / "episodes").glob("*/*.parquet"))
    if not paths:
        raise DatasetError(f"{folder} holds no meta/episodes; the data set was never finalised")
    rows = [row for path in paths for row in _episode_rows(path)]
    try:
        places = sorted((_build_place(row, info) for row in rows), key=lambda place: place.index)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DatasetError(f"{folder}: meta/episodes lacks a column, or a path is odd: {error}") from error
    if [place.index for place in places] != list(range(len(places))):
        raise DatasetError(f"{folder}: the episodes of meta/episodes are not numbered 0 to {len(places) - 1}")
    return places


def _episode_rows(path: Path) -> Iterator[dict[str, Any]]:
    table = _read_parquet(path, None, None)
    wanted = [name for name in table.column_names if not name.startswith("stats/")]
    yield from table.select(wanted).to_pylist()


def _build_place(row: Mapping[str, Any], info: Info) -> EpisodePlace:
    data = info.data_path.format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
    keys = [key for key, feature in info.features.items() if feature.dtype == "video" and feature.is_camera]
    videos = {key: _build_span(row, key, info) for key in keys}
    return EpisodePlace(int(row["episode_index"]), int(row["length"]), data, videos, tuple(row.get("tasks") or ()))


def _build_span(row: Mapping[str, Any], key: str, info: Info) -> VideoSpan:
    chunk, file = row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"]
    path = info.video_path.format(video_key=key, chunk_index=chunk, file_index=file)
    return VideoSpan(path, float(row[f"videos/{key}/from_timestamp"]), float(row[f"videos/{key}/to_timestamp"]))


def read_rows(folder: Path, place: EpisodePlace, columns: Sequence[str]) -> Table:
    """Read the rows of one episode, in order. Raises DatasetError when they are not exactly its frames."""
    path = locate(folder, place.data)
    table = _read_parquet(path, ["frame_index", *columns], [("episode_index", "==", place.index)])
    table = table.sort_by("frame_index")
    if table["frame_index"].to_pylist() != list(range(place.length)):
        raise DatasetError(f"{place.data} does not hold frames 0 to {place.length - 1} of episode {place.index}")
    return table


def to_numbers(table: Table, column: str, length: int) -> Float32[np.ndarray, "t d"]:
    """Turn a column of numbers or of lists of numbers into rows. Raises DatasetError."""
    rows = table[column].to_pylist()
    try:
        return np.asarray(rows, np.float32).reshape(length, -1)
    except (ValueError, TypeError) as error:
        raise DatasetError(f"the column {column} does not hold a vector of one width in every row") from error


def locate(folder: Path, relative: str) -> Path:
    """Return where a file of a data set lies. Raises DatasetError when it is outside, or not there."""
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise DatasetError(f"{relative} leaves the data set's folder")
    if not path.is_file():
        raise DatasetError(f"{folder} holds no {relative}")
    return path


def _read_parquet(path: Path, columns: Sequence[str] | None, rows: list[tuple[str, str, int]] | None) -> Table:
    import pyarrow as pa  # noqa: PLC0415 - the package imports numpy only
    from pyarrow import parquet  # noqa: PLC0415 - the package imports numpy only

    try:
        return parquet.read_table(path, columns=columns, filters=rows, partitioning=None)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DatasetError(f"{path} is not a whole parquet file with {columns or 'columns'}: {error}") from error
