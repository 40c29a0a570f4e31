"""1X tokenised shards: recordings as Cosmos ids, with states and segment ids. Knows no model and no tokenizer.

    DIR/videos/video_{k}.bin    int32 `w 3 32 32`, no header: a window of ids for every 17 frames

The other files are those of raw shards, and the sub-folders may be left out likewise. Windows do not overlap; the
last one of a shard may stand for fewer frames and is not used. Source: 1x-technologies/world_model_tokenized_data.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, Int64

from foreframe_engines.errors import DatasetError
from foreframe_engines.reading import grid_states
from foreframe_engines.types import TokenSpec
from foreframe_models.data.raw_shards import (
    HZ,
    METADATA,
    SEGMENTS,
    STATES,
    VIDEOS,
    RawShard,
    find_raw_shards,
)

WINDOW_FRAMES, WINDOW_GRIDS = 17, 3
_ITEM_BYTES = 4


@dataclass(frozen=True, slots=True, eq=False)
class GridClips:
    """Clips b: ids int64 and the states averaged over each grid's frames, in physical units."""

    ids: Int64[np.ndarray, "b t s"]
    states: Float32[np.ndarray, "b t n"]


@dataclass(frozen=True, slots=True, eq=False)
class TokenShard:
    """One shard, mapped from disk: windows w of g grids, a row of states a frame, and where clips begin."""

    name: str
    ids: Int32[np.ndarray, "w g s"]
    states: Float32[np.ndarray, "f n"]
    starts: Int64[np.ndarray, " c"]


