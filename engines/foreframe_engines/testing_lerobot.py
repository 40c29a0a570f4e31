"""Small data sets in LeRobot's format, for tests and examples. Knows no model.

Source: huggingface/lerobot, codebase_version v3.0: parquet shards of several episodes, videos of several episodes,
and a table of where each lies. Statistics and what only training needs are left out.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pyarrow as pa
from av.video.stream import VideoStream
from jaxtyping import UInt8
from PIL import Image
from pyarrow import parquet

from foreframe_engines.episodes import Episode
from foreframe_engines.readers.lerobot import CAMERA_PREFIX, STATE_KEY
from foreframe_engines.readers.lerobot_tables import (
    DATA_PATH,
    EPISODES_PATH,
    INFO_PATH,
    VERSION,
    VIDEO_PATH,
)


@dataclass(frozen=True, slots=True)
class LeRobotLayout:
    """How a data set is written.

    codec: of the video; None puts PNG pictures into the tables. `libx264rgb` is without loss, `libsvtav1` what lerobot
    uses. episodes_per_file: how many share a table and a video.
    """

    fps: int
    camera: str
    state_names: tuple[str, ...]
    codec: str | None = None
    episodes_per_file: int = 2

    @property
    def camera_key(self) -> str:
        """The camera's key in every table."""
        return f"{CAMERA_PREFIX}{self.camera}"


def write_lerobot(folder: Path, episodes: Sequence[Episode], layout: LeRobotLayout) -> None:
    """Write a data set; what is there is replaced."""
    places: list[dict[str, Any]] = []
    for file, first in enumerate(range(0, len(episodes), layout.episodes_per_file)):
        shard = episodes[first : first + layout.episodes_per_file]
        start = places[-1]["dataset_to_index"] if places else 0
        placed = _place_shard(shard, first, start, file, layout)
        _write_rows(folder / DATA_PATH.format(chunk_index=0, file_index=file), shard, placed, layout)
        if layout.codec is not None:
            _write_video(_video_path(folder, layout, file), shard, layout.codec, layout.fps)
        places.extend(placed)
    _write_table(folder / EPISODES_PATH.format(chunk_index=0, file_index=0), _columns_of(places))
    (folder / INFO_PATH).write_text(json.dumps(_describe(episodes, layout), indent=4), encoding="utf-8")


def _video_path(folder: Path, layout: LeRobotLayout, file: int) -> Path:
    return folder / VIDEO_PATH.format(video_key=layout.camera_key, chunk_index=0, file_index=file)


def _place_shard(
    shard: Sequence[Episode], first: int, start: int, file: int, layout: LeRobotLayout
) -> list[dict[str, Any]]:
    placed, offset = [], 0
    for number, episode in enumerate(shard, first):
        end = offset + len(episode.frames)
        place: dict[str, Any] = {
            "episode_index": number,
            "tasks": ["recorded"],
            "length": len(episode.frames),
            "data/chunk_index": 0,
            "data/file_index": file,
            "dataset_from_index": start + offset,
            "dataset_to_index": start + end,
        }
        if layout.codec is not None:
            span: dict[str, float] = {"chunk_index": 0, "file_index": file}
            span |= {"from_timestamp": offset / layout.fps, "to_timestamp": end / layout.fps}
            place |= {f"videos/{layout.camera_key}/{name}": value for name, value in span.items()}
        placed.append(place)
        offset = end
    return placed


def _write_rows(path: Path, shard: Sequence[Episode], placed: Sequence[dict[str, Any]], layout: LeRobotLayout) -> None:
    rows = [
        _row(episode, place, frame, layout)
        for episode, place in zip(shard, placed, strict=True)
        for frame in range(len(episode.frames))
    ]
    _write_table(path, _columns_of(rows))


def _row(episode: Episode, place: dict[str, Any], frame: int, layout: LeRobotLayout) -> dict[str, Any]:
    row = {
        STATE_KEY: episode.states[frame].tolist(),
        "timestamp": frame / layout.fps,
        "frame_index": frame,
        "episode_index": place["episode_index"],
        "index": place["dataset_from_index"] + frame,
        "task_index": 0,
    }
    if layout.codec is None:
        row[layout.camera_key] = {"bytes": _encode_png(episode.frames[frame]), "path": f"frame-{frame:06d}.png"}
    return row


def _encode_png(frame: UInt8[np.ndarray, "h w 3"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def _write_video(path: Path, shard: Sequence[Episode], codec: str, fps: int) -> None:
    is_lossless = codec == "libx264rgb"
    frames = np.concatenate([episode.frames for episode in shard])
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = cast("VideoStream", container.add_stream(codec, rate=Fraction(fps)))
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "rgb24" if is_lossless else "yuv420p"
        stream.options = {"crf": "0" if is_lossless else "20", "g": "2"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def _describe(episodes: Sequence[Episode], layout: LeRobotLayout) -> dict[str, object]:
    numbers = {"frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64"}
    features: dict[str, dict[str, object]] = {
        STATE_KEY: {"dtype": "float32", "shape": [len(layout.state_names)], "names": list(layout.state_names)},
        layout.camera_key: {
            "dtype": "image" if layout.codec is None else "video",
            "shape": list(episodes[0].frames.shape[1:]),
            "names": ["height", "width", "channels"],
        },
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        **{name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in numbers.items()},
    }
    return {
        "codebase_version": VERSION,
        "robot_type": None,
        "total_episodes": len(episodes),
        "total_frames": sum(len(episode.frames) for episode in episodes),
        "total_tasks": 1,
        "chunks_size": 1000,
        "fps": layout.fps,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": DATA_PATH,
        "video_path": None if layout.codec is None else VIDEO_PATH,
        "features": features,
    }


def _columns_of(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _write_table(path: Path, columns: dict[str, list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)
