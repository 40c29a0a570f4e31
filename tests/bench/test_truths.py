"""Every question has pixels of its own, of which its right answer is computed."""

import numpy as np
import pytest
from peers.truths import Truths


@pytest.fixture
def truths(tmp_path):
    return Truths(2, tmp_path, "rows", 1)


def test_no_two_contents_have_the_same_pixels_and_none_is_a_level_off(truths):
    frames = [truths.request(content, 1).frames for content in range(600)]
    assert len({each.tobytes() for each in frames}) == len(frames)
    for content, each in enumerate(frames):
        clip = truths.clips[content % 2].frames[:4]
        assert np.abs(each.astype(int) - clip).max() <= 1


def test_a_right_answer_is_of_the_very_question_and_kept(truths, tmp_path):
    answer = truths.mean(2, 2)
    assert answer.shape == (8, 64, 64, 3)
    assert np.abs(answer.astype(int) - truths.mean(0, 2)).max() > 0
    again = Truths(2, tmp_path, "an arrangement that nobody can open", 1)
    np.testing.assert_array_equal(again.mean(2, 2), answer)
