"""A clip cut into what is seen and what is scored."""

import numpy as np
import pytest

from foreframe_engines import DatasetError
from foreframe_engines.reading import grid_states
from foreframe_server.experiments.token_clips import Split, TokenClip


def test_a_clip_is_cut_at_the_border(likelihood_engine, make_clip):
    clip = make_clip(1)
    tokens = TokenClip.of(likelihood_engine, clip, Split(4, 8))
    ids = likelihood_engine.tokenize(clip.frames)
    np.testing.assert_array_equal(tokens.target, ids[4:])
    np.testing.assert_array_equal(tokens.previous, ids[3:11])
    np.testing.assert_array_equal(tokens.target_states, clip.states[4:])
    context = tokens.read(likelihood_engine)
    assert context.num_grids == 4
    np.testing.assert_array_equal(context.last_ids, ids[3])


def test_windows_of_several_frames_stay_whole(window_engine, make_clip):
    split = Split(3, 6)
    assert (split.num_frames(window_engine.tokens), split.target_frames(window_engine.tokens)) == (15, 10)
    clip = make_clip(1, num_frames=15)
    tokens = TokenClip.of(window_engine, clip, split)
    assert (tokens.ids.shape, tokens.target.shape) == ((9, 4), (6, 4))
    np.testing.assert_array_equal(tokens.states, grid_states(clip.states, window_engine.tokens))


@pytest.mark.parametrize(("split", "words"), [(Split(2, 6), "whole ones"), (Split(3, 12), "at most 12")])
def test_what_the_model_cannot_read_is_refused(window_engine, split, words):
    with pytest.raises(DatasetError, match=words):
        split.num_frames(window_engine.tokens)
