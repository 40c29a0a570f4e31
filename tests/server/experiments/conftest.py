"""Toys and clips whose answers are known."""

import numpy as np
import pytest

from foreframe_engines.episodes import Clip
from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine, toy_contract, toy_tokens

SIZE = 16


def build_clip(seed, *, start=0, num_frames=12):
    """A picture that drifts, with noise: an id often stays what it was."""
    rng = np.random.default_rng((seed, start))
    picture = rng.integers(0, 200, (SIZE, SIZE, 3))
    frames = np.clip(
        picture + rng.integers(0, 30, (num_frames, 1, 1, 3)) + rng.integers(0, 20, (num_frames, SIZE, SIZE, 3)), 0, 255
    )
    states = rng.standard_normal((num_frames, 3), dtype=np.float32)
    return Clip(seed, start, frames.astype(np.uint8), states, np.zeros((num_frames, SIZE, SIZE), np.uint8))


@pytest.fixture
def make_clip():
    return build_clip


@pytest.fixture
def clips():
    return [build_clip(8_000_000 + episode, start=start) for episode in range(3) for start in range(2)]


@pytest.fixture
def rollout_engine():
    return ToyRolloutEngine(toy_contract(size=SIZE))


@pytest.fixture
def likelihood_engine():
    return ToyLikelihoodEngine(toy_contract(size=SIZE, tokens=toy_tokens()))


@pytest.fixture
def window_engine():
    """Windows of 5 frames make 3 grids, as Cosmos's 17 do."""
    tokens = toy_tokens(window_frames=5, window_grids=3, max_grids=12)
    return ToyLikelihoodEngine(toy_contract(size=SIZE, tokens=tokens))
