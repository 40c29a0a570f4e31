"""`serve --record`, `replay` and `predict`'s exports, against a server in this process."""

import io
import json
import sys
from types import ModuleType

import numpy as np
import pytest
from mcap.reader import make_reader

from foreframe_client import Client
from foreframe_engines.episodes import Episode
from foreframe_engines.testing import ToyRolloutEngine, toy_contract
from foreframe_engines.testing_lerobot import LeRobotLayout, write_lerobot
from foreframe_server.cli.overrides import read_overridden
from foreframe_server.cli.serving import running_server
from foreframe_server.opening import given
from foreframe_server.recording.log import Log
from foreframe_server.recording.messages import read_image
from foreframe_server.recording.reader import read_notes

CONTRACT = toy_contract()


def read_topics(path):
    """Every message of a file by topic, in the order of writing, with mcap's own reader and its checks."""
    topics = {}
    with path.open("rb") as file:
        reader = make_reader(io.BytesIO(file.read()), validate_crcs=True)
        for _, channel, message in reader.iter_messages(log_time_order=False):
            topics.setdefault(channel.topic, []).append((message.log_time, message.data))
    return topics


def pictures(topics, topic):
    return np.stack([read_image(data, topic) for _, data in topics[topic]])


def toy_episode(seed, num_frames):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (num_frames, 8, 8, 3), dtype=np.uint8)
    states = rng.standard_normal((num_frames, 3), dtype=np.float32)
    return Episode(seed, frames, states, np.zeros(frames.shape[:3], np.uint8), {})


@pytest.fixture
def robot_folder(tmp_path):
    """Two episodes of the toy's size, three and one windows long, at the toy's rate."""
    layout = LeRobotLayout(int(CONTRACT.fps), "head", CONTRACT.state.names)
    write_lerobot(tmp_path / "robot", [toy_episode(0, 14), toy_episode(1, 12)], layout)
    return tmp_path / "robot"


@pytest.fixture
def address():
    with running_server(read_overridden(host="127.0.0.1", port=0), given(ToyRolloutEngine())) as address:
        yield address


@pytest.fixture
def recorded(tmp_path):
    """What a server records of two streams; the folder, and the answers."""
    folder = tmp_path / "record"
    settings = read_overridden(host="127.0.0.1", port=0, record=folder)
    episode = toy_episode(4, 16)
    with running_server(settings, given(ToyRolloutEngine())) as address, Client(address) as client:
        answers = [
            client.predict(
                episode.frames[start : start + 4],
                episode.states[start : start + 4],
                episode.states[start + 4 : start + 12],
                seed=start,
                steps=2,
                stream_id="arm",
            )
            for start in range(3)
        ]
        metrics = client._http.get("/metrics").text
    assert "foreframe_recordings_total" in metrics
    (path,) = folder.iterdir()
    return path, answers


def test_a_recording_server_leaves_frames_states_and_answers(recorded):
    path, answers = recorded
    topics = read_topics(path)
    episode = toy_episode(4, 16)
    np.testing.assert_array_equal(pictures(topics, "/camera/head"), episode.frames[:6])
    rows = [json.loads(data)["values"] for _, data in topics["/state"]]
    np.testing.assert_array_equal(np.float32(rows), episode.states[:6])
    assert len(topics["/requests"]) == len(topics["/predictions"]) == 3
    assert len(topics["/prediction/head"]) == sum(len(answer.frames) for answer in answers)


def test_what_was_recorded_can_be_asked_again_with_the_same_answers(recorded, run_json, address):
    path, answers = recorded
    report = run_json("replay", path, "--to", address, "--as-recorded", "--speed", 0.5)
    (file,) = report["files"]
    assert (file["asked"], file["skipped"], file["psnr_last"]) == (3, 0, None)
    topics = read_topics(path.with_suffix(".replayed.mcap"))
    replayed = pictures(topics, "/prediction/head")
    original = pictures(read_topics(path), "/prediction/head")
    np.testing.assert_array_equal(replayed, original)
    assert len(replayed) == sum(len(answer.frames) for answer in answers)


def test_another_seed_would_be_seen(recorded, run_json, address, tmp_path):
    """The control of the test above."""
    path, _ = recorded
    changed = tmp_path / "changed.mcap"
    with Log(changed, {"fps": str(CONTRACT.fps)}) as log:
        for note in read_notes(path):
            log.write(note.topic, note.schema, note.data.replace(b'"seed":0', b'"seed":99'), note.log_ns)
    run_json("replay", changed, "--to", address, "--as-recorded", "--speed", 0.5)
    replayed = pictures(read_topics(tmp_path / "changed.replayed.mcap"), "/prediction/head")
    original = pictures(read_topics(path), "/prediction/head")
    first = CONTRACT.horizon
    assert not any(np.array_equal(*pair) for pair in zip(replayed[:first], original[:first], strict=True))
    np.testing.assert_array_equal(replayed[first:], original[first:])


def test_a_folder_that_cannot_be_recorded_into_is_one_line(run, tmp_path):
    (tmp_path / "taken").write_text("a file")
    result = run("serve", "--record", tmp_path / "taken", "--port", 0)
    assert result.exit_code == 3
    assert "taken" in result.stderr


def test_a_file_of_text_is_no_recording(run, address, tmp_path):
    (tmp_path / "notes.txt").write_text("not a recording")
    result = run("replay", "notes.txt", "--url", address)
    assert result.exit_code == 3
    assert "notes.txt is no episode (.npz); recordings are .mcap files or folders" in result.stderr


