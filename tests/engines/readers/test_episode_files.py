"""This project's own files as recordings."""

import json

import pytest

from foreframe_engines.episodes import save_episode, write_dataset_card
from foreframe_engines.errors import DatasetError
from foreframe_engines.readers import EpisodeFiles


@pytest.fixture
def folder(tmp_path, episodes):
    write_dataset_card(tmp_path, world="test", fps=15, state_names=["x", "y", "z"], labels={})
    for episode in episodes[:2]:
        save_episode(tmp_path, episode)
    return tmp_path


def test_a_data_set_is_its_episodes_in_order(folder, episodes, assert_same):
    recordings = EpisodeFiles.open(folder)
    assert (len(recordings), recordings.fps, recordings.state_names) == (2, 15, ("x", "y", "z"))
    for number in range(2):
        assert_same(recordings.read(number), episodes[number])


def test_one_file_is_one_episode_with_or_without_its_card(folder, episodes, assert_same):
    path = folder / "episode_00000001.npz"
    assert EpisodeFiles.open(path).fps == 15
    (folder / "dataset.json").unlink()
    alone = EpisodeFiles.open(path)
    assert (len(alone), alone.fps, alone.state_names) == (1, None, ())
    assert_same(alone.read(0), episodes[1])
    with pytest.raises(DatasetError, match="0 to 0, 1 was asked"):
        alone.read(1)


def test_a_card_without_a_rate_is_refused(folder):
    card = json.loads((folder / "dataset.json").read_text())
    del card["fps"]
    (folder / "dataset.json").write_text(json.dumps(card))
    with pytest.raises(DatasetError, match="fps or state_names"):
        EpisodeFiles.open(folder)