@dataclass(frozen=True, slots=True, eq=False)
class TokenShards:
    """Every clip of a data set, numbered through its shards: `num_windows` in a row, all of one segment."""

    shards: tuple[TokenShard, ...]
    tokens: TokenSpec
    num_windows: int

    def __len__(self) -> int:
        return sum(len(shard.starts) for shard in self.shards)

    @property
    def num_frames(self) -> int:
        """How many frames were recorded."""
        return sum(len(shard.states) for shard in self.shards)

    def read(self, numbers: Sequence[int]) -> GridClips:
        """Read clips by number. Raises DatasetError for ids beyond the vocabulary and states that are not finite."""
        ids, states = zip(*(self._clip(number) for number in numbers), strict=True)
        return GridClips(np.stack(ids), np.stack(states))

    def spread_rows(self, count: int) -> Float32[np.ndarray, "r n"]:
        """Return about `count` rows of states, spread evenly over the recordings."""
        stride = max(1, self.num_frames // count)
        return np.concatenate([shard.states[::stride] for shard in self.shards])

    def extremes(self) -> Float32[np.ndarray, "2 n"]:
        """Return the least and the greatest value of each state over all frames."""
        low = np.min([shard.states.min(axis=0) for shard in self.shards], axis=0)
        return np.stack([low, np.max([shard.states.max(axis=0) for shard in self.shards], axis=0)])

    def _clip(self, number: int) -> tuple[Int64[np.ndarray, "t s"], Float32[np.ndarray, "t n"]]:
        ends = np.cumsum([len(shard.starts) for shard in self.shards])
        which = int(np.searchsorted(ends, number, side="right"))
        shard = self.shards[which]
        start = int(shard.starts[number - int(ends[which]) + len(shard.starts)])
        length = self.tokens.window_frames
        ids = shard.ids[start : start + self.num_windows].reshape(-1, self.tokens.tokens)
        states = shard.states[start * length : (start + self.num_windows) * length]
        _check_clip(shard.name, ids, states, self.tokens.vocabulary)
        return ids.astype(np.int64), grid_states(states, self.tokens)


def open_token_shards(folder: Path, tokens: TokenSpec, num_windows: int = 2) -> TokenShards:
    """Map every shard of a folder. Raises DatasetError naming a file that is missing or not as its metadata says.

    `tokens` says how windows became ids; of the published set, `cosmos_tokens()`.
    """
    shards = TokenShards(
        tuple(_open_shard(shard, tokens, num_windows) for shard in find_raw_shards(folder, ".bin")), tokens, num_windows
    )
    if not len(shards):
        raise DatasetError(f"{folder} holds no {num_windows} windows in a row in one segment")
    return shards


def cosmos_tokens(num_tokens: int = 1024, vocabulary: int = 64_000) -> TokenSpec:
    """Say how the windows of tokenised shards became ids; only sizes are told, as ids are not turned back."""
    return TokenSpec((vocabulary,), (1, num_tokens), WINDOW_FRAMES, WINDOW_GRIDS, max_grids=6, max_candidates=1)


def shuffled(total: int, seed: int, first: int, count: int) -> list[int]:
    """Return the numbers at places `first` and after of an endless series of passes, each over all in a new order."""
    places = (divmod(place, total) for place in range(first, first + count))
    return [int(_order(total, seed, epoch)[index]) for epoch, index in places]


def save_token_shard(
    folder: Path,
    index: int,
    ids: Int32[np.ndarray, "w g y x"],
    states: Float32[np.ndarray, "f n"],
    segments: Int32[np.ndarray, " f"],
) -> None:
    """Write one shard in sub-folders, and `metadata.json`; `ids` hold the rest of the frames in a last window."""
    for name in (VIDEOS, STATES, SEGMENTS, METADATA):
        (folder / name).mkdir(parents=True, exist_ok=True)
    ids.astype("<i4").tofile(folder / VIDEOS / f"video_{index}.bin")
    states.astype("<f4").tofile(folder / STATES / f"states_{index}.bin")
    segments.astype("<i4").tofile(folder / SEGMENTS / f"segment_idx_{index}.bin")
    record = {"shard_num_frames": len(states), "shard_ind": index}
    (folder / METADATA / f"metadata_{index}.json").write_text(json.dumps(record))
    shards = find_raw_shards(folder, ".bin")
    total = {"num_shards": len(shards), "hz": HZ, "num_images": sum(shard.num_frames for shard in shards)}
    (folder / "metadata.json").write_text(json.dumps(total))


def _open_shard(shard: RawShard, tokens: TokenSpec, num_windows: int) -> TokenShard:
    ids, segments = _map_ids(shard, tokens), shard.read_segments()
    length = tokens.window_frames
    starts = np.arange(max(0, shard.num_frames // length - num_windows + 1))
    is_whole = segments[starts * length] == segments[(starts + num_windows) * length - 1]
    return TokenShard(shard.video.name, ids, shard.read_states(), starts[is_whole])


def _map_ids(shard: RawShard, tokens: TokenSpec) -> Int32[np.ndarray, "w g s"]:
    """Map a shard's whole windows; one for the frames that are left over may follow."""
    window_bytes = tokens.window_grids * tokens.tokens * _ITEM_BYTES
    held, rest = divmod(shard.video.stat().st_size, window_bytes)
    whole, left_over = divmod(shard.num_frames, tokens.window_frames)
    if rest or held not in (whole, whole + (left_over > 0)):
        raise DatasetError(
            f"{shard.video.name} does not hold {whole} windows of {tokens.window_grids} x {tokens.tokens} int32 "
            f"for its {shard.num_frames} frames"
        )
    if not held:
        raise DatasetError(f"{shard.video.name} is empty")
    return np.memmap(shard.video, "<i4", "r", shape=(held, tokens.window_grids, tokens.tokens))


def _check_clip(name: str, ids: Int32[np.ndarray, "t s"], states: Float32[np.ndarray, "f n"], vocabulary: int) -> None:
    least, greatest = int(ids.min()), int(ids.max())
    if least < 0 or greatest >= vocabulary:
        raise DatasetError(f"{name} holds the id {least if least < 0 else greatest}; ids are 0 to {vocabulary - 1}")
    if not np.isfinite(states).all():
        raise DatasetError(f"the states of {name} are not all finite")


@lru_cache(maxsize=2)
def _order(total: int, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    return np.random.default_rng((seed, epoch)).permutation(total)
