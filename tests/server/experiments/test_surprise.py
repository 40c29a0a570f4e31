"""Bits of held-out grids: those of the plain loop, clip by clip."""

import numpy as np

from foreframe_engines.reading import read_history, teacher_forced
from foreframe_server.experiments.surprise import bits_of_clips
from foreframe_server.experiments.token_clips import Split


def test_bits_are_those_of_the_plain_loop(likelihood_engine, clips):
    found = list(bits_of_clips(likelihood_engine, clips, Split(4, 8)))
    assert [len(each) for each in found] == [8] * 6
    for clip, bits in zip(clips, found, strict=True):
        ids = likelihood_engine.tokenize(clip.frames)
        context = read_history(likelihood_engine, ids[:4], clip.states[:4])
        scores = teacher_forced(likelihood_engine, context, ids[4:], clip.states[4:])
        np.testing.assert_allclose(bits, -scores.log_probability.sum(axis=1) / np.log(2), rtol=1e-6)
