"""Logs read back: episodes that never cross a gap, requests as they were asked, and files that were cut."""

import json

import numpy as np
import pytest
from mcap.writer import Writer

from foreframe_engines.errors import DatasetError
from foreframe_engines.testing import toy_contract
from foreframe_server.recording.messages import write_image
from foreframe_server.recording.reader import McapRecordings, read_requests

TENTH_NS = 100_000_000


def write_foreign(path, frames, states, *, times=None, camera="/front", encoding="json", position="position"):
    """Write a log as another tool might: frames and JointStates, without anything of ours."""
    times = times or [number * TENTH_NS for number in range(len(frames))]
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        schema = writer.register_schema("foxglove.CompressedImage", "jsonschema", b"{}")
        joints = writer.register_schema("JointState", "jsonschema", b"{}")
        images = writer.register_channel(camera, encoding, schema)
        rows = writer.register_channel("/joint_states", "json", joints)
        for at_ns, frame in zip(times, frames, strict=True):
            writer.add_message(images, at_ns, write_image(frame, camera, at_ns), at_ns)
        for at_ns, row in zip(times, states, strict=False):
            record = {"name": ["hip", "knee"], position: list(row)}
            writer.add_message(rows, at_ns, json.dumps(record).encode(), at_ns)
        writer.finish()
    return path


@pytest.fixture
def frames():
    return np.random.default_rng(3).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def states():
    return [[float(number), -float(number)] for number in range(6)]


def test_what_was_recorded_is_an_episode(write_stream, answered, slide, make_query):
    first = make_query()
    second = slide(first, 2, seed=5)
    recordings = McapRecordings.open(write_stream(answered(query=first), answered(0.2, query=second)))
    assert (len(recordings), recordings.fps, recordings.has_requests) == (1, toy_contract().fps, True)
    assert recordings.state_names == toy_contract().state.names
    episode = recordings.read(0)
    np.testing.assert_array_equal(episode.frames, np.concatenate([first.context, second.context[-2:]]))
    np.testing.assert_array_equal(episode.states, np.concatenate([first.states[:4], second.states[2:4]]))


def test_requests_that_share_nothing_are_episodes_of_their_own(write_stream, answered):
    exchanges = [answered(0.001 * number, content=number) for number in range(3)]
    recordings = McapRecordings.open(write_stream(*exchanges))
    assert len(recordings) == 3
    for number, exchanged in enumerate(exchanges):
        np.testing.assert_array_equal(recordings.read(number).frames, exchanged.query.context)


def test_requests_come_back_as_they_were_asked(write_stream, answered, slide, make_query):
    first = make_query(size=3, steps=2, seed=11)
    asked = [answered(query=first), answered(0.4, query=slide(first, 1, seed=5)), answered(0.9, content=7)]
    read = list(read_requests(write_stream(*asked), "toy"))
    assert [each.received_ns for each in read] == [each.received_ns for each in asked]
    for found, exchanged in zip(read, asked, strict=True):
        query = exchanged.query
        np.testing.assert_array_equal(found.query.context, query.context)
        np.testing.assert_array_equal(found.query.states, query.states)
        assert (found.query.sampling, found.query.ensemble) == (query.sampling, query.ensemble)
        assert found.query.frame_indices == query.frame_indices


def test_a_file_that_was_never_closed_is_read_to_its_end(write_stream, answered, tmp_path):
    exchanges = [answered(number, content=number, frame_indices=(1,)) for number in range(2)]
    whole = write_stream(*exchanges)
    data = whole.read_bytes()
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(data[: data.rindex(b"\x0f" + (4).to_bytes(8, "little"))])  # without the end of the data
    assert len(list(read_requests(cut, "toy"))) == 2
    cut.write_bytes(data[: len(data) // 3])
    assert len(list(read_requests(cut, "toy"))) < 2


def test_logs_of_others_are_read_by_their_times(tmp_path, frames, states):
    recordings = McapRecordings.open(write_foreign(tmp_path / "other.mcap", frames, states))
    assert (len(recordings), recordings.state_names, recordings.has_requests) == (1, ("hip", "knee"), False)
    assert recordings.fps == pytest.approx(10)
    episode = recordings.read(0)
    np.testing.assert_array_equal(episode.frames, frames)
    np.testing.assert_array_equal(episode.states, np.float32(states))


def test_a_gap_is_never_crossed(tmp_path, frames, states):
    times = [number * TENTH_NS + (number >= 4) * 3 * TENTH_NS for number in range(6)]
    recordings = McapRecordings.open(write_foreign(tmp_path / "other.mcap", frames, states, times=times))
    np.testing.assert_array_equal(recordings.read(0).frames, frames[:4])
    np.testing.assert_array_equal(recordings.read(1).frames, frames[4:])
    with pytest.raises(DatasetError, match="episodes 0 to 1, 2 was asked"):
        recordings.read(2)


def test_a_frame_has_the_newest_states_at_its_time_and_none_before_the_first(tmp_path, frames, states):
    path = tmp_path / "other.mcap"
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        images = writer.register_channel(
            "/front", "json", writer.register_schema("foxglove.CompressedImage", "jsonschema", b"{}")
        )
        rows = writer.register_channel("/rows", "json", 0)
        for number, frame in enumerate(frames):
            writer.add_message(images, number * 10, write_image(frame, "front", number * 10), 0)
        for at_ns, value in ((15, 1.0), (30, 2.0), (31, 3.0)):
            writer.add_message(rows, at_ns, json.dumps({"values": [value]}).encode(), 0)
        writer.finish()
    episode = McapRecordings.open(path).read(0)
    np.testing.assert_array_equal(episode.frames, frames[2:])
    assert episode.states.ravel().tolist() == [1.0, 2.0, 3.0, 3.0]


def test_a_camera_is_named_where_there_are_several(tmp_path, write_stream, answered, frames, states):
    path = write_foreign(tmp_path / "other.mcap", frames, states, camera="/robot/wrist")
    assert McapRecordings.open(path, "wrist").camera_topic == "/robot/wrist"
    with pytest.raises(DatasetError, match="name one camera of /robot/wrist"):
        McapRecordings.open(path, "front")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"encoding": "cdr"}, "/front is written as cdr"), ({"position": "effort"}, "values or position, found none")],
)
def test_what_cannot_be_read_is_named(tmp_path, frames, states, options, words):
    path = write_foreign(tmp_path / "other.mcap", frames, states, **options)
    with pytest.raises(DatasetError, match=words):
        McapRecordings.open(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.mcap"
    for content in (b"", b"no log at all, but long enough to be one", bytes(100)):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=r"other\.mcap"):
            McapRecordings.open(path)
