"""Which reader a path needs, and episodes brought to a model's frame rate and size."""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from foreframe_engines import DatasetError
from foreframe_engines.episodes import Episode
from foreframe_engines.readers import EpisodeFiles, LeRobotRecordings, PlainRecordings, Recordings, check_index
from foreframe_engines.readers.pixels import read_span
from foreframe_engines.readers.recordings import unmasked_episode
from foreframe_server.cli.facts import ModelFacts
from foreframe_server.cli.faults import needs_data
from foreframe_server.codec.pictures import Size, pad_frame

_RATE_TOLERANCE = 0.01


def open_recordings(path: Path, camera: str | None = None) -> Recordings:
    """Open an episode, a data set of them, a LeRobotDataset, 1X raw shards, an MCAP file or a plain folder.

    Raises DatasetError for anything else, Fault where a package is missing.
    """
    if path.suffix == ".mcap":
        with needs_data():
            from foreframe_server.recording.reader import McapRecordings
        return McapRecordings.open(path, camera)
    if LeRobotRecordings.is_at(path):
        with needs_data():
            import pyarrow  # noqa: F401, ICN001 - only whether it is there
        return LeRobotRecordings.open(path, camera)
    _refuse_camera(path, camera)
    if path.is_file() or (path / "dataset.json").is_file():
        return EpisodeFiles.open(path)
    if not path.is_dir():
        raise DatasetError(f"{path} is not a file or a folder")
    return RawSegments.open(path) if RawSegments.is_at(path) else PlainRecordings.open(path)


def _refuse_camera(path: Path, camera: str | None) -> None:
    if camera is not None:
        raise DatasetError(f"{path} has one camera without a name; --camera is for LeRobot data sets and MCAP files")


@dataclass(frozen=True, slots=True, eq=False)
class _Segment:
    """states: of the whole shard, mapped."""

    video: Path
    states: Float32[np.ndarray, "n d"]
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class RawSegments:
    """1X raw shards, one segment an episode."""

    segments: tuple[_Segment, ...]
    fps: float
    state_names: tuple[str, ...] = ()

    @staticmethod
    def is_at(folder: Path) -> bool:
        """Whether a folder looks like 1X shards."""
        return any(folder.glob("metadata_*.json")) or any((folder / "metadata").glob("metadata_*.json"))

    @classmethod
    def open(cls, folder: Path) -> "RawSegments":
        """Find every segment of two frames or more; single frames stand between them. Raises DatasetError."""
        from foreframe_models.data.raw_shards import find_raw_shards, read_hz

        found = []
        for shard in find_raw_shards(folder):
            ids = shard.read_segments()
            borders = [0, *(np.flatnonzero(np.diff(ids)) + 1).tolist(), len(ids)]
            found += [
                _Segment(shard.video, shard.read_states(), start, end - start)
                for start, end in itertools.pairwise(borders)
                if end - start > 1
            ]
        return cls(tuple(found), read_hz(folder))

    def __len__(self) -> int:
        return len(self.segments)

    def read(self, index: int) -> Episode:
        """Read one segment. Raises DatasetError."""
        check_index(index, self, "the data set")
        segment = self.segments[index]
        frames = read_span(segment.video, segment.start / self.fps, segment.length, self.fps)
        states = np.array(segment.states[segment.start : segment.start + segment.length])
        return unmasked_episode(index, frames, states, {"source": segment.video.name, "start": segment.start})


def thin_out(episode: Episode, fps: float | None, model_fps: float) -> Episode:
    """Keep every n-th frame, so that frames are as far apart as the model's. Raises DatasetError for other ratios."""
    ratio = 1.0 if fps is None else fps / model_fps
    stride = round(ratio)
    if stride < 1 or abs(ratio - stride) > _RATE_TOLERANCE * ratio:
        raise DatasetError(f"the recording has {fps:g} frames a second, no multiple of the model's {model_fps:g}")
    kept = slice(None, None, stride)
    return replace(episode, frames=episode.frames[kept], states=episode.states[kept], masks=episode.masks[kept])


def pad_episode(episode: Episode, facts: ModelFacts) -> Episode:
    """Scale every frame into the model's size and centre it on black."""
    size = Size(facts.height, facts.width)
    if episode.frames.shape[1:3] == (facts.height, facts.width):
        return episode
    frames = np.stack([pad_frame(frame, size) for frame in episode.frames])
    return replace(episode, frames=frames, masks=np.zeros(frames.shape[:3], np.uint8))
