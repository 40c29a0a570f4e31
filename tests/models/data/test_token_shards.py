"""Tokenised shards in the 1X format: tails, segments, layouts, and every kind of damage by file and number."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foreframe_engines.errors import DatasetError
from foreframe_models.data.token_shards import (
    TokenShards,
    cosmos_tokens,
    open_token_shards,
    save_token_shard,
    shuffled,
)

TOKENS = cosmos_tokens(4, 50)
STATES = 3


def make_shard(folder: Path, index: int, num_frames: int, segments: np.ndarray | None = None) -> np.ndarray:
    """Write a shard whose ids tell their shard, window and grid; the states tell their frame."""
    windows = -(-num_frames // 17)
    ids = np.broadcast_to(np.arange(windows * 3).reshape(-1, 3, 1, 1) % 50, (windows, 3, 2, 2)).astype(np.int32)
    states = np.arange(num_frames, dtype=np.float32)[:, None] + np.array([0, 1000, 0], np.float32)
    states[:, 2] = index
    save_token_shard(folder, index, ids, states, np.zeros(num_frames) if segments is None else segments)
    return ids


def open_small(folder: Path) -> TokenShards:
    return open_token_shards(folder, TOKENS)


def test_a_clip_is_two_windows_with_the_mean_states_of_each_grids_frames(tmp_path: Path) -> None:
    ids = make_shard(tmp_path, 0, 17 * 4)
    shards = open_small(tmp_path)
    assert (len(shards), shards.num_frames) == (3, 68)
    clips = shards.read([1])
    assert clips.ids.shape == (1, 6, 4)
    assert clips.ids.dtype == np.int64
    np.testing.assert_array_equal(clips.ids[0], ids[1:3].reshape(6, 4))
    # Window 1 begins at frame 17: its grids are frame 17, frames 18 to 25, frames 26 to 33.
    np.testing.assert_allclose(clips.states[0, :, 0], [17, 21.5, 29.5, 34, 38.5, 46.5])
    np.testing.assert_allclose(clips.states[0, :, 1], clips.states[0, :, 0] + 1000)


def test_the_files_are_headerless_little_endian_rows(tmp_path: Path) -> None:
    ids = make_shard(tmp_path, 7, 40)
    assert (tmp_path / "videos" / "video_7.bin").read_bytes() == ids.astype("<i4").tobytes()
    assert (tmp_path / "robot_states" / "states_7.bin").stat().st_size == 40 * STATES * 4
    assert (tmp_path / "segment_indices" / "segment_idx_7.bin").stat().st_size == 40 * 4
    record = json.loads((tmp_path / "metadata" / "metadata_7.json").read_text())
    assert record == {"shard_num_frames": 40, "shard_ind": 7}
    assert json.loads((tmp_path / "metadata.json").read_text())["num_shards"] == 1


@pytest.mark.parametrize(("num_frames", "clips"), [(33, 0), (34, 1), (35, 1), (50, 1), (51, 2)])
def test_the_tail_of_a_shard_is_not_a_window(tmp_path: Path, num_frames: int, clips: int) -> None:
    make_shard(tmp_path, 0, num_frames)
    make_shard(tmp_path, 1, 34)
    assert len(open_small(tmp_path)) == clips + 1


def test_the_window_for_left_over_frames_may_be_absent(tmp_path: Path) -> None:
    make_shard(tmp_path, 0, 40)
    video = tmp_path / "videos" / "video_0.bin"
    video.write_bytes(video.read_bytes()[: 2 * 3 * 4 * 4])
    assert len(open_small(tmp_path)) == 1


@pytest.mark.parametrize("boundary", [1, 16, 17, 33])
def test_no_clip_crosses_a_segment_boundary(tmp_path: Path, boundary: int) -> None:
    """As in the published set, recordings are divided by single frames with a number of their own."""
    segments = np.full(17 * 4, 3)
    segments[boundary] = 2
    segments[:boundary] = 1
    make_shard(tmp_path, 0, 17 * 4, segments)
    starts = open_small(tmp_path).shards[0].starts.tolist()
    assert starts == [start for start in range(3) if start * 17 > boundary or boundary > (start + 2) * 17 - 1]


def test_clips_are_numbered_through_shards_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for index, num_frames in ((10, 51), (2, 34)):
        make_shard(tmp_path, index, num_frames)
    shards = open_small(tmp_path)
    assert shards.read(range(3)).states[:, 0, 2].tolist() == [2, 10, 10]
    assert shards.extremes().tolist() == [[0, 1000, 2], [50, 1050, 10]]
    assert shards.spread_rows(17)[:2, 0].tolist() == [0, 5]


def test_both_layouts_are_read(tmp_path: Path) -> None:
    make_shard(tmp_path / "train", 0, 51)
    flat = tmp_path / "val"
    flat.mkdir()
    for path in (tmp_path / "train").rglob("*_0.*"):
        shutil.copyfile(path, flat / path.name)
    np.testing.assert_array_equal(open_small(flat).read([1]).ids, open_small(tmp_path / "train").read([1]).ids)


def cut(name: str, count: int) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:-count])

    return change


def put_id(value: int) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "videos" / "video_0.bin"
        ids = np.fromfile(path, "<i4")
        ids[5] = value
        ids.tofile(path)

    return change


def put_state(folder: Path) -> None:
    path = folder / "robot_states" / "states_0.bin"
    states = np.fromfile(path, "<f4")
    states[5] = np.nan
    states.tofile(path)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "ids cut": (cut("videos/video_0.bin", 4), r"video_0\.bin does not hold 3 windows of 3 x 4 int32 for its 51 frames"),
    "window missing": (cut("videos/video_0.bin", 48), r"video_0\.bin does not hold 3 windows"),
    "states cut": (cut("robot_states/states_0.bin", 4), r"states_0\.bin does not hold 51 rows"),
    "segments cut": (cut("segment_indices/segment_idx_0.bin", 4), r"segment_idx_0\.bin does not hold 51 int32"),
    "no states": (lambda folder: (folder / "robot_states" / "states_0.bin").unlink(), "states_0"),
    "no metadata": (lambda folder: shutil.rmtree(folder / "metadata"), "no metadata_"),
    "id too large": (put_id(50), r"video_0\.bin holds the id 50; ids are 0 to 49"),
    "id negative": (put_id(-1), r"video_0\.bin holds the id -1"),
    "state not a number": (put_state, r"states of video_0\.bin are not all finite"),
    "other recording": (
        lambda folder: (folder / "metadata" / "metadata_0.json").write_text('{"shard_num_frames": 0, "shard_ind": 0}'),
        "shard_num_frames",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_by_file_and_number(tmp_path: Path, damage: str) -> None:
    make_shard(tmp_path, 0, 51)
    open_small(tmp_path).read([0])
    change, message = DAMAGE[damage]
    change(tmp_path)
    with pytest.raises(DatasetError, match=message):
        open_small(tmp_path).read([0])


def test_recordings_without_two_windows_in_a_row_are_refused(tmp_path: Path) -> None:
    make_shard(tmp_path, 0, 33)
    with pytest.raises(DatasetError, match="no 2 windows in a row in one segment"):
        open_small(tmp_path)


def test_every_pass_sees_each_clip_once_in_another_order() -> None:
    series = shuffled(10, seed=3, first=0, count=30)
    passes = [series[:10], series[10:20], series[20:]]
    assert all(sorted(each) == list(range(10)) for each in passes)
    assert len({tuple(each) for each in passes}) == 3
    assert shuffled(10, seed=3, first=7, count=9) == series[7:16]
    assert shuffled(10, seed=4, first=0, count=10) != series[:10]
