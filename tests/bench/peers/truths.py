"""What the right answers are: the questions' contents, and the mean of their members, computed in process."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from jaxtyping import UInt8
from peers.errors import Invalid
from peers.hosting.wire import WorldRequest
from peers.hosting.world import LANES, ROWS, WorldModel, open_engine

from foreframe_engines import Bundle, builtin_bundle
from foreframe_engines.episodes import Clip, load_clips

MAX_DIFFERENCE = 1
"""Grey levels: forwards of other sizes round differently, and a mean is rounded to a level."""

_TIMES = 3
_CONTEXT, _NUMBER_BITS = 4, 32


class Truths:
    """Right answers by content and members, kept on disk for the same model. clips: what really happened."""

    def __init__(self, num_clips: int, folder: Path, arrangement: str, threads: int) -> None:
        """Open what was computed before; the model is opened when something else is asked for."""
        self.clips: Sequence[Clip] = load_clips(builtin_bundle() / "clips.npz")[:num_clips]
        self._folder = folder / f"truths-{Bundle.open(builtin_bundle()).digest[:16]}-{num_clips}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._arrangement, self._threads = arrangement, threads
        self._model: WorldModel | None = None

    def prepare(self, questions: Iterable[tuple[int, int]]) -> None:
        """Compute the answers of contents with so many members ahead of time."""
        for content, members in questions:
            self.mean(content, members)

    def request(self, content: int, members: int) -> WorldRequest:
        """Return the question of a content. No two contents have the same pixels."""
        return request_of(self.clips, content, members)

    def mean(self, content: int, members: int) -> UInt8[np.ndarray, "f h w 3"]:
        """Return the right answer, RGB 0..255."""
        path = self._folder / f"{content}-{members}.npy"
        if not path.exists():
            np.save(path, self._compute(content, members))
        frames: UInt8[np.ndarray, "f h w 3"] = np.load(path)
        return frames

    def future(self, content: int) -> UInt8[np.ndarray, "f h w 3"]:
        """Return the frames that really came, RGB 0..255."""
        return self.clips[content % len(self.clips)].frames[_CONTEXT:]

    def _compute(self, content: int, members: int) -> UInt8[np.ndarray, "f h w 3"]:
        if self._model is None:
            self._model = WorldModel(open_engine(self._arrangement, self._threads))
        (frames,) = self._model.predict([self.request(content, members)])
        return frames


def request_of(clips: Sequence[Clip], content: int, members: int) -> WorldRequest:
    """Make a question of a clip, whose number is its seed, and is in the lowest bits of its first pixels too.

    So no server has seen the context before, and all have to encode it.
    """
    clip = clips[content % len(clips)]
    frames = clip.frames[:_CONTEXT].copy()
    number = np.frombuffer(content.to_bytes(_NUMBER_BITS // 8, "little"), np.uint8)
    frames.reshape(-1)[:_NUMBER_BITS] = frames.reshape(-1)[:_NUMBER_BITS] & 0xFE | np.unpackbits(number)
    return WorldRequest(frames, clip.states.astype(np.float32), content, members)


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
