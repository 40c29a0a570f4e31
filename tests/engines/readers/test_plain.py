"""Plain folders: pictures or one video, states in three formats, and what is odd is named."""

import json

import numpy as np
import pytest
from PIL import Image

from foreframe_engines.errors import DatasetError
from foreframe_engines.readers import PlainRecordings


def write_pictures(folder, episode, *, digits=1, suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(episode.frames):
        Image.fromarray(frame).save(folder / f"frame_{number:0{digits}d}.{suffix}")


def write_csv(folder, states, names=""):
    rows = "\n".join(",".join(str(float(cell)) for cell in row) for row in states)
    (folder / "states.csv").write_text(f"{names}\n{rows}\n" if names else f"{rows}\n")


def write_states(folder, states, kind):
    if kind == "csv":
        write_csv(folder, states)
    elif kind == "npy":
        np.save(folder / "states.npy", states)
    else:
        (folder / "states.json").write_text(json.dumps(states.tolist()))


@pytest.mark.parametrize("kind", ["csv", "npy", "json"])
def test_pictures_and_states_come_back_in_the_order_of_their_numbers(tmp_path, episodes, assert_same, kind):
    write_pictures(tmp_path, episodes[2])
    write_states(tmp_path, episodes[2].states, kind)
    recordings = PlainRecordings.open(tmp_path)
    assert (len(recordings), recordings.fps, recordings.state_names) == (1, None, ())
    assert_same(recordings.read(0), episodes[2])


def test_names_stand_above_a_table_and_the_rate_in_a_card(tmp_path, episodes):
    write_pictures(tmp_path, episodes[0])
    write_csv(tmp_path, episodes[0].states, "hip, knee,ankle")
    (tmp_path / "recording.json").write_text('{"fps": 12.5}')
    recordings = PlainRecordings.open(tmp_path)
    assert (recordings.fps, recordings.state_names) == (12.5, ("hip", "knee", "ankle"))
    np.testing.assert_array_equal(recordings.read(0).states, episodes[0].states)


def test_a_folder_of_folders_is_as_many_episodes(tmp_path, episodes, assert_same):
    for number in (10, 9):
        write_pictures(tmp_path / f"take{number}", episodes[number % 4])
        write_csv(tmp_path / f"take{number}", episodes[number % 4].states)
    recordings = PlainRecordings.open(tmp_path)
    assert len(recordings) == 2
    assert_same(recordings.read(0), episodes[1])
    assert_same(recordings.read(1), episodes[2])


def test_one_video_takes_the_pictures_place_and_says_its_rate(tmp_path, episodes, write_video):
    write_video(tmp_path / "clip.mp4", episodes[1].frames, 20)
    write_csv(tmp_path, episodes[1].states)
    recordings = PlainRecordings.open(tmp_path)
    assert recordings.fps == 20
    np.testing.assert_array_equal(recordings.read(0).frames, episodes[1].frames)


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ("a,b,c\n", "not rows and columns"),
        ("", "it is empty"),
        ("1,2,3\n4,5\n", "not a table"),
        ("1,2,3\n4,5,x\n", "not a table"),
        ("1,2,3\n", "7 frames and 1 rows"),
        ("1,2,nan\n" * 7, "not all finite"),
    ],
)
def test_odd_tables_are_refused(tmp_path, episodes, states, words):
    write_pictures(tmp_path, episodes[1])
    (tmp_path / "states.csv").write_text(states)
    with pytest.raises(DatasetError, match=words):
        PlainRecordings.open(tmp_path).read(0)


def test_pickled_states_are_refused(tmp_path, episodes):
    write_pictures(tmp_path, episodes[1])
    np.save(tmp_path / "states.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(DatasetError, match=r"states\.npy is not a table"):
        PlainRecordings.open(tmp_path)


def test_pictures_that_differ_are_refused(tmp_path, episodes):
    write_csv_and_pictures(tmp_path, episodes[1])
    Image.new("RGB", (8, 8)).save(tmp_path / "frame_3.png")
    with pytest.raises(DatasetError, match=r"frame_3\.png is not of the size of frame_0\.png"):
        PlainRecordings.open(tmp_path).read(0)
    Image.new("L", (16, 16)).save(tmp_path / "frame_3.png")
    with pytest.raises(DatasetError, match=r"frame_3\.png is not RGB"):
        PlainRecordings.open(tmp_path).read(0)
    (tmp_path / "frame_3.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"frame_3\.png is not a whole"):
        PlainRecordings.open(tmp_path).read(0)


def write_csv_and_pictures(folder, episode):
    write_pictures(folder, episode)
    write_csv(folder, episode.states)


def test_what_is_not_one_recording_is_refused(tmp_path, episodes, write_video):
    with pytest.raises(DatasetError, match=r"holds neither states\.csv"):
        PlainRecordings.open(tmp_path)
    write_csv_and_pictures(tmp_path, episodes[0])
    np.save(tmp_path / "states.npy", episodes[0].states)
    with pytest.raises(DatasetError, match=r"both states\.csv and states\.npy"):
        PlainRecordings.open(tmp_path)
    (tmp_path / "states.npy").unlink()
    write_video(tmp_path / "clip.mp4", episodes[0].frames, 20)
    with pytest.raises(DatasetError, match="9 pictures and 1 videos"):
        PlainRecordings.open(tmp_path).read(0)


@pytest.mark.parametrize("card", ['{"fps": 0}', '{"fps": "15"}', "[", "{}"])
def test_a_card_without_a_rate_is_refused(tmp_path, episodes, card):
    write_csv_and_pictures(tmp_path, episodes[0])
    (tmp_path / "recording.json").write_text(card)
    with pytest.raises(DatasetError, match=r"recording\.json"):
        PlainRecordings.open(tmp_path)
