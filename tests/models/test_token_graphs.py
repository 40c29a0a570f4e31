"""The likelihood half of an exported bundle gives on ONNX Runtime what it gives on torch, and what the model means."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from foreframe_engines import Bundle
from foreframe_engines.likelihood import GraphLikelihoodEngine, open_likelihood_engine
from foreframe_engines.types import TokenHistory, TokenRow
from foreframe_models.reference import open_reference_likelihood_engine

GRIDS, TOKENS, NUM_STATES, VOCABULARY = 5, 4, 6, 24


@pytest.fixture(scope="module")
def engine(exported) -> Iterator[GraphLikelihoodEngine]:
    engine = open_likelihood_engine(Bundle.open(exported.folder), num_threads=1)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reference(exported) -> Iterator[GraphLikelihoodEngine]:
    engine = open_reference_likelihood_engine(exported.folder)
    yield engine
    engine.close()


def draw_clip(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, VOCABULARY, (GRIDS, TOKENS)), rng.standard_normal((GRIDS, NUM_STATES), dtype=np.float32)


def read_all(engine: GraphLikelihoodEngine, ids: np.ndarray, states: np.ndarray, top_k: int | None = None) -> list:
    history, scores = TokenHistory(), []
    for grid in range(GRIDS - 1):
        row = TokenRow(ids[grid], states[grid : grid + 2], history, ids[grid + 1], top_k)
        (score,) = engine.read([row])
        history = score.history
        scores.append(score)
    return scores


def test_both_runtimes_tokenize_and_decode_alike(
    engine: GraphLikelihoodEngine, reference: GraphLikelihoodEngine
) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    ids = engine.tokenize(frames)
    assert (ids.shape, ids.dtype) == ((6, TOKENS), np.int64)
    np.testing.assert_array_equal(ids, reference.tokenize(frames))
    assert len(np.unique(ids)) > 3
    decoded = engine.detokenize(ids)
    assert np.abs(decoded.astype(int) - reference.detokenize(ids)).max() <= 1
    assert decoded.std() > 5


def test_both_runtimes_score_alike(engine: GraphLikelihoodEngine, reference: GraphLikelihoodEngine) -> None:
    clip = draw_clip()
    for ours, expected in zip(read_all(engine, *clip, top_k=5), read_all(reference, *clip, top_k=5), strict=True):
        np.testing.assert_allclose(ours.log_probability, expected.log_probability, atol=1e-4)
        np.testing.assert_array_equal(ours.greedy, expected.greedy)
        np.testing.assert_allclose(ours.top_log_mass, expected.top_log_mass, atol=1e-4)
        np.testing.assert_array_equal(ours.is_in_top, expected.is_in_top)


@torch.no_grad()
def test_cached_reading_is_the_models_own_likelihood(exported, engine: GraphLikelihoodEngine) -> None:
    ids, states = draw_clip(2)
    model = exported.tokens.likelihood
    hidden = model(torch.from_numpy(ids[None, :-1]), model.normalise(torch.from_numpy(states[None])))
    expected = model.head.log_probability(hidden, torch.from_numpy(ids[None, 1:]))[0].numpy()
    every = model.head.all_log_probabilities(hidden)[0].numpy()
    for grid, score in enumerate(read_all(engine, ids, states, top_k=3)):
        np.testing.assert_allclose(score.log_probability, expected[grid], atol=1e-4)
        top = np.sort(every[grid], axis=-1)[:, -3:]
        np.testing.assert_allclose(score.top_log_mass, np.log(np.exp(top).sum(-1)), atol=1e-4)
        np.testing.assert_array_equal(score.is_in_top, expected[grid] >= top[:, 0] - 1e-6)


def test_without_a_target_the_greedy_ids_are_scored(engine: GraphLikelihoodEngine) -> None:
    ids, states = draw_clip(3)
    (free,) = engine.read([TokenRow(ids[0], states[:2], TokenHistory())])
    (given,) = engine.read([TokenRow(ids[0], states[:2], TokenHistory(), target=free.greedy)])
    np.testing.assert_array_equal(free.log_probability, given.log_probability)


def test_a_wrong_state_row_is_noticed(engine: GraphLikelihoodEngine) -> None:
    ids, states = draw_clip(4)
    (right,) = engine.read([TokenRow(ids[0], states[:2], TokenHistory(), ids[1])])
    (swapped,) = engine.read([TokenRow(ids[0], states[1::-1].copy(), TokenHistory(), ids[1])])
    assert np.abs(right.log_probability - swapped.log_probability).max() > 1e-3
