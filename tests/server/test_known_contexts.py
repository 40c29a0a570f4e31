"""Contexts that were encoded before are found by their content, and never by another's."""

import numpy as np
import pytest

from foreframe_server.known_contexts import KnownContexts, context_digest

SMALL, LARGE = (4, 8, 8, 3), (4, 256, 256, 3)


@pytest.fixture
def known():
    return KnownContexts(2**24)


def frames(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("shape", [SMALL, LARGE, (1, 3, 3, 3)])
def test_a_context_is_found_by_its_content(known, shape):
    latents = np.ones(3, np.float32)
    known.put(frames(shape), latents)
    assert known.get(frames(shape)) is latents
    assert known.get(frames(shape, seed=1)) is None


def test_contexts_of_the_same_sum_are_told_apart(known):
    context = frames(SMALL)
    words = context.reshape(-1).view(np.uint64)
    other = np.concatenate([words[::-1]]).view(np.uint8).reshape(SMALL)
    assert np.add.reduce(other.reshape(-1).view(np.uint64)) == np.add.reduce(words)
    known.put(context, np.ones(3, np.float32))
    assert known.get(other) is None


def test_the_last_bytes_count_where_they_fill_no_word(known):
    context = np.zeros((1, 1, 3, 3), np.uint8)
    other = context.copy()
    other[0, 0, 2, 2] = 1
    known.put(context, np.ones(3, np.float32))
    assert known.get(other) is None


def test_a_context_that_is_written_to_later_is_still_found_by_what_it_was(known):
    context = frames(SMALL)
    latents = np.ones(3, np.float32)
    known.put(context, latents)
    context += 1
    assert known.get(frames(SMALL)) is latents
    assert known.get(context) is None


def test_frames_that_are_kept_count_as_memory():
    known = KnownContexts(frames(SMALL).nbytes * 3)
    for seed in range(4):
        known.put(frames(SMALL, seed), np.ones(3, np.float32))
    assert known.get(frames(SMALL, 0)) is None
    assert known.get(frames(SMALL, 3)) is not None


def test_a_digest_that_is_known_stands_for_a_large_context(known):
    latents = np.ones(3, np.float32)
    known.put(frames(LARGE), latents, context_digest(frames(LARGE)))
    assert known.get(frames(LARGE)) is latents
    assert known.get(frames(LARGE, seed=1), context_digest(frames(LARGE))) is latents
    assert known.get(frames(LARGE), context_digest(frames(LARGE, seed=1))) is None


def test_small_contexts_are_compared_whatever_their_digest(known):
    known.put(frames(SMALL), np.ones(3, np.float32), b"digest")
    assert known.get(frames(SMALL, seed=1), b"digest") is None
