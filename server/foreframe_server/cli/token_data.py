"""Data sets as a likelihood model sees them: clips of whole windows, and the ids of whole episodes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from foreframe_engines import DatasetError
from foreframe_engines.engine import LikelihoodEngine
from foreframe_engines.episodes import Clip, draw_clips, episode_paths, load_episode
from foreframe_server.cli.clips import shipped_clips
from foreframe_server.cli.console import track
from foreframe_server.experiments.token_clips import Split

_DEFAULT_CLIPS = 100


def token_clips(engine: LikelihoodEngine, data: Path, split: Split, count: int | None) -> list[Clip]:
    """Draw clips of a data set, 100 by default, as long as the split. Raises DatasetError."""
    chosen = draw_clips(data, split.num_frames(engine.tokens), count or _DEFAULT_CLIPS)
    _check_sizes(engine, chosen)
    return chosen


def long_clip(engine: LikelihoodEngine, data: Path | None, bundle: Path, num_grids: int) -> Clip:
    """Return one clip of so many grids; a bundle's own clips are shorter, so one of theirs runs forth and back.

    For timing only: the work does not depend on what is seen. Raises DatasetError.
    """
    num_frames = -(-num_grids // engine.tokens.window_grids) * engine.tokens.window_frames
    if data is not None:
        (clip,) = draw_clips(data, num_frames, 1)
    else:
        (shipped,) = shipped_clips(bundle, 1)
        places = np.resize([*range(len(shipped.frames)), *range(len(shipped.frames) - 2, 0, -1)], num_frames)
        clip = Clip(shipped.seed, shipped.start, shipped.frames[places], shipped.states[places], shipped.masks[places])
    _check_sizes(engine, [clip])
    return clip


def episode_ids(
    engine: LikelihoodEngine, data: Path, description: str, count: int | None = None
) -> list[Int64[np.ndarray, "t s"]]:
    """Tokenise the first `count` episodes of a data set, all by default. Raises DatasetError."""
    paths = episode_paths(data)[:count]
    return list(track(_tokenised(engine, paths), description, len(paths)))


def _tokenised(engine: LikelihoodEngine, paths: list[Path]) -> Iterator[Int64[np.ndarray, "t s"]]:
    window = engine.tokens.window_frames
    for path in paths:
        frames = load_episode(path).frames
        ids = engine.tokenize(frames[: len(frames) // window * window]) if len(frames) >= window else None
        if ids is None or len(ids) < 2:
            raise DatasetError(f"{path.name} is too short for two grids of ids")
        yield ids


def _check_sizes(engine: LikelihoodEngine, chosen: list[Clip]) -> None:
    camera = engine.contract.camera
    expected = ((camera.height, camera.width, 3), engine.contract.state.dim)
    for clip in chosen:
        if (clip.frames.shape[1:], clip.states.shape[1]) != expected:
            raise DatasetError(
                f"frames {clip.frames.shape[1:]} and {clip.states.shape[1]} states are not the model's "
                f"{expected[0]} and {expected[1]}"
            )
