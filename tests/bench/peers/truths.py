"""What the right answers are: the questions' contents, and the mean of every first k members, computed in process."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from peers.errors import Invalid
from peers.hosting.wire import WorldRequest
from peers.hosting.world import LANES, ROWS, WorldModel, open_engine

from foreframe_engines import Bundle, builtin_bundle
from foreframe_engines.ensemble import EnsembleStatistics
from foreframe_engines.episodes import Clip, load_clips

MAX_DIFFERENCE = 1
"""Grey levels: forwards of other sizes round differently, and a mean is rounded to a level."""

_TIMES = 3


@dataclass(frozen=True, slots=True, eq=False)
class Truths:
    """means: uint8 `content k f h w 3`, of the first k + 1 members of each content. clips: what really happened."""

    means: np.ndarray
    clips: Sequence[Clip]

    @classmethod
    def make(cls, num_contents: int, num_members: int, folder: Path, arrangement: str, threads: int) -> "Truths":
        """Compute them, or read them where they were computed before for the same model."""
        clips = load_clips(builtin_bundle() / "clips.npz")[:num_contents]
        path = folder / f"truths-{Bundle.open(builtin_bundle()).digest[:16]}-{num_contents}-{num_members}.npy"
        if not path.exists():
            model = WorldModel(open_engine(arrangement, threads))
            means = [_prefix_means(model, request_of(clips, content, num_members)) for content in range(num_contents)]
            np.save(path, np.stack(means))
        return cls(np.load(path), clips)

    def request(self, content: int, members: int) -> WorldRequest:
        """Return the question of a content; contents come round."""
        return request_of(self.clips, content % len(self.clips), members)

    def mean(self, content: int, members: int) -> np.ndarray:
        """Return the right answer."""
        return self.means[content % len(self.clips), members - 1]

    def future(self, content: int) -> np.ndarray:
        """Return the frames that really came."""
        clip = self.clips[content % len(self.clips)]
        return clip.frames[len(clip.frames) - self.means.shape[2] :]


def request_of(clips: Sequence[Clip], content: int, members: int) -> WorldRequest:
    """Make a clip's question; its seed is its number."""
    clip = clips[content]
    return WorldRequest(clip.frames[:4], clip.states.astype(np.float32), content, members)


def difference(frames: np.ndarray, expected: np.ndarray) -> int:
    """Return the largest difference in grey levels; of other shapes all 255."""
    if frames.shape != expected.shape:
        return 255
    return int(np.abs(frames.astype(np.int16) - expected).max())


def time_answers(arrangement: str, threads: int, members: int) -> float:
    """Return the median seconds of one answer in this process, after an untimed one."""
    clips = load_clips(builtin_bundle() / "clips.npz")[:1]
    model = WorldModel(open_engine(arrangement, threads))
    request = request_of(clips, 0, members)
    model.predict([request])
    return median(_time(model, request) for _ in range(_TIMES))


def fastest_arrangement(threads: int, members: int) -> tuple[str, dict[str, float]]:
    """Return how to run the graphs on this machine, with the seconds of an answer of each way. Raises Invalid."""
    seconds = {each: time_answers(each, threads, members) for each in (ROWS, LANES)}
    if min(seconds.values()) <= 0:
        raise Invalid("the engine's clock stands still")
    return min(seconds, key=lambda each: seconds[each]), seconds


def _time(model: WorldModel, request: WorldRequest) -> float:
    started_s = time.perf_counter()
    model.predict([request])
    return time.perf_counter() - started_s


def _prefix_means(model: WorldModel, request: WorldRequest) -> np.ndarray:
    members = model.members([request])
    return np.stack([EnsembleStatistics.of(members[: k + 1]).mean_frames() for k in range(len(members))])
