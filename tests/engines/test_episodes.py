"""Episodes and clips on disk: exact bytes, splits by seed, windows, and refusals."""

import io
from pathlib import Path

import numpy as np
import pytest

from foreframe_engines.episodes import (
    Episode,
    clips,
    draw_clips,
    episode_path,
    episode_paths,
    load_clips,
    load_episode,
    save_clips,
    save_episode,
    split_of,
    write_dataset_card,
)
from foreframe_engines.errors import DatasetError


def make_episode(seed: int, num_frames: int = 6) -> Episode:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (num_frames, 4, 4, 3), dtype=np.uint8)
    states = rng.standard_normal((num_frames, 2), dtype=np.float32)
    return Episode(seed, frames, states, frames[..., 0] // 64, {"fps": 15})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset_card(tmp_path, world="test", fps=15, state_names=["x", "y"], labels={"ball": 1})
    for seed in (11, 2, 30):
        save_episode(tmp_path, make_episode(seed))
    return tmp_path


@pytest.mark.parametrize(
    ("seed", "split"),
    [
        (0, "train"),
        (6_999_999, "train"),
        (7_000_000, "validation"),
        (7_999_999, "validation"),
        (8_000_000, "test"),
        (9_999_999, "test"),
    ],
)
def test_the_seed_alone_decides_the_split(seed: int, split: str) -> None:
    assert split_of(seed) == split


def test_an_episode_comes_back_exactly(folder: Path) -> None:
    expected, loaded = make_episode(11), load_episode(episode_path(folder, 11))
    for name in ("frames", "states", "masks"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(expected, name))
        assert getattr(loaded, name).dtype == getattr(expected, name).dtype
    assert loaded.seed == 11
    assert loaded.metadata == {"fps": 15, "seed": 11}


def test_equal_episodes_give_equal_bytes(folder: Path, tmp_path: Path) -> None:
    before = episode_path(folder, 2).read_bytes()
    assert save_episode(folder, make_episode(2)).read_bytes() == before
    assert save_episode(folder, make_episode(3)).read_bytes() != before


def test_episodes_are_listed_in_seed_order_without_unfinished_ones(folder: Path) -> None:
    (folder / "episode_00000001.partial.npz").write_bytes(b"")
    assert [path.name for path in episode_paths(folder)] == [f"episode_{seed:08d}.npz" for seed in (2, 11, 30)]


def test_windows_cover_an_episode_at_a_stride() -> None:
    episode = make_episode(1)
    windows = list(clips(episode, 4, 2))
    assert [window.start for window in windows] == [0, 2]
    np.testing.assert_array_equal(windows[1].frames, episode.frames[2:6])
    np.testing.assert_array_equal(windows[1].states, episode.states[2:6])


def test_clips_come_back_exactly(tmp_path: Path) -> None:
    chosen = list(clips(make_episode(8_000_001), 4, 1))
    buffer = io.BytesIO()
    save_clips(buffer, chosen)
    path = tmp_path / "clips.npz"
    path.write_bytes(buffer.getvalue())
    for loaded, expected in zip(load_clips(path), chosen, strict=True):
        assert (loaded.seed, loaded.start) == (expected.seed, expected.start)
        np.testing.assert_array_equal(loaded.masks, expected.masks)


def test_drawn_clips_are_spread_distinct_and_repeatable(folder: Path) -> None:
    drawn = [(clip.seed, clip.start) for clip in draw_clips(folder, 3, 6)]
    assert [seed for seed, _ in drawn] == [2, 2, 11, 11, 30, 30]
    assert len(set(drawn)) == 6
    assert drawn == [(clip.seed, clip.start) for clip in draw_clips(folder, 3, 6)]


def test_more_clips_than_there_are_is_refused(folder: Path) -> None:
    with pytest.raises(DatasetError, match="only 12 clips"):
        draw_clips(folder, 3, 13)


def test_damaged_or_foreign_files_are_refused(folder: Path, tmp_path: Path) -> None:
    path = episode_path(folder, 2)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DatasetError, match="not an episode"):
        load_episode(path)
    with pytest.raises(DatasetError, match="not a file of clips"):
        load_clips(episode_path(folder, 11))
    (folder / "dataset.json").write_text('{"format": "other"}')
    with pytest.raises(DatasetError, match="is not of format"):
        episode_paths(folder)
    (folder / "dataset.json").write_text("[")
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        episode_paths(folder)
