"""Which recorded clips a command works on, and whether they are a model's size."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foreframe_engines import DatasetError
from foreframe_engines.episodes import Clip, clips, draw_clips, load_clips
from foreframe_server.cli.facts import ModelFacts
from foreframe_server.cli.recordings import open_recordings, pad_episode, thin_out

SHIPPED = "clips.npz"
_DEFAULT_DRAWN = 100


def shipped_clips(bundle: Path, count: int | None) -> list[Clip]:
    """Read the first `count` held-out clips of a bundle, all by default. Raises DatasetError."""
    chosen = load_clips(bundle / SHIPPED)
    if count is not None and count > len(chosen):
        raise DatasetError(f"the bundle holds {len(chosen)} clips, {count} were asked; --data takes a data set")
    return chosen[:count]


def drawn_clips(folder: Path, facts: ModelFacts, count: int | None) -> list[Clip]:
    """Draw `count` clips of a data set, 100 by default. Raises DatasetError."""
    return draw_clips(folder, facts.num_frames, count or _DEFAULT_DRAWN)


@dataclass(frozen=True, slots=True)
class Place:
    """Which window of which episode, seen by which camera where there are several. start: a frame, or a clip's number.

    is_padded: frames of another size are scaled and padded.
    """

    start: int = 0
    episode: int = 0
    camera: str | None = None
    is_padded: bool = False


def read_clip(path: Path, facts: ModelFacts, place: Place) -> Clip:
    """Cut the clip that starts at a frame of an episode, or take the clip of this number of a file of clips.

    Raises DatasetError.
    """
    start, found = place.start, _read_windows(path, facts, place)
    if not found:
        raise DatasetError(f"{path.name} is shorter than {facts.num_frames} frames")
    if start >= len(found):
        raise DatasetError(f"{path.name}: --start may be 0 to {len(found) - 1}")
    check_clips(found[start : start + 1], facts)
    return found[start]


def check_clips(chosen: Sequence[Clip], facts: ModelFacts) -> None:
    """Compare every clip's shapes with what the model takes. Raises DatasetError."""
    expected = ((facts.num_frames, facts.height, facts.width, 3), (facts.num_frames, facts.state_dim))
    for clip in chosen:
        if (clip.frames.shape, clip.states.shape) != expected:
            raise DatasetError(
                f"a clip's frames {clip.frames.shape} and states {clip.states.shape} are not the model's "
                f"{expected[0]} and {expected[1]}"
            )


def _read_windows(path: Path, facts: ModelFacts, place: Place) -> list[Clip]:
    if _is_clip_file(path):
        return load_clips(path)
    recordings = open_recordings(path, place.camera)
    episode = thin_out(recordings.read(place.episode), recordings.fps, facts.fps)
    return list(clips(pad_episode(episode, facts) if place.is_padded else episode, facts.num_frames, 1))


def _is_clip_file(path: Path) -> bool:
    if path.is_dir() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return "seeds.npy" in file.namelist()
