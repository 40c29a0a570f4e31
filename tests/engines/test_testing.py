from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from foreframe_engines import (
    LikelihoodEngine,
    ModelFault,
    Query,
    ShapeMismatch,
    TokenHistory,
    TokenRow,
    TokenSpec,
    sample,
)
from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine, toy_contract, toy_tokens

MakeQuery = Callable[..., Query]
MakeRow = Callable[..., TokenRow]


def test_every_part_of_a_query_reaches_the_toys_frames(make_query: MakeQuery) -> None:
    query = make_query(size=2)
    variants = [
        query,
        replace(query, context=255 - query.context),
        replace(query, states=-query.states),
        replace(query, sampling=replace(query.sampling, seed=99)),
        replace(query, sampling=replace(query.sampling, steps=7)),
    ]
    assert len({sample(ToyRolloutEngine(), variant).frames.tobytes() for variant in variants}) == len(variants)


def test_each_future_row_of_the_states_moves_its_own_frame(make_query: MakeQuery) -> None:
    query = make_query()
    changed = query.states.copy()
    changed[4 + 2] += 1
    before, after = (sample(ToyRolloutEngine(), one).frames for one in (query, replace(query, states=changed)))
    assert [bool((a != b).any()) for a, b in zip(before, after, strict=True)] == [index == 2 for index in range(8)]


def test_missing_future_rows_repeat_the_last(make_query: MakeQuery) -> None:
    query = make_query(future_rows=3)
    repeated = replace(query, states=np.concatenate([query.states, np.repeat(query.states[-1:], 5, axis=0)]))
    frames = [sample(ToyRolloutEngine(), one).frames.tobytes() for one in (query, repeated)]
    assert frames[0] == frames[1]


def test_a_toy_of_another_contract_keeps_it() -> None:
    contract = toy_contract(size=16, context_frames=2, horizon=3, state_dim=5)
    engine = ToyRolloutEngine(contract)
    latents = engine.encode(np.zeros((2, 16, 16, 3), np.uint8))
    assert latents.shape == (2, *contract.latent_shape)
    assert latents.min() == latents.max() == -1
    conditioning = engine.condition(latents, np.zeros((5, 5), np.float32))
    start = engine.initial_latents(conditioning, np.zeros(engine.noise_shape(), np.float32))
    assert engine.decode([start, start], [1, 3]).shape == (2, 2, 16, 16, 3)


def test_the_toy_remembers_that_it_was_closed() -> None:
    engine = ToyRolloutEngine()
    assert not engine.is_closed
    engine.close()
    assert engine.is_closed


@pytest.mark.parametrize(
    "tokens",
    [toy_tokens(), toy_tokens(levels=(8, 5), grid=(4, 2)), toy_tokens(window_frames=17, window_grids=3)],
)
def test_a_toys_frames_are_those_of_its_ids(tokens: TokenSpec) -> None:
    engine = ToyLikelihoodEngine(toy_contract(tokens=tokens))
    ids = np.random.default_rng(0).integers(0, tokens.vocabulary, (2 * tokens.window_grids, tokens.tokens))
    frames = engine.detokenize(ids)
    assert (frames.shape, frames.dtype) == ((2 * tokens.window_frames, 8, 8, 3), np.uint8)
    np.testing.assert_array_equal(engine.tokenize(frames), ids)


def test_a_toy_takes_whole_windows_only() -> None:
    engine = ToyLikelihoodEngine(toy_contract(tokens=toy_tokens(window_frames=17, window_grids=3)))
    with pytest.raises(ShapeMismatch, match="16 frames"):
        engine.tokenize(np.zeros((16, 8, 8, 3), np.uint8))
    with pytest.raises(ShapeMismatch, match="2 grids"):
        engine.detokenize(np.zeros((2, 4), np.int64))


def test_every_part_of_a_row_reaches_the_toys_score(make_row: MakeRow) -> None:
    engine = ToyLikelihoodEngine()
    first, second = engine.read([make_row(1, tokens=engine.tokens), make_row(2, tokens=engine.tokens)])
    row = make_row(3, tokens=engine.tokens, history=first.history)
    (third,) = engine.read([row])
    variants = [
        row,
        replace(row, ids=(row.ids + 1) % 6),
        replace(row, states=row.states * np.array([[1], [-1]], np.float32)),
        replace(row, states=row.states * np.array([[-1], [1]], np.float32)),
        replace(row, target=(row.target + 1) % 6),
        replace(row, target=None),
        replace(row, history=second.history),
        replace(row, history=third.history),
        replace(row, history=TokenHistory()),
    ]
    assert len({score.log_probability.tobytes() for score in engine.read(variants)}) == len(variants)


def test_a_toys_ids_have_probability_one_together_at_every_place(make_row: MakeRow) -> None:
    engine = ToyLikelihoodEngine()
    row = make_row(4, tokens=engine.tokens)
    scores = engine.read([replace(row, target=np.full(4, token)) for token in range(6)])
    every = np.exp(np.stack([score.log_probability for score in scores], axis=1))
    np.testing.assert_allclose(every.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(scores[0].greedy, every.argmax(axis=1))


@pytest.mark.parametrize("k", [1, 2, 6])
def test_a_toys_top_holds_its_likeliest_ids(make_row: MakeRow, k: int) -> None:
    engine = ToyLikelihoodEngine()
    row = make_row(5, tokens=engine.tokens, top_k=k)
    scores = engine.read([replace(row, target=np.full(4, token)) for token in range(6)])
    every = np.exp(np.stack([score.log_probability for score in scores], axis=1))
    is_in_top = np.stack([score.is_in_top for score in scores], axis=1)
    np.testing.assert_array_equal(is_in_top.sum(axis=1), k)
    np.testing.assert_allclose(np.exp(scores[0].top_log_mass), (every * is_in_top).sum(axis=1), rtol=1e-5)


def test_states_that_are_not_finite_are_a_toys_model_fault(make_row: MakeRow) -> None:
    engine = ToyLikelihoodEngine()
    row = make_row(6, tokens=engine.tokens)
    with pytest.raises(ModelFault, match="not finite"):
        engine.read([row, replace(row, states=row.states * np.nan)])


def test_a_toy_tells_what_it_is_about_to_read_and_what_it_read(make_row: MakeRow) -> None:
    seen: list[int] = []
    engine = ToyLikelihoodEngine(read_hook=lambda rows: seen.append(len(rows)))
    assert isinstance(engine, LikelihoodEngine)
    engine.read([make_row(seed, tokens=engine.tokens) for seed in range(3)])
    engine.read([make_row(tokens=engine.tokens)])
    assert seen == engine.read_rows == [3, 1]
    assert engine.calls["read"] == 2
    engine.close()
    assert engine.is_closed


def test_a_contract_without_tokens_makes_no_likelihood_toy() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        ToyLikelihoodEngine(toy_contract())
