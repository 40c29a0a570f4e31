"""LeRobotDataset v3: what was written comes back, nothing of a neighbour, and what is damaged is named."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from foreframe_engines.errors import DatasetError
from foreframe_engines.readers import LeRobotRecordings
from foreframe_engines.testing_lerobot import LeRobotLayout, write_lerobot

LAYOUT = LeRobotLayout(fps=10, camera="head", state_names=("episode", "frame", "grey"))
LOSSLESS, AV1 = replace(LAYOUT, codec="libx264rgb"), replace(LAYOUT, codec="libsvtav1")
FIRST_ROWS = "data/chunk-000/file-000.parquet"
FIRST_VIDEO = "videos/observation.images.head/chunk-000/file-000.mp4"
PLACES = "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture
def edit_info(tmp_path):
    def edit(**fields):
        path = tmp_path / "meta" / "info.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return edit


@pytest.fixture
def edit_table(tmp_path):
    def edit(name, change):
        path = tmp_path / name
        parquet.write_table(change(parquet.read_table(path)), path)

    return edit


def replaced(column, values):
    return lambda table: table.set_column(table.column_names.index(column), column, pa.array(values))


@pytest.mark.parametrize("layout", [LAYOUT, LOSSLESS], ids=["pictures", "video"])
def test_what_was_written_comes_back_exactly(tmp_path, episodes, layout, assert_same):
    write_lerobot(tmp_path, episodes, layout)
    recordings = LeRobotRecordings.open(tmp_path)
    assert (len(recordings), recordings.fps, recordings.state_names) == (4, 10, layout.state_names)
    for number, episode in enumerate(episodes):
        assert_same(recordings.read(number), episode)
        assert recordings.read(number).seed == number


def test_a_video_as_lerobot_encodes_it_keeps_every_frame_in_place(tmp_path, large_episodes, assert_same):
    write_lerobot(tmp_path, large_episodes, AV1)
    recordings = LeRobotRecordings.open(tmp_path)
    for number, episode in enumerate(large_episodes):
        assert_same(recordings.read(number), episode, levels=1)


def test_an_episode_ends_where_its_neighbour_begins(tmp_path, episodes):
    write_lerobot(tmp_path, episodes, LOSSLESS)
    recordings = LeRobotRecordings.open(tmp_path)
    for number in range(len(episodes)):
        states = recordings.read(number).states
        assert set(states[:, 0].tolist()) == {number}
        np.testing.assert_array_equal(states[:, 1], np.arange(len(states)))


def test_a_table_that_reaches_into_the_neighbour_is_refused(tmp_path, episodes, edit_table):
    """The control of the test above: an episode said to be longer than it is."""
    write_lerobot(tmp_path, episodes, LOSSLESS)
    edit_table(PLACES, replaced("length", [11, 7, 12, 8]))
    with pytest.raises(DatasetError, match="does not hold frames 0 to 10 of episode 0"):
        LeRobotRecordings.open(tmp_path).read(0)


def test_rows_out_of_order_are_put_in_order(tmp_path, episodes, edit_table, assert_same):
    write_lerobot(tmp_path, episodes, LAYOUT)
    edit_table(FIRST_ROWS, lambda table: table.take(list(reversed(range(table.num_rows)))))
    assert_same(LeRobotRecordings.open(tmp_path).read(1), episodes[1])


def test_a_span_of_a_video_that_begins_elsewhere_is_refused(tmp_path, episodes, edit_table):
    write_lerobot(tmp_path, episodes, LOSSLESS)
    edit_table(PLACES, replaced("videos/observation.images.head/from_timestamp", [0.0, 0.95, 0.0, 1.2]))
    edit_table(PLACES, replaced("videos/observation.images.head/to_timestamp", [0.9, 1.65, 1.2, 2.0]))
    with pytest.raises(DatasetError, match=r"file-000\.mp4 has no frame at 0\.950 s"):
        LeRobotRecordings.open(tmp_path).read(1)


def test_a_span_shorter_than_the_rows_is_refused(tmp_path, episodes, edit_table):
    write_lerobot(tmp_path, episodes, LOSSLESS)
    edit_table(PLACES, replaced("videos/observation.images.head/to_timestamp", [0.8, 1.6, 1.2, 2.0]))
    with pytest.raises(DatasetError, match="9 rows and 8 frames"):
        LeRobotRecordings.open(tmp_path).read(0)


def test_a_camera_must_be_named_where_there_are_several(tmp_path, episodes, edit_info):
    write_lerobot(tmp_path, episodes, LAYOUT)
    features = json.loads((tmp_path / "meta" / "info.json").read_text())["features"]
    edit_info(features={**features, "observation.images.wrist": features["observation.images.head"]})
    with pytest.raises(DatasetError, match="several cameras; name one of: head, wrist"):
        LeRobotRecordings.open(tmp_path)
    with pytest.raises(DatasetError, match="no camera 'tail' of: head, wrist"):
        LeRobotRecordings.open(tmp_path, "tail")
    for name in ("head", "observation.images.head"):
        assert LeRobotRecordings.open(tmp_path, name).camera_key == "observation.images.head"


def test_a_depth_camera_is_not_taken_for_colour(tmp_path, episodes, edit_info):
    write_lerobot(tmp_path, episodes, LAYOUT)
    features = json.loads((tmp_path / "meta" / "info.json").read_text())["features"]
    depth = {**features["observation.images.head"], "info": {"is_depth_map": True}}
    edit_info(features={**features, "observation.images.depth": depth})
    assert LeRobotRecordings.open(tmp_path).camera_key == "observation.images.head"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"codebase_version": "v2.1"}, "'v2.1', not v3.0"),
        ({"fps": 0}, "fps is 0"),
        ({"features": 3}, "features"),
        ({"features": {}}, "no vector observation.state"),
    ],
)
def test_an_odd_description_is_refused(tmp_path, episodes, edit_info, fields, words):
    write_lerobot(tmp_path, episodes, LAYOUT)
    edit_info(**fields)
    with pytest.raises(DatasetError, match=words):
        LeRobotRecordings.open(tmp_path)


def test_a_path_that_leaves_the_folder_is_refused(tmp_path, episodes, edit_info):
    folder = tmp_path / "inner"
    write_lerobot(folder, episodes, LAYOUT)
    (folder / FIRST_ROWS).rename(tmp_path / "file-000.parquet")
    path = folder / "meta" / "info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "data_path": "../file-{file_index:03d}.parquet"}))
    with pytest.raises(DatasetError, match="leaves the data set's folder"):
        LeRobotRecordings.open(folder).read(0)


@pytest.mark.parametrize("name", [FIRST_ROWS, FIRST_VIDEO, PLACES])
@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_damaged_and_missing_files_are_named(tmp_path, episodes, name, harm):
    write_lerobot(tmp_path, episodes, LOSSLESS)
    path = tmp_path / name
    if harm == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.unlink()
    with pytest.raises(DatasetError, match="never finalised" if (name, harm) == (PLACES, "gone") else path.name):
        LeRobotRecordings.open(tmp_path).read(0)


def test_states_of_another_width_or_that_are_not_finite_are_refused(tmp_path, episodes, edit_table):
    write_lerobot(tmp_path, episodes, LAYOUT)
    rows = parquet.read_table(tmp_path / FIRST_ROWS)["observation.state"].to_pylist()
    edit_table(FIRST_ROWS, replaced("observation.state", [row[:2] for row in rows]))
    with pytest.raises(DatasetError, match="2 values a row"):
        LeRobotRecordings.open(tmp_path).read(0)
    edit_table(FIRST_ROWS, replaced("observation.state", [[1.0, float("nan"), 2.0] for _ in rows]))
    with pytest.raises(DatasetError, match="not all finite"):
        LeRobotRecordings.open(tmp_path).read(0)


def test_an_episode_that_is_not_there_is_refused(tmp_path, episodes):
    write_lerobot(tmp_path, episodes, LAYOUT)
    with pytest.raises(DatasetError, match="episodes 0 to 3, 4 was asked"):
        LeRobotRecordings.open(tmp_path).read(4)
