"""Drawing by (seed, step, rank), pixels to tensors and back, statistics and PSNR."""

from pathlib import Path

import numpy as np
import pytest
import torch

from foreframe_engines.episodes import Episode, save_episode, write_dataset_card
from foreframe_engines.errors import DatasetError
from foreframe_models.training.data import EpisodeTensors, psnr, state_statistics, step_rng, to_input


def test_a_steps_draw_depends_on_seed_step_and_rank_alone() -> None:
    draws = {
        key: tuple(step_rng(*key).integers(1 << 30, size=4)) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    }
    assert len(set(draws.values())) == 4
    assert draws == {key: tuple(step_rng(*key).integers(1 << 30, size=4)) for key in draws}


def test_every_grey_level_has_its_own_value_between_minus_one_and_one() -> None:
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    pictures = to_input(frames)
    assert pictures.shape == (1, 3, 16, 16)
    assert (pictures.min(), pictures.max()) == (-1.0, 1.0)
    np.testing.assert_array_equal(((pictures + 1.0) * 127.5).round().movedim(1, -1).numpy(), frames)


def test_statistics_are_exact_in_float32_and_ordered() -> None:
    states = np.random.default_rng(0).standard_normal((4, 50, 3), dtype=np.float32)
    statistics = {name: np.array(row) for name, row in state_statistics(states).items()}
    np.testing.assert_allclose(statistics["mean"], states.mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(statistics["std"], states.std((0, 1)), atol=1e-6)
    ordered = np.stack([statistics[name] for name in ("low", "q01", "q99", "high")])
    assert (np.diff(ordered, axis=0) > 0).all()
    for row in statistics.values():
        np.testing.assert_array_equal(row.astype(np.float32), row)


def test_psnr_of_a_mean_squared_error() -> None:
    assert psnr(0.01) == pytest.approx(20.0)
    assert psnr(torch.tensor(1.0)) == 0.0
    assert psnr(0.0) == pytest.approx(120.0)


def test_episodes_are_read_in_seed_order(tmp_path: Path) -> None:
    write_dataset_card(tmp_path, world="test", fps=15, state_names=["x"], labels={})
    for seed in (12, 3, 7):
        frames = np.full((2, 4, 4, 3), seed, np.uint8)
        save_episode(tmp_path, Episode(seed, frames, np.zeros((2, 1), np.float32), frames[..., 0], {}))
    assert EpisodeTensors.load(tmp_path).frames[:, 0, 0, 0, 0].tolist() == [3, 7, 12]
    assert EpisodeTensors.load(tmp_path).num_episodes == 3
    assert EpisodeTensors.load(tmp_path).num_frames == 2


def test_a_folder_without_episodes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        EpisodeTensors.load(tmp_path)
