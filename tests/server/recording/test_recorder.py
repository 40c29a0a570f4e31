"""The recorder's thread: a file a stream, bounds that drop and count, and failures that stop nothing."""

from dataclasses import dataclass, replace

import pytest

from foreframe_engines.testing import toy_contract
from foreframe_server.calls import Call
from foreframe_server.metrics import Metrics
from foreframe_server.recording import recorder as recorder_module
from foreframe_server.recording.recorder import Recorder


@dataclass(frozen=True)
class Limits:
    max_pending_bytes: int = 2**30
    max_bytes: int = 2**30


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def counted(metrics):
    def count(result):
        return metrics.registry.get_sample_value("foreframe_recordings_total", {"result": result}) or 0

    return count


@pytest.fixture
def open_recorder(tmp_path, metrics):
    def make(limits=None, folder=tmp_path / "record"):
        return Recorder(folder, toy_contract(), metrics, limits or Limits())

    return make


def offer(recorder, exchanged, *, stream_id=None, key=""):
    call = Call(exchanged.request_id, 0.0, key=key)
    recorder.offer(replace(exchanged.query, stream_id=stream_id), call, exchanged.answer)


def record(recorder, *offers):
    recorder.start()
    for exchanged, options in offers:
        offer(recorder, exchanged, **options)
    recorder.close()


def test_every_stream_has_a_file_and_every_caller_its_own(tmp_path, open_recorder, answered, read_log, counted):
    streams = [{"stream_id": "left/arm"}, {"stream_id": "left/arm", "key": "other"}, {"stream_id": None}]
    record(open_recorder(), *((answered(), options) for options in streams * 2))
    files = sorted((tmp_path / "record").iterdir())
    assert len(files) == 3
    assert sum("left_arm" in path.name for path in files) == 2
    assert all(sum(message.topic == "/requests" for message in read_log(path)) == 2 for path in files)
    assert counted("written") == 6


def test_what_waits_beyond_the_bound_is_dropped_and_counted(open_recorder, answered, counted):
    exchanged = answered()
    recorder = open_recorder(Limits(max_pending_bytes=2 * exchanged.num_bytes))
    for _ in range(5):  # nothing is written before it is started
        offer(recorder, exchanged)
    recorder.start()
    recorder.close()
    assert (counted("written"), counted("dropped")) == (2, 3)


def test_what_was_written_makes_room(open_recorder, answered, counted):
    exchanged = answered()
    recorder = open_recorder(Limits(max_pending_bytes=exchanged.num_bytes))
    recorder.start()
    offer(recorder, exchanged)
    recorder.close()
    assert recorder._pending_bytes == 0
    assert (counted("written"), counted("dropped")) == (1, 0)


def test_a_full_budget_on_disk_ends_the_writing(open_recorder, answered, counted):
    record(open_recorder(Limits(max_bytes=1)), *((answered(content=number), {}) for number in range(3)))
    assert (counted("written"), counted("full")) == (0, 3) or (counted("written"), counted("full")) == (1, 2)


def test_a_failure_is_counted_and_the_next_one_is_tried(tmp_path, open_recorder, answered, counted, logs):
    folder = tmp_path / "record"
    recorder = open_recorder()
    folder.rmdir()
    record(recorder, (answered(), {}))
    assert counted("failed") == 1
    assert [entry["event"] for entry in logs] == ["an exchange could not be recorded"]
    record(open_recorder(), (answered(), {}))
    assert counted("written") == 1


def test_streams_beyond_the_open_files_go_on_in_new_ones(tmp_path, open_recorder, answered, monkeypatch, read_log):
    monkeypatch.setattr(recorder_module, "MAX_OPEN_FILES", 1)
    names = ["a", "b", "a"]
    record(open_recorder(), *((answered(), {"stream_id": name}) for name in names))
    files = sorted((tmp_path / "record").iterdir())
    assert len(files) == 3
    assert all(read_log(path) for path in files)
