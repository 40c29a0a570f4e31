"""What was seen and what was predicted for it, as a file for robots' viewers. Knows no server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foreframe_engines import Prediction
from foreframe_engines.episodes import Clip, Episode
from foreframe_server.cli.facts import ModelFacts
from foreframe_server.recording.log import Log
from foreframe_server.recording.messages import PREDICTION, PREDICTION_TOPIC, write_prediction
from foreframe_server.recording.scene import Scene


@contextmanager
def open_scene(path: Path, facts: ModelFacts) -> Iterator[Scene]:
    """Write a log for as long as the block runs, in place of what was there."""
    path.unlink(missing_ok=True)
    told = {"model": facts.model, "revision": facts.revision, "fps": str(facts.fps), "camera": facts.camera}
    with Log(path, told) as log:
        yield Scene(log, facts.camera, facts.state_names, facts.fps)


def write_told(scene: Scene, prediction: Prediction, now_ns: int, elapsed_ms: float, sequence: int) -> None:
    """Write a prediction's frames and how it came to be. now_ns: when the newest frame that it saw was seen."""
    details = {"elapsed_ms": round(elapsed_ms, 3)}
    told = write_prediction(prediction, str(sequence), details, now_ns)
    scene.log.write(PREDICTION_TOPIC, PREDICTION, told, now_ns, sequence)
    scene.write_future(prediction, now_ns, sequence)


def clip_episode(clip: Clip) -> Episode:
    """Take a clip for an episode of its own."""
    return Episode(clip.seed, clip.frames, clip.states, clip.masks, {})


def start_of(episode: Episode) -> int:
    """Return when an episode began, in nanoseconds; 0 where it does not say."""
    start_ns = episode.metadata.get("start_ns", 0)
    return start_ns if isinstance(start_ns, int) else 0
