"""1X raw shards: about an hour of video, states and segment ids each. Knows no model and no recipe.

    DIR/videos/video_{k}.mp4                     one frame a row of the others
    DIR/robot_states/states_{k}.bin              float32, frames x d, no header
    DIR/segment_indices/segment_idx_{k}.bin      int32, one a frame
    DIR/metadata/metadata_{k}.json               shard_num_frames, shard_ind; DIR/metadata.json says hz

The sub-folders may be left out, as in the published validation set. Source: 1x-technologies/world_model_raw_data.
"""

import json
from collections import deque
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8

from foreframe_engines.errors import BundleError, DatasetError
from foreframe_engines.strict_json import Json, parse_json

VIDEOS, STATES, SEGMENTS, METADATA = "videos", "robot_states", "segment_indices", "metadata"
HZ = 30
_ITEM_BYTES = 4


@dataclass(frozen=True, slots=True)
class RawShard:
    """One shard's files and length; row k of every file belongs to frame k."""

    index: int
    num_frames: int
    video: Path
    states: Path
    segments: Path

    def read_states(self) -> Float32[np.ndarray, "t d"]:
        """Map the states, raw as recorded. Raises DatasetError when the file does not hold whole rows."""
        row_bytes, rest = divmod(self.states.stat().st_size, self.num_frames)
        if rest or not row_bytes or row_bytes % _ITEM_BYTES:
            raise DatasetError(f"{self.states.name} does not hold {self.num_frames} rows of float32")
        return np.memmap(self.states, "<f4", "r", shape=(self.num_frames, row_bytes // _ITEM_BYTES))

    def read_segments(self) -> Int32[np.ndarray, " t"]:
        """Map the segment ids. Raises DatasetError when there is not one a frame."""
        if self.segments.stat().st_size != self.num_frames * _ITEM_BYTES:
            raise DatasetError(f"{self.segments.name} does not hold {self.num_frames} int32")
        return np.memmap(self.segments, "<i4", "r", shape=(self.num_frames,))

    def read_frames(self, wanted: Container[int]) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        """Decode the video and yield the frames whose numbers are wanted, in order.

        Raises DatasetError when it is damaged or of another length, which only its end tells.
        """
        count = 0
        try:
            with av.open(str(self.video), "r", format="mp4") as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                for frame in container.decode(stream):
                    if count in wanted:
                        yield count, frame.to_ndarray(format="rgb24")
                    count += 1
        except (av.error.FFmpegError, IndexError) as error:
            raise DatasetError(f"{self.video.name} is damaged after {count} frames") from error
        if count != self.num_frames:
            raise DatasetError(f"{self.video.name} holds {count} frames; its metadata says {self.num_frames}")

    def frame_size(self) -> tuple[int, int]:
        """Read height and width. Raises DatasetError when the file is no video."""
        try:
            with av.open(str(self.video), "r", format="mp4") as container:
                context = container.streams.video[0].codec_context
                return context.height, context.width
        except (av.error.FFmpegError, IndexError) as error:
            raise DatasetError(f"{self.video.name} is not an mp4 video") from error


def find_raw_shards(folder: Path, video_suffix: str = ".mp4") -> list[RawShard]:
    """List a folder's shards by number. Raises DatasetError when there are none, or one lacks a file."""
    found = [*folder.glob("metadata_*.json"), *(folder / METADATA).glob("metadata_*.json")]
    if not found:
        raise DatasetError(f"{folder} holds no metadata_*.json; expected 1X shards")
    return sorted((_read_shard(folder, path, video_suffix) for path in found), key=lambda shard: shard.index)


def read_hz(folder: Path) -> float:
    """Read the frame rate of a data set; 30 where it does not say."""
    for path in (folder / "metadata.json", folder / METADATA / "metadata.json"):
        if path.is_file():
            hz = _read_record(path).get("hz", HZ)
            if not isinstance(hz, int | float) or isinstance(hz, bool) or hz <= 0:
                raise DatasetError(f"{path.name}: hz is not a positive number")
            return float(hz)
    return float(HZ)


def window_starts(segments: Int32[np.ndarray, " t"], length: int, stride: int) -> Int64[np.ndarray, " n"]:
    """Return every `stride`-th start of a window that stays in one segment.

    The ids are compared at the start and one past the end, as the authors of arXiv 2510.07092 do.
    """
    starts = np.arange(0, len(segments) - length, stride)
    return starts[segments[starts] == segments[starts + length]]


def read_clips(
    shard: RawShard, starts: Int64[np.ndarray, " n"], offsets: Sequence[int]
) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
    """Decode a shard once and yield the clip of each start; both `starts` and `offsets` ascend."""
    if not len(starts):
        return
    frames = shard.read_frames(frozenset((starts[:, None] + np.asarray(offsets)).ravel().tolist()))
    held: deque[tuple[int, UInt8[np.ndarray, "h w 3"]]] = deque()
    for start in starts.tolist():
        while not held or held[-1][0] < start + offsets[-1]:
            held.append(next(frames))
        while held[0][0] < start:
            held.popleft()
        seen = dict(held)
        yield np.stack([seen[start + offset] for offset in offsets])
    deque(frames, maxlen=0)  # to the end, so that a video of another length shows


def save_raw_shard(
    folder: Path,
    index: int,
    frames: UInt8[np.ndarray, "t h w 3"],
    states: Float32[np.ndarray, "t d"],
    segments: Int32[np.ndarray, " t"],
) -> None:
    """Write one shard with sub-folders, and `metadata.json`; sides must be even."""
    for name in (VIDEOS, STATES, SEGMENTS, METADATA):
        (folder / name).mkdir(parents=True, exist_ok=True)
    _encode(folder / VIDEOS / f"video_{index}.mp4", frames)
    states.astype("<f4").tofile(folder / STATES / f"states_{index}.bin")
    segments.astype("<i4").tofile(folder / SEGMENTS / f"segment_idx_{index}.bin")
    record = {"shard_num_frames": len(frames), "shard_ind": index}
    (folder / METADATA / f"metadata_{index}.json").write_text(json.dumps(record))
    shards = find_raw_shards(folder)
    total = {"num_shards": len(shards), "hz": HZ, "num_images": sum(shard.num_frames for shard in shards)}
    (folder / "metadata.json").write_text(json.dumps(total))


def _read_shard(folder: Path, path: Path, video_suffix: str) -> RawShard:
    record = _read_record(path)
    index, num_frames = record.get("shard_ind"), record.get("shard_num_frames")
    if type(index) is not int or type(num_frames) is not int or num_frames < 1:
        raise DatasetError(f"{path.name}: shard_ind and shard_num_frames are not both counts")
    return RawShard(
        index,
        num_frames,
        _locate(folder, VIDEOS, f"video_{index}{video_suffix}"),
        _locate(folder, STATES, f"states_{index}.bin"),
        _locate(folder, SEGMENTS, f"segment_idx_{index}.bin"),
    )


def _locate(folder: Path, kind: str, name: str) -> Path:
    for path in (folder / kind / name, folder / name):
        if path.is_file():
            return path
    raise DatasetError(f"{folder} holds no {kind}/{name}")


def _read_record(path: Path) -> dict[str, Json]:
    try:
        record = parse_json(path.read_text(encoding="utf-8"), path.name)
    except (BundleError, UnicodeDecodeError) as error:
        raise DatasetError(str(error)) from error
    if not isinstance(record, dict):
        raise DatasetError(f"{path.name}: expected an object")
    return record


def _encode(path: Path, frames: UInt8[np.ndarray, "t h w 3"]) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(HZ))
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.options = {"crf": "12", "preset": "veryfast", "threads": "1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
