import math

import numpy as np
import pytest

from foreframe_engines import GridScores, TopKDefinition, bits_map, count_nats, top_k_cross_entropy

GRIDS, TOKENS, VOCABULARY = 3, 4, 10


@pytest.fixture
def every() -> np.ndarray:
    """Log probabilities `g s v` by a plain softmax."""
    logits = np.random.default_rng(0).standard_normal((GRIDS, TOKENS, VOCABULARY)) * 2
    return np.log(np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.fixture
def target() -> np.ndarray:
    return np.random.default_rng(1).integers(0, VOCABULARY, (GRIDS, TOKENS))


def scores_of(every: np.ndarray, target: np.ndarray, k: int) -> GridScores:
    ordered = np.sort(every, axis=-1)[..., ::-1]
    found = np.take_along_axis(every, target[..., None], axis=-1)[..., 0]
    return GridScores(
        found.astype(np.float32),
        every.argmax(axis=-1),
        np.log(np.exp(ordered[..., :k]).sum(axis=-1)).astype(np.float32),
        found >= ordered[..., k - 1],
    )


def test_nats_and_bits_are_those_of_a_plain_softmax(every: np.ndarray, target: np.ndarray) -> None:
    costs = np.array([[-every[grid, token, target[grid, token]] for token in range(TOKENS)] for grid in range(GRIDS)])
    scores = scores_of(every, target, 3)
    nats = count_nats(scores, num_pixels=GRIDS * 64)
    assert nats.num_tokens == 12
    assert nats.nats_total == pytest.approx(costs.sum(), rel=1e-6)
    assert nats.bits_total == pytest.approx(costs.sum() / math.log(2), rel=1e-6)
    assert nats.nats_per_token == pytest.approx(costs.mean(), rel=1e-6)
    assert nats.bits_per_grid == pytest.approx(costs.sum(axis=1) / math.log(2), rel=1e-6)
    assert nats.bits_per_pixel == pytest.approx(costs.sum() / math.log(2) / 192, rel=1e-6)
    np.testing.assert_allclose(bits_map(scores), costs / math.log(2), rtol=1e-6)


def test_a_coin_costs_one_bit() -> None:
    scores = GridScores(np.full((1, 8), math.log(0.5), np.float32), np.zeros((1, 8), np.int64))
    nats = count_nats(scores, num_pixels=4)
    assert (nats.bits_total, nats.bits_per_pixel) == (pytest.approx(8), pytest.approx(2))


@pytest.mark.parametrize("k", [1, 3, 9, VOCABULARY])
def test_the_definitions_are_those_of_a_plain_softmax(every: np.ndarray, target: np.ndarray, k: int) -> None:
    inside, escaped, full, escapes, masses = [], [], [], [], []
    for place in np.ndindex(GRIDS, TOKENS):
        p = np.exp(every[place])
        top = np.argsort(-p)[:k]
        mass, chosen = p[top].sum(), p[target[place]]
        masses.append(1 - mass)
        full.append(-math.log(chosen))
        if target[place] in top:
            inside.append(-math.log(chosen / mass))
            escaped.append(-math.log(chosen))
        else:
            escaped.append(-math.log((1 - mass) / (VOCABULARY - k)))
            escapes.append(-math.log(1 - mass))
    expected = {"topk_renormalised": inside, "full_with_escape": escaped, "full_vocabulary": full}
    for definition in TopKDefinition:
        entropy = top_k_cross_entropy(scores_of(every, target, k), k, definition, VOCABULARY)
        assert entropy.value == pytest.approx(np.mean(expected[definition]), rel=1e-5, abs=1e-6)
        assert (entropy.k, entropy.definition) == (k, definition)
        assert entropy.num_outside == len(escapes) == GRIDS * TOKENS - len(inside)
        assert entropy.escape_nats == pytest.approx(sum(escapes) / (GRIDS * TOKENS), rel=1e-5)
        assert entropy.escape_mass == pytest.approx(np.mean(masses), abs=1e-6)


@pytest.mark.parametrize(
    ("definition", "is_code"),
    [("full_with_escape", True), ("full_vocabulary", True), ("topk_renormalised", False)],
)
def test_the_definitions_that_cost_every_id_are_codes(every: np.ndarray, definition: str, is_code: bool) -> None:
    costs = [
        top_k_cross_entropy(
            scores_of(every[:1, :1], np.array([[token]]), 3), 3, TopKDefinition(definition), VOCABULARY
        ).value
        for token in range(VOCABULARY)
    ]
    assert (None not in costs) == is_code
    assert sum(math.exp(-cost) for cost in costs if cost is not None) == pytest.approx(1, abs=1e-5)


def test_the_whole_vocabulary_leaves_nothing_outside(every: np.ndarray, target: np.ndarray) -> None:
    results = [
        top_k_cross_entropy(scores_of(every, target, VOCABULARY), VOCABULARY, definition, VOCABULARY)
        for definition in TopKDefinition
    ]
    assert [result.num_outside for result in results] == [0, 0, 0]
    assert [result.escape_nats for result in results] == [0, 0, 0]
    assert {round(result.value or -1, 5) for result in results} == {round(results[2].value or -2, 5)}


def test_targets_that_all_lie_outside_leave_no_renormalised_value(every: np.ndarray) -> None:
    scores = scores_of(every, every.argmin(axis=-1), 3)
    renormalised, escaped, full = (
        top_k_cross_entropy(scores, 3, definition, VOCABULARY) for definition in TopKDefinition
    )
    assert renormalised.value is None
    assert renormalised.num_outside == escaped.num_outside == 12
    assert escaped.value == pytest.approx(escaped.escape_nats + math.log(VOCABULARY - 3))
    assert full.value is not None
    assert full.value > 0


@pytest.mark.parametrize("definition", TopKDefinition)
def test_a_mass_rounded_up_to_one_costs_no_infinity(definition: TopKDefinition) -> None:
    one, masses = np.ones((1, 1), np.float32), np.array([[0, 1e-7]], np.float32)
    scores = GridScores(np.concatenate([-30 * one, -0.5 * one], 1), np.zeros((1, 2), np.int64), masses, masses > 0)
    entropy = top_k_cross_entropy(scores, 3, definition, VOCABULARY)
    assert entropy.value is not None
    assert math.isfinite(entropy.value)
    assert entropy.escape_nats == pytest.approx(15)
    assert entropy.escape_mass == 0


def test_scores_without_a_top_are_refused(every: np.ndarray, target: np.ndarray) -> None:
    scores = scores_of(every, target, 3)
    bare = GridScores(scores.log_probability, scores.greedy)
    with pytest.raises(ValueError, match="without top_k"):
        top_k_cross_entropy(bare, 3, TopKDefinition.FULL_VOCABULARY, VOCABULARY)


@pytest.mark.parametrize("k", [0, VOCABULARY + 1])
def test_a_k_outside_the_vocabulary_is_refused(every: np.ndarray, target: np.ndarray, k: int) -> None:
    with pytest.raises(ValueError, match="not 1 to 10"):
        top_k_cross_entropy(scores_of(every, target, 3), k, TopKDefinition.FULL_VOCABULARY, VOCABULARY)
