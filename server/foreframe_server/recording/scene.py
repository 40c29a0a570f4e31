"""What one camera saw and what was predicted for it, on a log's time line. Knows no request."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from foreframe_engines import Prediction
from foreframe_engines.episodes import Episode
from foreframe_server.recording.log import Log
from foreframe_server.recording.messages import (
    IMAGE,
    STATE,
    STATE_TOPIC,
    camera_topic,
    prediction_topic,
    write_image,
    write_state,
)

_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """The topics of one camera and its robot in a log. Every method raises OSError for a full disk."""

    log: Log
    camera: str
    state_names: tuple[str, ...]
    fps: float

    @property
    def step_ns(self) -> int:
        """Nanoseconds from one frame to the next."""
        return round(_SECOND / self.fps)

    def write_frame(
        self,
        frame: UInt8[np.ndarray, "h w 3"],
        state: Float32[np.ndarray, " d"],
        at_ns: int,
        segment: int,
        sequence: int = 0,
    ) -> None:
        """Write a frame that was seen, after its states."""
        row = write_state(state, self.state_names, segment, at_ns)
        self.log.write(STATE_TOPIC, STATE, row, at_ns, sequence)
        self.log.write(camera_topic(self.camera), IMAGE, write_image(frame, self.camera, at_ns), at_ns, sequence)

    def write_episode(self, episode: Episode, start_ns: int, segment: int) -> None:
        """Write every frame of an episode; the frames of one segment follow each other without a gap."""
        for place, (frame, state) in enumerate(zip(episode.frames, episode.states, strict=True)):
            self.write_frame(frame, state, start_ns + place * self.step_ns, segment)

    def write_future(self, prediction: Prediction, now_ns: int, sequence: int = 0) -> None:
        """Write predicted frames at the times that they are of. now_ns: when the newest frame was seen."""
        for index, frame in zip(prediction.frame_indices, prediction.frames, strict=True):
            at_ns = now_ns + index * self.step_ns
            data = write_image(frame, self.camera, at_ns)
            self.log.write(prediction_topic(self.camera), IMAGE, data, at_ns, sequence)
