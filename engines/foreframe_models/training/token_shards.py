"""Train the paper-size token model on tokenised 1X shards: a window of three grids seen, the three of the next to come.

Source: arXiv 2510.07092, compression track: 24 blocks, from scratch, teacher forcing, 80 epochs. Its learning rate,
batch and regularisation are not published; those here are this project's.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foreframe_engines.contract_json import StateStatistics
from foreframe_engines.errors import DatasetError
from foreframe_models.data.token_shards import (
    WINDOW_GRIDS,
    TokenShards,
    cosmos_tokens,
    open_token_shards,
    shuffled,
)
from foreframe_models.st_transformer import cosmos_st_config
from foreframe_models.token_checkpoint import TokenCheckpoint
from foreframe_models.training.data import state_statistics
from foreframe_models.training.likelihood import LikelihoodRecipe, TokenClips, run_token_model, token_trainer
from foreframe_models.training.loop import RECIPE_FILE, LoopConfig, Progress, Rank, write_json

EPOCHS = 80
DATA_FILE = "data.json"
"""How much a run trains on, so that a resumed one goes on with the same."""
_STATISTICS_ROWS = 200_000
_HELD_OUT_CLIPS = 40


@dataclass(frozen=True, slots=True, eq=False)
class ShardData:
    """What a run trains on; without `held_out` nothing is measured on the way."""

    train: TokenShards
    held_out: TokenShards | None = None


def cosmos_recipe() -> LikelihoodRecipe:
    """Return the recipe of the paper-size model, to be given its steps by `for_epochs`."""
    return LikelihoodRecipe(
        model=cosmos_st_config(),
        loop=LoopConfig(
            steps=1, lr=6e-4, warmup_steps=2_000, ema_decay=0.9999, evaluate_every=2_000, checkpoint_every=500
        ),
        batch_size=512,
        num_grids=6,
        state_dropout=0.0,
        context_grids=3,
        micro_batch=4,
    )


def num_steps(epochs: float, num_clips: int, batch_size: int) -> int:
    """Return how many steps see every clip so many times."""
    return max(1, round(epochs * num_clips / batch_size))


def open_data(recipe: LikelihoodRecipe, train: Path, held_out: Path | None) -> ShardData:
    """Map the shards in the sizes of a recipe. Raises DatasetError."""
    windows, rest = divmod(recipe.num_grids, WINDOW_GRIDS)
    if rest or not 0 < recipe.context_grids < recipe.num_grids:
        raise DatasetError(
            f"clips of {recipe.num_grids} grids, {recipe.context_grids} of them seen, are not whole windows "
            f"of {WINDOW_GRIDS} with something to predict"
        )
    tokens = cosmos_tokens(recipe.model.tokens, recipe.model.vocabulary)
    folders = [train] if held_out is None else [train, held_out]
    data = ShardData(*(open_token_shards(folder, tokens, windows) for folder in folders))
    for shards in (data.train, data.held_out):
        _check_states(recipe, shards)
    return data


def train_on_shards(
    recipe: LikelihoodRecipe, data: ShardData, folder: Path, device: torch.device | None = None
) -> Iterator[Progress]:
    """Train and leave `model.safetensors` (averaged weights), `model.json` and `stats.json` in the folder.

    Every pass sees each clip once, in an order that the seed decides. Yields progress; on the processor by default.
    Raises DatasetError when the run in the folder was made from other data, or a batch is smaller than the processes.
    """
    rank = Rank.join()
    if recipe.batch_size % rank.count:
        raise DatasetError(f"a batch of {recipe.batch_size} cannot be shared by {rank.count} processes")
    statistics = shard_statistics(data.train)
    counts = {"clips": len(data.train), "frames": data.train.num_frames}
    _check_same_data(counts, folder / DATA_FILE)
    if rank.is_first:
        write_json(folder / RECIPE_FILE, asdict(recipe))
        write_json(folder / DATA_FILE, counts)
    trainer = token_trainer(recipe, statistics, folder, device)
    held_out = None if data.held_out is None else spread(data.held_out, statistics)

    def draw(step: int, rank: Rank) -> tuple[Tensor, Tensor]:
        size = recipe.batch_size // rank.count
        first = step * recipe.batch_size + rank.index * size
        return read(data.train, shuffled(len(data.train), recipe.loop.seed, first, size), statistics)

    yield from run_token_model(trainer, recipe, draw, held_out)
    if rank.is_first:
        trainer.save_counts(recipe.batch_size, counts)
        TokenCheckpoint(trainer.ema, _statistics_file(statistics)).save(folder)


def shard_statistics(shards: TokenShards) -> dict[str, list[float]]:
    """Describe the states of a data set: extremes of all rows, the rest from rows spread over it.

    Raises DatasetError when a state is not finite.
    """
    extremes = shards.extremes()
    if not np.isfinite(extremes).all():
        raise DatasetError("the states of the shards are not all finite")
    low, high = extremes.tolist()
    return {**state_statistics(shards.spread_rows(_STATISTICS_ROWS)), "low": low, "high": high}


def spread(shards: TokenShards, statistics: Mapping[str, list[float]], count: int = _HELD_OUT_CLIPS) -> TokenClips:
    """Read clips spread evenly over a data set, each as an episode of its own."""
    numbers = np.linspace(0, len(shards) - 1, min(count, len(shards))).round().astype(int).tolist()
    ids, states = read(shards, numbers, statistics)
    return TokenClips(ids, states, ids.shape[1])


def read(shards: TokenShards, numbers: list[int], statistics: Mapping[str, list[float]]) -> tuple[Tensor, Tensor]:
    """Read clips by number: ids `b t s` and states `b t n`, normalised by the training states' statistics."""
    clips = shards.read(numbers)
    mean, std = (torch.tensor(statistics[name]) for name in ("mean", "std"))
    return torch.from_numpy(clips.ids), (torch.from_numpy(clips.states) - mean) / std.clamp(min=1e-6)


def _check_same_data(counts: Mapping[str, int], path: Path) -> None:
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != counts:
        raise DatasetError(f"{path} tells of other data than {counts['clips']} clips; train into another folder")


def _check_states(recipe: LikelihoodRecipe, shards: TokenShards | None) -> None:
    for shard in () if shards is None else shards.shards:
        if shard.states.shape[1] != recipe.model.state.num_states:
            raise DatasetError(
                f"the states of {shard.name} have {shard.states.shape[1]} values, "
                f"the model takes {recipe.model.state.num_states}"
            )


def _statistics_file(statistics: Mapping[str, list[float]]) -> StateStatistics:
    """Turn the statistics into those of a bundle, where a state that never changes counts as deviating a little."""
    rows = {name: np.array(row, np.float32) for name, row in statistics.items()}
    return StateStatistics(**{**rows, "std": np.maximum(rows["std"], np.float32(1e-6))})
