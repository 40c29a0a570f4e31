"""Bodies hold what was asked; contents and runs differ, and equal ones are equal to the byte."""

import numpy as np
import pytest

from foreframe_server.codec.documents import read_document
from foreframe_server.codec.media import Media
from foreframe_server.load.questions import MAX_CONTENTS, Questions, Sizes
from foreframe_server.load.traces import Ask

SIZES = Sizes("toy", "1", "head", 8, 8, 4, 8, 4, (0.0, 1.0, 2.0), (1.0, 1.0, 0.5))


@pytest.fixture
def questions():
    return Questions(SIZES, seed=3, nonce=1000)


def read(body):
    return read_document(body, Media.MSGPACK, max_values=10_000)


def test_a_question_holds_what_was_asked(questions):
    ask = Ask(
        members=3,
        steps=5,
        deadline_ms=250,
        on_deadline="partial",
        priority="bulk",
        stream_id="robot-1",
        cache="bypass",
    )
    document = read(questions.write(ask, 7))
    assert document["ensemble"] == {"size": 3}
    assert document["sampling"] == {"strategy": "sample", "seed": 3 * MAX_CONTENTS + 7, "steps": 5}
    names = ("deadline_ms", "on_deadline", "priority", "stream_id", "cache")
    assert [document[name] for name in names] == [250, "partial", "bulk", "robot-1", "bypass"]


def test_what_is_left_open_is_left_out(questions):
    assert not {"deadline_ms", "stream_id"} & set(read(questions.write(Ask(), 0)))


def test_a_posterior_mean_has_no_ensemble(questions):
    assert "ensemble" not in read(questions.write(Ask(strategy="posterior_mean"), 0))


def test_pictures_and_seeds_of_two_contents_differ(questions):
    one, other = (read(questions.write(Ask(), content)) for content in (1, 2))
    frames = [each["observation"]["cameras"]["head"]["data"] for each in (one, other)]
    assert frames[0].shape == (4, 8, 8, 3)
    assert not np.array_equal(*frames)
    assert one["sampling"]["seed"] != other["sampling"]["seed"]


def test_runs_differ_and_equal_contents_of_one_run_do_not(questions):
    assert questions.write(Ask(), 1) == questions.write(Ask(), 1)
    assert questions.write(Ask(), 1) != Questions(SIZES, seed=3, nonce=1001).write(Ask(), 1)


def test_questions_of_two_runs_of_one_seed_are_the_same_but_for_eight_bytes(questions):
    one, other = (read(each.write(Ask(), 1)) for each in (questions, Questions(SIZES, seed=3, nonce=2**64 - 1)))
    frames = [each["observation"]["cameras"]["head"].pop("data").reshape(-1) for each in (one, other)]
    assert 0 < np.count_nonzero(frames[0] != frames[1]) <= 8
    np.testing.assert_array_equal(frames[0][8:], frames[1][8:])
    assert one["sampling"]["seed"] == other["sampling"]["seed"]
    assert questions.write(Ask(), 1) != Questions(SIZES, seed=4, nonce=1000).write(Ask(), 1)
