"""Which reader a path gets, and episodes brought to a model's rate and size."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from foreframe_engines import DatasetError
from foreframe_engines.episodes import load_episode
from foreframe_engines.readers import EpisodeFiles, LeRobotRecordings, PlainRecordings
from foreframe_engines.testing_lerobot import LeRobotLayout, write_lerobot
from foreframe_models.data.raw_shards import save_raw_shard
from foreframe_server.cli.recordings import RawSegments, open_recordings, pad_episode, thin_out
from foreframe_server.recording.reader import McapRecordings

NAMES = tuple(f"state_{index}" for index in range(25))


@pytest.fixture
def episode(episodes, tmp_path):
    return load_episode(episodes(tmp_path / "own", [3], num_frames=12, size=16) / "episode_00000003.npz")


def test_each_format_gets_its_reader(tmp_path, episode):
    write_lerobot(tmp_path / "robot", [episode], LeRobotLayout(15, "head", NAMES))
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "states.json").write_text(json.dumps(episode.states.tolist()))
    (tmp_path / "log.mcap").write_bytes(b"")
    found = {
        LeRobotRecordings: open_recordings(tmp_path / "robot", "head"),
        EpisodeFiles: open_recordings(tmp_path / "own"),
        PlainRecordings: open_recordings(plain),
    }
    assert all(isinstance(recordings, reader) for reader, recordings in found.items())
    assert isinstance(open_recordings(tmp_path / "own" / "episode_00000003.npz"), EpisodeFiles)
    with pytest.raises(DatasetError, match=r"log\.mcap"):
        open_recordings(tmp_path / "log.mcap")
    assert McapRecordings.__name__ == "McapRecordings"


def test_what_is_not_there_is_named(tmp_path, episode):
    with pytest.raises(DatasetError, match="is not a file or a folder"):
        open_recordings(tmp_path / "nothing")
    with pytest.raises(DatasetError, match="has one camera without a name"):
        open_recordings(tmp_path / "own", "head")


def test_segments_of_raw_shards_are_episodes_and_never_cross(tmp_path):
    """Two shards of grey ramps; single frames of other ids stand between the segments."""
    ids = np.array([1] * 7 + [2] + [3] * 5 + [4] + [5] * 4, np.int32)
    frames = np.broadcast_to((np.arange(18) * 12 + 10)[:, None, None, None], (18, 32, 32, 3)).astype(np.uint8)
    states = np.stack([np.arange(18), ids], axis=1).astype(np.float32)
    for shard in range(2):
        save_raw_shard(tmp_path / "raw", shard, frames, states + 100 * shard, ids)
    recordings = open_recordings(tmp_path / "raw")
    assert isinstance(recordings, RawSegments)
    assert (len(recordings), recordings.fps) == (6, 30)
    for number, (shard, segment) in enumerate((shard, segment) for shard in range(2) for segment in (1, 3, 5)):
        episode = recordings.read(number)
        places = np.flatnonzero(ids == segment)
        np.testing.assert_array_equal(episode.states, states[places] + 100 * shard)
        assert np.abs(episode.frames.astype(int) - frames[places]).max() <= 4
    with pytest.raises(DatasetError, match="0 to 5, 6 was asked"):
        recordings.read(6)


def test_frames_are_thinned_out_to_the_models_rate(episode):
    thinned = thin_out(episode, 30.0, 10.0)
    np.testing.assert_array_equal(thinned.frames, episode.frames[::3])
    np.testing.assert_array_equal(thinned.states, episode.states[::3])
    assert len(thin_out(episode, None, 10.0).frames) == len(thin_out(episode, 10.0, 10.0).frames) == 12


@pytest.mark.parametrize("fps", [25.0, 5.0])
def test_other_rates_are_refused_with_both_named(episode, fps):
    with pytest.raises(DatasetError, match=rf"{fps:g} frames a second, no multiple of the model's 10"):
        thin_out(episode, fps, 10.0)


def test_frames_are_padded_only_where_they_differ(episode):
    assert pad_episode(episode, SimpleNamespace(height=16, width=16)) is episode
    padded = pad_episode(episode, SimpleNamespace(height=16, width=32))
    assert padded.frames.shape == (12, 16, 32, 3)
    assert padded.masks.shape == (12, 16, 32)
    assert not padded.frames[:, :, :8].any()
