from itertools import product

import numpy as np
import pytest

from foreframe_engines import (
    GridScores,
    ShapeMismatch,
    TokenContext,
    TokenHistory,
    TokenRow,
    first_row,
    gather,
    greedy_rollout,
    grid_states,
    next_row,
    read_history,
    teacher_forced,
)
from foreframe_engines.testing import ToyLikelihoodEngine, toy_contract, toy_tokens

CONTEXT_GRIDS, TARGET_GRIDS = 3, 4


@pytest.fixture
def engine() -> ToyLikelihoodEngine:
    return ToyLikelihoodEngine()


@pytest.fixture
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 6, (CONTEXT_GRIDS + TARGET_GRIDS, 4))


@pytest.fixture
def states() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((CONTEXT_GRIDS + TARGET_GRIDS, 3), dtype=np.float32)


def context_of(engine: ToyLikelihoodEngine, ids: np.ndarray, states: np.ndarray) -> TokenContext:
    return read_history(engine, ids[:CONTEXT_GRIDS], states[:CONTEXT_GRIDS])


def assert_equal_scores(scores: GridScores, others: GridScores) -> None:
    for name in ("log_probability", "greedy", "top_log_mass", "is_in_top"):
        np.testing.assert_array_equal(getattr(scores, name), getattr(others, name), err_msg=name)


def test_a_grid_of_a_cosmos_window_has_the_mean_states_of_its_frames() -> None:
    tokens = toy_tokens(window_frames=17, window_grids=3)
    states = np.random.default_rng(2).standard_normal((34, 25)).astype(np.float32)
    spans = [(0, 1), (1, 9), (9, 17), (17, 18), (18, 26), (26, 34)]
    expected = np.stack([states[start:end].mean(axis=0, dtype=np.float64) for start, end in spans])
    averaged = grid_states(states, tokens)
    assert averaged.dtype == np.float32
    np.testing.assert_allclose(averaged, expected, rtol=1e-6)


def test_the_states_of_windows_of_one_frame_stay_as_they_are(states: np.ndarray) -> None:
    np.testing.assert_array_equal(grid_states(states, toy_tokens()), states)


@pytest.mark.parametrize("num_frames", [0, 1, 3, 18])
def test_states_of_a_part_of_a_window_are_refused(num_frames: int) -> None:
    with pytest.raises(ShapeMismatch, match="whole windows of 17"):
        grid_states(np.zeros((num_frames, 3), np.float32), toy_tokens(window_frames=17, window_grids=3))


def test_a_context_has_read_all_but_its_last_grid(
    engine: ToyLikelihoodEngine, ids: np.ndarray, states: np.ndarray
) -> None:
    context = context_of(engine, ids, states)
    assert (context.num_grids, context.history.num_grids) == (3, 2)
    assert engine.read_rows == [1, 1]
    np.testing.assert_array_equal(context.last_ids, ids[2])
    np.testing.assert_array_equal(context.last_states, states[2])
    assert context.num_bytes == 2 * 2 * 4 * 4 + 4 * 8 + 3 * 4


def test_a_context_of_one_grid_has_read_nothing(
    engine: ToyLikelihoodEngine, ids: np.ndarray, states: np.ndarray
) -> None:
    context = read_history(engine, ids[:1], states[:1])
    assert (context.num_grids, context.history.num_grids, engine.read_rows) == (1, 0, [])


def test_a_context_keeps_nothing_else_of_what_it_was_made_from(
    engine: ToyLikelihoodEngine, ids: np.ndarray, states: np.ndarray
) -> None:
    context = context_of(engine, ids, states)
    assert context.last_ids.base is None
    assert context.last_states.base is None


@pytest.mark.parametrize("top_k", [None, 2])
def test_teacher_forcing_equals_reading_everything_anew_for_every_grid(
    engine: ToyLikelihoodEngine, ids: np.ndarray, states: np.ndarray, top_k: int | None
) -> None:
    anew = []
    for place in range(CONTEXT_GRIDS, len(ids)):
        seen = read_history(engine, ids[:place], states[:place])
        anew += engine.read([first_row(seen, states[place], ids[place], top_k)])
    context = context_of(engine, ids, states)
    scores = teacher_forced(engine, context, ids[CONTEXT_GRIDS:], states[CONTEXT_GRIDS:], top_k)
    assert_equal_scores(scores, gather(anew))
    assert scores.log_probability.shape == (TARGET_GRIDS, 4)


def test_a_greedy_rollout_is_teacher_forcing_on_its_own_ids(
    engine: ToyLikelihoodEngine, ids: np.ndarray, states: np.ndarray
) -> None:
    context = context_of(engine, ids, states)
    rolled = greedy_rollout(engine, context, states[CONTEXT_GRIDS:], top_k=2)
    assert_equal_scores(rolled, teacher_forced(engine, context, rolled.greedy, states[CONTEXT_GRIDS:], 2))


