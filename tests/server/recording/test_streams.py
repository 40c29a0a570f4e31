"""What a stream's file holds: every frame once, requests whole, predictions at the times that they are of."""

import json
import stat
from dataclasses import replace

import numpy as np
import pytest

from foreframe_engines.testing import toy_contract
from foreframe_server.recording.messages import read_image

STEP_NS = round(1e9 / toy_contract().fps)


def topic(messages, name):
    return [message for message in messages if message.topic == name]


def picture(message):
    return read_image(json.dumps(message.record).encode(), message.topic)


def test_one_exchange_is_all_there_under_foxgloves_names(write_stream, read_log, answered):
    exchanged = answered()
    messages = read_log(write_stream(exchanged))
    seen, future = topic(messages, "/camera/head"), topic(messages, "/prediction/head")
    assert {message.schema for message in seen + future} == {"foxglove.CompressedImage"}
    np.testing.assert_array_equal([picture(message) for message in seen], exchanged.query.context)
    np.testing.assert_array_equal([picture(message) for message in future], exchanged.answer.prediction.frames)
    rows = [message.record["values"] for message in topic(messages, "/state")]
    np.testing.assert_array_equal(np.float32(rows), exchanged.query.states[:4])
    (asked,), (told,) = topic(messages, "/requests"), topic(messages, "/predictions")
    np.testing.assert_array_equal(np.float32(asked.record["states"]), exchanged.query.states)
    assert told.record["request_id"] == asked.record["request_id"] == "request-0.0"
    assert (told.record["members"], told.record["timings_ms"]["denoise"]) == (1, 2.0)


def test_frames_are_of_the_times_at_which_they_were_or_will_be_seen(write_stream, read_log, answered):
    exchanged = answered()
    messages = read_log(write_stream(exchanged))
    now_ns = exchanged.received_ns
    assert [message.log_ns for message in topic(messages, "/camera/head")] == [
        now_ns - back * STEP_NS for back in (3, 2, 1, 0)
    ]
    assert [message.log_ns for message in topic(messages, "/prediction/head")] == [
        now_ns + ahead * STEP_NS for ahead in exchanged.query.frame_indices
    ]


def test_frames_that_two_requests_saw_are_written_once(write_stream, read_log, answered, slide, make_query):
    first = make_query()
    second = slide(first, 1, seed=5)
    messages = read_log(write_stream(answered(query=first), answered(0.1, query=second)))
    seen = topic(messages, "/camera/head")
    assert len(seen) == 5
    np.testing.assert_array_equal(picture(seen[-1]), second.context[-1])
    asked = topic(messages, "/requests")
    assert asked[1].record["context"][:3] == asked[0].record["context"][1:]
    assert {message.record["segment"] for message in topic(messages, "/state")} == {0}


def test_requests_that_share_nothing_begin_another_segment(write_stream, read_log, answered):
    messages = read_log(write_stream(answered(), answered(1.0, content=9)))
    assert [message.record["segment"] for message in topic(messages, "/state")] == [0] * 4 + [1] * 4


def test_an_equal_picture_with_other_states_is_another_moment(write_stream, read_log, answered, make_query):
    first = make_query()
    second = replace(first, states=first.states + 1)
    messages = read_log(write_stream(answered(query=first), answered(1.0, query=second)))
    assert len(topic(messages, "/camera/head")) == 8


def test_times_never_stand_still_however_fast_requests_come(write_stream, read_log, answered):
    messages = read_log(write_stream(*(answered(content=number) for number in range(3))))
    times = [message.log_ns for message in topic(messages, "/camera/head")]
    assert len(set(times)) == len(times) == 12


def test_a_repeated_request_writes_no_frame_twice(write_stream, read_log, answered):
    messages = read_log(write_stream(answered(), answered(0.5)))
    assert (len(topic(messages, "/camera/head")), len(topic(messages, "/requests"))) == (4, 2)


def test_a_file_is_its_owners_alone_and_never_written_over(write_stream, answered):
    path = write_stream(answered())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        write_stream(answered())
