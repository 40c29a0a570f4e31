"""Counting models: normalised, right in worlds whose best answer is known, and no better than they may be."""

import math

import numpy as np
import pytest

from foreframe_server.token_baselines import Counts, Places, fit_baselines

VOCABULARY, TOKENS = 12, 4
NAMES = ("uniform", "unigram", "per_position", "copy_previous", "bigram")


def episodes(seed, draw_next, count=30, length=20):
    """Roll worlds forward: `draw_next(rng, grid)` gives the grid after."""
    rng = np.random.default_rng(seed)
    worlds = []
    for _ in range(count):
        grids = [rng.integers(0, VOCABULARY, TOKENS)]
        for _ in range(length - 1):
            grids.append(draw_next(rng, grids[-1]))
        worlds.append(np.stack(grids))
    return worlds


def uniform_world(rng, grid):
    return rng.integers(0, VOCABULARY, TOKENS)


def skewed_world(rng, grid):
    weights = 0.6 ** np.arange(VOCABULARY)
    return rng.choice(VOCABULARY, TOKENS, p=weights / weights.sum())


def positional_world(rng, grid):
    return 3 * np.arange(TOKENS) + rng.integers(0, 3, TOKENS)


def sticky_world(rng, grid):
    return np.where(rng.random(TOKENS) < 0.7, grid, rng.integers(0, VOCABULARY, TOKENS))


def turning_world(rng, grid):
    return np.where(rng.random(TOKENS) < 0.9, (grid + 1) % VOCABULARY, rng.integers(0, VOCABULARY, TOKENS))


def costs_in(world, train_count=30):
    train, validation, test = (episodes(seed, world, count) for seed, count in ((0, train_count), (1, 10), (2, 100)))
    places = Places(np.concatenate([each[:-1] for each in test]), np.concatenate([each[1:] for each in test]))
    baselines = fit_baselines(train, validation, VOCABULARY)
    assert tuple(each.name for each in baselines) == NAMES
    return {each.name: float(each.nats(places).mean()) for each in baselines}


@pytest.mark.parametrize("world", [uniform_world, skewed_world, positional_world, sticky_world, turning_world])
def test_probabilities_sum_to_one_over_the_vocabulary(world):
    baselines = fit_baselines(episodes(0, world), episodes(1, world, 5), VOCABULARY)
    previous = episodes(2, world, 1)[0][:1]
    for baseline in baselines:
        total = sum(baseline.probability(Places(previous, np.full_like(previous, id_))) for id_ in range(VOCABULARY))
        np.testing.assert_allclose(total, 1, atol=1e-12)


def test_uniform_costs_the_log_of_the_vocabulary():
    assert costs_in(skewed_world)["uniform"] == pytest.approx(math.log(VOCABULARY))


def test_nothing_beats_uniform_where_there_is_nothing_to_know():
    costs = costs_in(uniform_world)
    for name in NAMES:
        assert costs[name] == pytest.approx(math.log(VOCABULARY), abs=0.03)


def test_unigram_reaches_the_entropy_of_a_skewed_world():
    weights = 0.6 ** np.arange(VOCABULARY)
    weights /= weights.sum()
    costs = costs_in(skewed_world)
    assert costs["unigram"] == pytest.approx(-(weights * np.log(weights)).sum(), abs=0.05)
    assert costs["per_position"] < costs["unigram"] + 0.02


def test_per_position_reaches_the_entropy_where_positions_differ():
    costs = costs_in(positional_world)
    assert costs["per_position"] == pytest.approx(math.log(3), abs=0.03)
    assert costs["unigram"] > math.log(3) + 1


def test_copying_reaches_the_entropy_of_a_sticky_world():
    stays = 0.7 + 0.3 / VOCABULARY
    entropy = -stays * math.log(stays) - (1 - stays) * math.log(0.3 / VOCABULARY)
    costs = costs_in(sticky_world)
    assert costs["copy_previous"] == pytest.approx(entropy, abs=0.05)
    assert costs["copy_previous"] < costs["per_position"] - 0.5
    assert costs["bigram"] < costs["copy_previous"] + 0.05


def test_the_bigram_reaches_the_entropy_where_ids_turn():
    stays = 0.9 + 0.1 / VOCABULARY
    entropy = -stays * math.log(stays) - (1 - stays) * math.log(0.1 / VOCABULARY)
    costs = costs_in(turning_world, train_count=100)
    assert costs["bigram"] == pytest.approx(entropy, abs=0.06)
    assert costs["copy_previous"] > costs["bigram"] + 1


def test_the_copy_share_is_what_validation_says():
    train = episodes(0, uniform_world)
    copies = fit_baselines(train, episodes(1, sticky_world, 20), VOCABULARY)[3].chosen
    assert copies["copy_share"] == pytest.approx(0.7, abs=0.06)


def test_unseen_ids_are_not_impossible():
    train = [np.zeros((5, TOKENS), np.int64)]
    places = Places(np.full((1, TOKENS), 11), np.full((1, TOKENS), 10))
    for baseline in fit_baselines(train, episodes(1, uniform_world, 3), VOCABULARY):
        assert np.isfinite(baseline.nats(places)).all()


def test_counts_are_those_of_a_table():
    rng = np.random.default_rng(0)
    portions = [(rng.integers(0, 5, 40), rng.integers(0, 7, 40)) for _ in range(3)]
    counts, table = Counts.of(iter(portions), 7), np.zeros((6, 7), np.int64)
    for causes, ids in portions:
        np.add.at(table, (causes, ids), 1)
    causes, ids = (each.ravel() for each in np.meshgrid(np.arange(6), np.arange(7), indexing="ij"))
    np.testing.assert_array_equal(counts.of_pair(causes, ids), table[causes, ids])
    np.testing.assert_array_equal(counts.of_cause(np.arange(6)), table.sum(axis=1))
