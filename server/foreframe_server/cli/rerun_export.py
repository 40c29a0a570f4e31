"""What was seen and what was predicted for it, as a file of the Rerun viewer.

Rerun is large and optional, so it is imported when a file is asked for. Source: the API of rerun-sdk 0.23 and later.
"""

from pathlib import Path

from foreframe_engines import Prediction
from foreframe_engines.episodes import Clip
from foreframe_server.cli.facts import ModelFacts
from foreframe_server.cli.faults import needs

_TIMELINE = "time"


def write_rerun(path: Path, clip: Clip, prediction: Prediction, facts: ModelFacts) -> None:
    """Write seen and predicted frames, spread and states over time. Raises Fault without Rerun."""
    with needs("pip install 'foreframe[rerun]'"):
        import rerun
    recording = rerun.RecordingStream(f"foreframe {facts.model}")
    recording.save(str(path))
    for place, (frame, row) in enumerate(zip(clip.frames, clip.states, strict=True)):
        recording.set_time(_TIMELINE, duration=place / facts.fps)
        recording.log("seen", rerun.Image(frame))
        recording.log("states", rerun.Scalars(row))
    told = zip(prediction.frame_indices, prediction.frames, prediction.spread_per_frame, strict=True)
    for index, frame, spread in told:
        recording.set_time(_TIMELINE, duration=(facts.context_frames - 1 + index) / facts.fps)
        recording.log("predicted", rerun.Image(frame))
        recording.log("spread", rerun.Scalars([spread]))
    recording.flush()