def test_a_robots_data_set_is_played_episode_by_episode(robot_folder, run_json, address, tmp_path):
    report = run_json("replay", robot_folder, "--url", address, "--speed", 5, "--every", 2)
    assert [file["asked"] + file["skipped"] for file in report["files"]] == [2, 1]
    assert all(np.isfinite([file["psnr_last"], file["psnr_copy_last"]]).all() for file in report["files"])
    topics = read_topics(tmp_path / "robot-000001.replayed.mcap")
    episode = toy_episode(1, 12)
    np.testing.assert_array_equal(pictures(topics, "/camera/head"), episode.frames)
    assert len(topics["/prediction/head"]) == CONTRACT.horizon
    step_ns = 1e9 / CONTRACT.fps
    first_ns = topics["/prediction/head"][0][0]
    assert first_ns == pytest.approx(CONTRACT.context_frames * step_ns, abs=10)


def test_one_episode_is_played_when_it_is_named(robot_folder, run_json, address, tmp_path):
    out = tmp_path / "logs"
    report = run_json("replay", robot_folder, "--to", address, "--episode", 1, "--speed", 100, "--out", out)
    assert [file["file"] for file in report["files"]] == [str(out / "robot-000001.replayed.mcap")]


def test_a_replay_is_a_log_that_can_be_replayed(robot_folder, run_json, address, tmp_path):
    run_json("replay", robot_folder, "--to", address, "--episode", 0, "--speed", 100)
    report = run_json("replay", tmp_path / "robot-000000.replayed.mcap", "--to", address, "--speed", 100)
    assert report["files"][0]["asked"] >= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--as-recorded",), "holds no requests"),
        (("--camera", "tail"), "no camera 'tail'"),
        (("--episode", "7"), "episodes 0 to 1, 7 was asked"),
    ],
)
def test_what_cannot_be_played_is_said_in_one_line(robot_folder, run, address, arguments, words):
    result = run("replay", robot_folder, "--to", address, *arguments)
    assert result.exit_code == 3
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_recording_of_another_size_is_padded_only_when_asked(tmp_path, run, run_json, address):
    episode = toy_episode(2, 12)
    wide = Episode(2, np.repeat(episode.frames, 2, axis=2), episode.states, np.repeat(episode.masks, 2, axis=2), {})
    write_lerobot(tmp_path / "wide", [wide], LeRobotLayout(int(CONTRACT.fps), "head", CONTRACT.state.names))
    refused = run("replay", tmp_path / "wide", "--to", address)
    assert refused.exit_code == 3
    assert "are not the model's" in refused.stderr
    assert run_json("replay", tmp_path / "wide", "--to", address, "--pad")["files"][0]["asked"] == 1


def test_a_prediction_is_exported_as_mcap(run_json, clips_file, tmp_path):
    run_json("predict", clips_file, "--strategy", "posterior_mean", "--mcap", tmp_path / "told.mcap")
    topics = read_topics(tmp_path / "told.mcap")
    assert {name: len(messages) for name, messages in topics.items()} == {
        "/state": 12,
        "/camera/head": 12,
        "/prediction/head": 8,
        "/predictions": 1,
    }


class Rerun(ModuleType):
    """What this project calls of rerun-sdk, writing down what it is told."""

    def __init__(self):
        super().__init__("rerun")
        self.logged, self.now_s, self.saved = [], None, None

    def RecordingStream(self, application):  # noqa: N802 - rerun's name
        self.application = application
        return self

    def save(self, path):
        self.saved = path

    def set_time(self, timeline, *, duration):
        self.now_s = duration

    def log(self, entity, content):
        self.logged.append((self.now_s, entity, content))

    def flush(self):
        self.is_flushed = True

    @staticmethod
    def Image(pixels):  # noqa: N802 - rerun's name
        return pixels

    Scalars = list


def test_a_prediction_is_exported_to_rerun(run_json, clips_file, tmp_path, monkeypatch):
    rerun = Rerun()
    monkeypatch.setitem(sys.modules, "rerun", rerun)
    run_json("predict", clips_file, "--strategy", "posterior_mean", "--rerun", tmp_path / "told.rrd")
    assert (rerun.saved, rerun.is_flushed) == (str(tmp_path / "told.rrd"), True)
    entities = [entity for _, entity, _ in rerun.logged]
    assert {entity: entities.count(entity) for entity in entities} == {
        "seen": 12,
        "states": 12,
        "predicted": 8,
        "spread": 8,
    }
    seen_s = [now_s for now_s, entity, _ in rerun.logged if entity == "seen"]
    predicted_s = [now_s for now_s, entity, _ in rerun.logged if entity == "predicted"]
    assert predicted_s == pytest.approx(seen_s[4:])


@pytest.mark.parametrize(
    ("package", "arguments", "words"),
    [
        ("rerun", ("predict", "--rerun", "x.rrd"), "pip install 'foreframe[rerun]'"),
        ("mcap", ("predict", "--mcap", "x.mcap"), "pip install 'foreframe[data]'"),
        ("mcap", ("serve", "--record", "logs", "--port", "0"), "pip install 'foreframe[data]'"),
        ("mcap", ("replay", "x.npz", "--to", "http://127.0.0.1:1"), "pip install 'foreframe[data]'"),
    ],
)
def test_a_missing_package_is_one_line_that_says_how_to_get_it(run, monkeypatch, package, arguments, words):
    for name in [name for name in sys.modules if name.startswith(("mcap", "foreframe_server.recording"))]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("foreframe_server.cli.exports", "foreframe_server.cli.replay"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    arguments = (*arguments, "--strategy", "posterior_mean") if arguments[0] == "predict" else arguments
    result = run(*arguments)
    assert result.exit_code == 3
    assert words in result.stderr
    assert result.stderr.count("\n") <= 2
