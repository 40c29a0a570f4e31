"""What was seen lately, to the context that a model takes: frames at its rate, each with the state at its time.

Knows no ROS and reads no clock: every time is a message's.
"""

from __future__ import annotations

import bisect
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from foreframe_ros2.errors import ContextIncomplete
from foreframe_ros2.joints import StampedRow

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8


_MAX_LAG_S = 2.0


@dataclass(frozen=True)
class StampedFrame:
    """A frame, RGB 0..255, and when it was taken, in seconds of the messages' clock."""

    time_s: float
    frame: UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Context:
    """What a prediction starts from; `time_s` is that of the last frame."""

    time_s: float
    frames: UInt8[np.ndarray, "t h w 3"]
    states: Float32[np.ndarray, "t d"]


@dataclass
class ContextWindow:
    """Keeps the frames and states that a context may still need.

    tolerance_s: how far a frame may be from its place, by default half a period. max_gap_s: how far the nearest state
    may be from a frame; between two states their numbers are interpolated.
    """

    fps: float
    num_frames: int
    tolerance_s: float | None = None
    max_gap_s: float = 0.1
    _frames: deque[StampedFrame] = field(default_factory=deque, init=False)
    _rows: deque[StampedRow] = field(default_factory=deque, init=False)

    def push_frame(self, frame: StampedFrame) -> None:
        """Take a frame; one that is not newer than the last is left out, and one far older starts anew."""
        if self._is_newer(frame.time_s, self._frames):
            self._frames.append(frame)
            while self._frames[0].time_s < frame.time_s - self._span_s:
                self._frames.popleft()

    def push_row(self, row: StampedRow) -> None:
        """Take a state; as with frames."""
        if self._is_newer(row.time_s, self._rows):
            self._rows.append(row)
            while self._rows[0].time_s < row.time_s - self._span_s:
                self._rows.popleft()

    def context(self) -> Context:
        """Return the newest context. Raises ContextIncomplete."""
        if not self._frames:
            raise ContextIncomplete("no frame has come yet")
        last_s = self._frames[-1].time_s
        places = [last_s - index / self.fps for index in reversed(range(self.num_frames))]
        chosen = [self._nearest(place) for place in places]
        states = np.stack([self._state_at(each.time_s) for each in chosen])
        return Context(last_s, np.stack([each.frame for each in chosen]), states)

    @property
    def _span_s(self) -> float:
        """How far back a context reaches, and a camera may lag behind the joints."""
        return self.num_frames / self.fps + self.max_gap_s + _MAX_LAG_S

    def _is_newer(self, time_s: float, kept: deque[StampedFrame] | deque[StampedRow]) -> bool:
        """Whether to take what was taken at a time; a log that is played again makes everything kept void."""
        if kept and time_s < kept[-1].time_s - self._span_s:
            self._frames.clear()
            self._rows.clear()
        return not kept or time_s > kept[-1].time_s

    def _nearest(self, place_s: float) -> StampedFrame:
        tolerance_s = 0.5 / self.fps if self.tolerance_s is None else self.tolerance_s
        nearest = min(self._frames, key=lambda each: abs(each.time_s - place_s))
        if abs(nearest.time_s - place_s) > tolerance_s:
            missing_s = self._frames[-1].time_s - place_s
            raise ContextIncomplete(
                f"no frame was taken {missing_s:.3f} s before the last, to within {tolerance_s:g} s"
            )
        return nearest

    def _state_at(self, time_s: float) -> Float32[np.ndarray, " d"]:
        times = [row.time_s for row in self._rows]
        after = bisect.bisect_left(times, time_s)
        near = [self._rows[index] for index in (after - 1, after) if 0 <= index < len(times)]
        if not near or min(abs(row.time_s - time_s) for row in near) > self.max_gap_s:
            raise ContextIncomplete(f"no state came within {self.max_gap_s:g} s of a frame")
        if len(near) == 1:
            return near[0].row
        share = (time_s - near[0].time_s) / (near[1].time_s - near[0].time_s)
        return (near[0].row + np.float32(share) * (near[1].row - near[0].row)).astype(np.float32)