def test_targets_of_a_greedy_rollout_are_scored_but_not_read(
    engine: ToyLikelihoodEngine, ids: np.ndarray, states: np.ndarray
) -> None:
    context = context_of(engine, ids, states)
    future, targets = states[CONTEXT_GRIDS:], ids[CONTEXT_GRIDS:]
    rolled = greedy_rollout(engine, context, future, targets)
    forced = teacher_forced(engine, context, targets, future)
    np.testing.assert_array_equal(rolled.greedy, greedy_rollout(engine, context, future).greedy)
    np.testing.assert_array_equal(rolled.log_probability[0], forced.log_probability[0])
    assert (rolled.log_probability[1:] != forced.log_probability[1:]).any()
    last_seen = teacher_forced(engine, context, np.vstack([rolled.greedy[:3], targets[3:]]), future)
    np.testing.assert_array_equal(rolled.log_probability[3], last_seen.log_probability[3])


def test_what_happens_later_changes_no_earlier_score(
    engine: ToyLikelihoodEngine, ids: np.ndarray, states: np.ndarray
) -> None:
    context = context_of(engine, ids, states)
    future, targets = states[CONTEXT_GRIDS:], ids[CONTEXT_GRIDS:]
    before = teacher_forced(engine, context, targets, future).log_probability
    other_states, other_ids = future.copy(), targets.copy()
    other_states[2] += 1
    other_ids[2] = (other_ids[2] + 1) % 6
    after_states = teacher_forced(engine, context, targets, other_states).log_probability
    after_ids = teacher_forced(engine, context, other_ids, future).log_probability
    for after in (after_states, after_ids):
        assert [bool((a != b).any()) for a, b in zip(before, after, strict=True)] == [False, False, True, True]


def test_forks_share_the_history_and_do_not_disturb_each_other(
    engine: ToyLikelihoodEngine, ids: np.ndarray, states: np.ndarray
) -> None:
    context = context_of(engine, ids, states)
    held = [array.copy() for array in (*context.history.keys, *context.history.values)]
    alone = greedy_rollout(engine, context, states[CONTEXT_GRIDS:])
    (one, other) = engine.read([first_row(context, states[3]), first_row(context, -states[3])])
    for fork in (one, other):
        shared = zip(fork.history.keys, context.history.keys, strict=False)
        assert all(mine is theirs for mine, theirs in shared)
        assert fork.history.num_grids == CONTEXT_GRIDS
    assert (one.history.values[-1] != other.history.values[-1]).any()
    greedy_rollout(engine, context, -states[CONTEXT_GRIDS:])
    for array, before in zip((*context.history.keys, *context.history.values), held, strict=True):
        np.testing.assert_array_equal(array, before)
    assert_equal_scores(greedy_rollout(engine, context, states[CONTEXT_GRIDS:]), alone)


def test_rows_hold_the_states_of_this_grid_and_of_the_next(
    engine: ToyLikelihoodEngine, ids: np.ndarray, states: np.ndarray
) -> None:
    context = context_of(engine, ids, states)
    row = first_row(context, states[3], ids[3], 2)
    np.testing.assert_array_equal(row.states, states[2:4])
    assert row.history is context.history
    (score,) = engine.read([row])
    after = next_row(score, ids[3], states[3:5], ids[4])
    assert after.history is score.history
    assert after.top_k is None


def test_scores_are_gathered_with_the_top_or_without(engine: ToyLikelihoodEngine, ids: np.ndarray) -> None:
    rows = [TokenRow(ids[0], np.zeros((2, 3), np.float32), TokenHistory(), ids[1], top_k) for top_k in (None, 2)]
    without, with_top = engine.read(rows)
    assert gather([without, without]).top_log_mass is None
    gathered = gather([with_top, with_top])
    assert gathered.top_log_mass is not None
    assert gathered.top_log_mass.shape == (2, 4)
    assert gathered.is_in_top is not None


def test_all_sequences_of_two_grids_have_probability_one_together() -> None:
    engine = ToyLikelihoodEngine(toy_contract(tokens=toy_tokens(grid=(1, 2))))
    rng = np.random.default_rng(3)
    context = read_history(engine, rng.integers(0, 6, (3, 2)), rng.standard_normal((3, 3), dtype=np.float32))
    future = rng.standard_normal((2, 3), dtype=np.float32)
    sequences = np.array(list(product(range(6), repeat=4))).reshape(-1, 2, 2)
    nats = [teacher_forced(engine, context, ids, future).log_probability.sum(dtype=np.float64) for ids in sequences]
    assert len(nats) == 6**4
    assert abs(np.exp(nats).sum() - 1) < 1e-5
    assert np.std(nats) > 0.1
