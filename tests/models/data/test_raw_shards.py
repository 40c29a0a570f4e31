"""1X raw shards: what is written is read, windows stay in a segment, and damage is named."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foreframe_engines.errors import DatasetError
from foreframe_models.data.raw_shards import find_raw_shards, read_clips, read_hz, save_raw_shard, window_starts

NUM_FRAMES = 24
GREY_ERROR = 3
"""How far H.264 may move a plain grey frame."""


def write_shard(folder: Path, index: int = 0, num_frames: int = NUM_FRAMES) -> Path:
    """Frame k is plain grey 10 k; its state row holds k."""
    greys = (10 * np.arange(num_frames) % 250).astype(np.uint8)
    frames = np.broadcast_to(greys[:, None, None, None], (num_frames, 16, 16, 3))
    states = np.arange(num_frames * 3, dtype=np.float32).reshape(num_frames, 3)
    segments = np.where(np.arange(num_frames) < num_frames // 2, 1, 3).astype(np.int32)
    save_raw_shard(folder, index, frames, states, segments)
    return folder


def flatten(folder: Path) -> Path:
    """Lay every file into one folder, as the published validation set does."""
    for path in [path for path in folder.rglob("*") if path.is_file() and path.parent != folder]:
        path.rename(folder / path.name)
    return folder


@pytest.mark.parametrize("layout", [lambda folder: folder, flatten], ids=["sub-folders", "flat"])
def test_a_shard_that_was_written_is_read_back(tmp_path: Path, layout: Callable[[Path], Path]) -> None:
    (shard,) = find_raw_shards(layout(write_shard(tmp_path)))
    assert (shard.index, shard.num_frames, shard.frame_size()) == (0, NUM_FRAMES, (16, 16))
    states = shard.read_states()
    assert states.dtype == np.float32
    assert states.tolist() == np.arange(NUM_FRAMES * 3).reshape(NUM_FRAMES, 3).tolist()
    assert shard.read_segments().tolist() == [1] * 12 + [3] * 12
    frames = dict(shard.read_frames(range(3, NUM_FRAMES)))
    assert list(frames) == list(range(3, NUM_FRAMES))
    assert all(abs(int(frame[8, 8, 0]) - 10 * number) <= GREY_ERROR for number, frame in frames.items())
    assert read_hz(tmp_path) == 30.0


def test_files_have_no_header_and_are_little_endian(tmp_path: Path) -> None:
    write_shard(tmp_path)
    assert (tmp_path / "robot_states/states_0.bin").read_bytes()[:8] == np.array([0, 1], "<f4").tobytes()
    assert (tmp_path / "segment_indices/segment_idx_0.bin").read_bytes()[:4] == b"\x01\0\0\0"
    assert json.loads((tmp_path / "metadata/metadata_0.json").read_text()) == {"shard_num_frames": 24, "shard_ind": 0}


def test_shards_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for index in (10, 2, 0):
        write_shard(tmp_path, index, 4)
    assert [shard.index for shard in find_raw_shards(tmp_path)] == [0, 2, 10]
    total = json.loads((tmp_path / "metadata.json").read_text())
    assert (total["num_shards"], total["num_images"]) == (3, 12)


def test_a_window_starts_and_ends_in_one_segment_and_has_a_frame_after_it() -> None:
    segments = np.array([1] * 10 + [2] + [3] * 9, np.int32)
    assert window_starts(segments, 5, 1).tolist() == [0, 1, 2, 3, 4, 11, 12, 13, 14]
    assert window_starts(segments, 5, 4).tolist() == [0, 4, 12]
    assert window_starts(segments, 20, 1).tolist() == []


def test_clips_hold_the_frames_of_their_offsets(tmp_path: Path) -> None:
    (shard,) = find_raw_shards(write_shard(tmp_path))
    starts = np.array([0, 2, 8, 15])
    clips = np.stack(list(read_clips(shard, starts, (0, 2, 8, 8))))
    assert clips.shape == (4, 4, 16, 16, 3)
    expected = 10 * (starts[:, None] + [0, 2, 8, 8]) % 250
    assert np.abs(clips[:, :, 8, 8, 1].astype(int) - expected).max() <= GREY_ERROR
    assert list(read_clips(shard, starts[:0], (0, 2))) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-6])


def corrupt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[48 : len(content) // 2] = bytes(len(content) // 2 - 48)
    path.write_bytes(content)


def read_everything(folder: Path) -> None:
    for shard in find_raw_shards(folder):
        shard.read_states()
        shard.read_segments()
        list(read_clips(shard, np.array([0]), (0, 1)))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("videos/video_0.mp4", Path.unlink, r"no videos/video_0\.mp4"),
        ("videos/video_0.mp4", corrupt, r"video_0\.mp4 is damaged"),
        ("robot_states/states_0.bin", cut, r"states_0\.bin does not hold 24 rows"),
        ("segment_indices/segment_idx_0.bin", cut, r"segment_idx_0\.bin does not hold 24 int32"),
        ("metadata/metadata_0.json", Path.unlink, r"no metadata_\*\.json"),
        ("metadata/metadata_0.json", cut, r"metadata_0\.json: not readable JSON"),
        ("metadata/metadata_0.json", lambda path: path.write_text("[]"), r"metadata_0\.json: expected an object"),
        ("metadata/metadata_0.json", lambda path: path.write_text("{}"), "are not both counts"),
    ],
)
def test_damage_is_refused_by_the_name_of_its_file(
    tmp_path: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    read_everything(write_shard(tmp_path))
    damage(tmp_path / name)
    with pytest.raises(DatasetError, match=message):
        read_everything(tmp_path)


@pytest.mark.parametrize("stated", [23, 25])
def test_a_video_of_another_length_than_its_metadata_is_refused(tmp_path: Path, stated: int) -> None:
    path = write_shard(tmp_path) / "metadata/metadata_0.json"
    path.write_text(json.dumps({"shard_num_frames": stated, "shard_ind": 0}))
    with pytest.raises(DatasetError, match=f"holds 24 frames; its metadata says {stated}"):
        list(read_clips(find_raw_shards(tmp_path)[0], np.array([0, 15]), (0, 1)))


@pytest.mark.parametrize("hz", [0, "30", True])
def test_a_frame_rate_that_is_none_is_refused(tmp_path: Path, hz: object) -> None:
    (tmp_path / "metadata.json").write_text(json.dumps({"hz": hz}))
    with pytest.raises(DatasetError, match="hz is not a positive number"):
        read_hz(tmp_path)
