"""Which recorded clips a command works on, and whether they are a model's size."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

from foreframe_engines import DatasetError
from foreframe_engines.episodes import Clip, clips, draw_clips, load_clips, load_episode
from foreframe_server.cli.facts import ModelFacts

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


def read_clip(path: Path, facts: ModelFacts, start: int) -> Clip:
    """Cut the clip that starts at a frame of an episode, or take the clip of this number of a file of clips.

    Raises DatasetError.
    """
    found = _read_windows(path, facts.num_frames)
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


def _read_windows(path: Path, length: int) -> list[Clip]:
    if not path.is_file():
        raise DatasetError(f"{path} is not a file")
    if not zipfile.is_zipfile(path):
        raise DatasetError(f"{path.name} is neither an episode nor a file of clips")
    with zipfile.ZipFile(path) as file:
        is_clip_file = "seeds.npy" in file.namelist()
    return load_clips(path) if is_clip_file else list(clips(load_episode(path), length, 1))
