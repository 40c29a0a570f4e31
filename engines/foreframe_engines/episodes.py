"""Recorded episodes on disk: one compressed `.npz` an episode beside one `dataset.json`. Knows no model.

    DIR/dataset.json            format, world, frame rate, state names, mask labels
    DIR/episode_08000000.npz    frames uint8 `t h w 3`, states float32 `t d`, masks uint8 `t h w`, metadata (JSON text)

Equal episodes give equal bytes, so a data set can be compared by digest.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float32, UInt8

from foreframe_engines.errors import DatasetError

FORMAT = "foreframe-episodes/1"
FIRST_VALIDATION_SEED = 7_000_000
FIRST_TEST_SEED = 8_000_000

_DAMAGE = (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged or foreign file raises."""

_ARCHIVE_MAGIC = b"PK"
"""How every .npz file begins. numpy takes what begins otherwise for a pickle, and says so."""


@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """One recorded episode: what the camera saw, what the robot did, and where the hidden dynamics are.

    frames: RGB. states: row k belongs to frame k, physical units.
    masks: 0 where the states decide the picture, else the label of an uncertain object.
    """

    seed: int
    frames: UInt8[np.ndarray, "t h w 3"]
    states: Float32[np.ndarray, "t d"]
    masks: UInt8[np.ndarray, "t h w"]
    metadata: Mapping[str, object]


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """A window of an episode: `context` frames then the future, with their states and masks."""

    seed: int
    start: int
    frames: UInt8[np.ndarray, "t h w 3"]
    states: Float32[np.ndarray, "t d"]
    masks: UInt8[np.ndarray, "t h w"]


def split_of(seed: int) -> str:
    """Return `train`, `validation` or `test`: the split is decided by the seed alone."""
    if seed >= FIRST_TEST_SEED:
        return "test"
    return "validation" if seed >= FIRST_VALIDATION_SEED else "train"


def write_dataset_card(
    folder: Path, *, world: str, fps: int, state_names: Sequence[str], labels: Mapping[str, int]
) -> None:
    """Create the folder and write its `dataset.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    card = {"format": FORMAT, "world": world, "fps": fps, "state_names": list(state_names), "labels": dict(labels)}
    (folder / "dataset.json").write_text(json.dumps(card, indent=2) + "\n")


def episode_path(folder: Path, seed: int) -> Path:
    """Return where the episode of a seed lies."""
    return folder / f"episode_{seed:08d}.npz"


def save_episode(folder: Path, episode: Episode) -> Path:
    """Write one episode; the file appears whole or not at all."""
    path = episode_path(folder, episode.seed)
    partial = path.with_suffix(".partial.npz")
    metadata = json.dumps({"seed": episode.seed, **episode.metadata}, sort_keys=True)
    np.savez_compressed(
        partial, frames=episode.frames, states=episode.states, masks=episode.masks, metadata=np.array(metadata)
    )
    partial.replace(path)
    return path


def load_episode(path: Path) -> Episode:
    """Read one episode. Raises DatasetError when the file is not one."""
    try:
        with path.open("rb") as content:
            if content.read(len(_ARCHIVE_MAGIC)) != _ARCHIVE_MAGIC:
                raise DatasetError(f"{path.name} is no episode (.npz); recordings are .mcap files or folders")
            content.seek(0)
            with np.load(content, allow_pickle=False) as file:
                metadata = json.loads(str(file["metadata"]))
                episode = Episode(metadata["seed"], file["frames"], file["states"], file["masks"], metadata)
    except _DAMAGE as error:
        raise DatasetError(f"{path.name} is not an episode: {error}") from error
    if not len(episode.frames) == len(episode.states) == len(episode.masks):
        raise DatasetError(f"{path.name}: frames, states and masks differ in length")
    return episode


def episode_paths(folder: Path) -> list[Path]:
    """List a data set's episodes in seed order. Raises DatasetError when there are none."""
    if not (folder / "dataset.json").is_file():
        raise DatasetError(f"{folder} holds no dataset.json; make one with `foreframe world generate --out {folder}`")
    try:
        card = json.loads((folder / "dataset.json").read_text())
    except ValueError as error:
        raise DatasetError(f"{folder}: dataset.json is not JSON: {error}") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise DatasetError(f"{folder}: dataset.json is not of format {FORMAT!r}")
    paths = sorted(path for path in folder.glob("episode_*.npz") if ".partial" not in path.name)
    if not paths:
        raise DatasetError(f"{folder} holds no episodes")
    return paths


def clips(episode: Episode, length: int, stride: int) -> Iterator[Clip]:
    """Cut an episode into windows of `length` frames every `stride` frames."""
    for start in range(0, len(episode.frames) - length + 1, stride):
        window = slice(start, start + length)
        yield Clip(episode.seed, start, episode.frames[window], episode.states[window], episode.masks[window])


def save_clips(file: BinaryIO, chosen: Sequence[Clip]) -> None:
    """Write clips of equal length into one compressed file."""
    np.savez_compressed(
        file,
        frames=np.stack([clip.frames for clip in chosen]),
        states=np.stack([clip.states for clip in chosen]),
        masks=np.stack([clip.masks for clip in chosen]),
        seeds=np.array([clip.seed for clip in chosen]),
        starts=np.array([clip.start for clip in chosen]),
    )


def load_clips(path: Path) -> list[Clip]:
    """Read a file of clips. Raises DatasetError when it is not one."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path.name} is not a file of clips: {error}") from error
    return read_clips(memoryview(content), path.name)


def read_clips(content: memoryview, name: str) -> list[Clip]:
    """Read the bytes of a file of clips. Raises DatasetError when they are none."""
    if content[: len(_ARCHIVE_MAGIC)] != _ARCHIVE_MAGIC:
        raise DatasetError(f"{name} is not a file of clips (.npz)")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            rows = zip(file["seeds"], file["starts"], file["frames"], file["states"], file["masks"], strict=True)
            return [Clip(int(seed), int(start), frames, states, masks) for seed, start, frames, states, masks in rows]
    except _DAMAGE as error:
        raise DatasetError(f"{name} is not a file of clips: {error}") from error


def draw_clips(folder: Path, length: int, count: int, seed: int = 0) -> list[Clip]:
    """Draw `count` windows, spread evenly over the episodes, at seeded starts; the same call draws the same.

    Raises DatasetError when the data set holds fewer distinct windows.
    """
    paths = episode_paths(folder)
    per_episode = -(-count // len(paths))
    drawn: list[Clip] = []
    for path in paths:
        windows = list(clips(load_episode(path), length, 1))
        rng = np.random.default_rng((seed, int(path.stem.split("_")[1])))
        chosen = rng.choice(len(windows), min(per_episode, len(windows)), replace=False)
        drawn.extend(windows[index] for index in sorted(chosen)[: count - len(drawn)])
        if len(drawn) == count:
            return drawn
    raise DatasetError(f"{folder} holds only {len(drawn)} clips of {length} frames spread this way, {count} were asked")
