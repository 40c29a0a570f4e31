"""Clips of raw shards as cached latents: encoded once, mapped from disk, read in a seeded order.

    DIR/latents_{k}.npy      float16 `n t c y x`, one row a window of shard k
    DIR/latents_{k}.json     what the rows were made of; written last

It knows no model: an encoder is any function of pictures.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float16, Float32, Int64
from torch import Tensor

from foreframe_engines.errors import DatasetError
from foreframe_models.data.raw_shards import RawShard, find_raw_shards, read_clips, window_starts
from foreframe_models.training.data import to_input

Encode = Callable[[Tensor], Tensor]
"""Pictures `1 3 t h w` in -1..1 to normalised latents `1 f c y x`."""


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """Which frames make a clip. `offsets` count from its start; a causal autoencoder needs 4k + 1 of them.

    The default is the paper's 7.5 frames a second: every fourth of 77 frames, the last one twice (paper.md 1.2).
    `stride` frames lie between the starts of neighbouring windows.
    """

    offsets: tuple[int, ...] = (*range(0, 77, 4), 76)
    stride: int = 8

    @property
    def length(self) -> int:
        """Frames of a recording from a clip's first to its last."""
        return self.offsets[-1] + 1

    def starts(self, shard: RawShard) -> Int64[np.ndarray, " n"]:
        """Return the windows of a shard."""
        return window_starts(shard.read_segments(), self.length, self.stride)


@dataclass(frozen=True, slots=True)
class LatentSource:
    """Everything that cached latents depend on besides the data.

    frame_size: height and width. shape: one clip's `t c y x`. encoder: a digest of the autoencoder's weights.
    """

    plan: ClipPlan
    frame_size: tuple[int, int]
    shape: tuple[int, int, int, int]
    encoder: str

    def describe(self, shard: RawShard) -> dict[str, object]:
        """Name a shard's bytes and how they become latents."""
        return {
            "video": _digest(shard.video),
            "segments": _digest(shard.segments),
            "offsets": list(self.plan.offsets),
            "stride": self.plan.stride,
            "shape": list(self.shape),
            "encoder": self.encoder,
        }


@dataclass(frozen=True, slots=True, eq=False)
class LatentShard:
    """Windows n of one shard: latents, their first frames, and the states of every frame."""

    latents: Float16[np.ndarray, "n t c y x"]
    starts: Int64[np.ndarray, " n"]
    states: Float32[np.ndarray, "frames d"]


@dataclass(frozen=True, slots=True, eq=False)
class Clips:
    """Clips b: latents float32 `b t c y x`, physical states float32 `b r d`."""

    latents: Tensor
    states: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LatentClips:
    """Every window of a data set, numbered through its shards; `rows` are a clip's states, counted from its start."""

    shards: tuple[LatentShard, ...]
    rows: tuple[int, ...]

    @property
    def ends(self) -> Int64[np.ndarray, " s"]:
        """The number after each shard's last window."""
        return np.cumsum([len(shard.starts) for shard in self.shards])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read(self, numbers: Sequence[int]) -> Clips:
        """Read windows by number."""
        latents, states = zip(*(self._window(number) for number in numbers), strict=True)
        return Clips(torch.from_numpy(np.stack(latents)).float(), torch.from_numpy(np.stack(states)))

    def shuffled(self, seed: int, places: Sequence[int]) -> list[int]:
        """Return the windows at these places of an endless series of shuffled passes."""
        passes = (divmod(place, len(self)) for place in places)
        return [int(_shuffle(len(self), seed, epoch)[index]) for epoch, index in passes]

    def all_states(self) -> Float32[np.ndarray, "n d"]:
        """Return the states of every frame of every shard."""
        return np.concatenate([shard.states for shard in self.shards])

    def _window(self, number: int) -> tuple[Float16[np.ndarray, "t c y x"], Float32[np.ndarray, "r d"]]:
        ends = self.ends
        which = int(np.searchsorted(ends, number, side="right"))
        shard = self.shards[which]
        index = number - int(ends[which]) + len(shard.starts)
        return shard.latents[index], shard.states[shard.starts[index] + np.asarray(self.rows)]


@dataclass(frozen=True, slots=True)
class LatentCache:
    """A folder of cached latents, made from a data set by one source."""

    folder: Path
    data: Path
    source: LatentSource

    def fill(self, encode: Encode, device: torch.device, *, part: int = 0, parts: int = 1) -> Iterator[int]:
        """Encode what is missing of every `parts`-th shard, yielding the windows done; what is whole is kept.

        Raises DatasetError when a shard was cached from something else, or the disk is too small.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = self._missing(part, parts)
        self._check_space(missing)
        for shard in missing:
            yield from self._fill_shard(shard, encode, device)

    def open(self, rows: tuple[int, ...], num_states: int) -> LatentClips:
        """Map a filled cache. Raises DatasetError when a shard is missing, foreign, or has other states."""
        shards = find_raw_shards(self.data)
        for shard in shards:
            if not self._is_cached(shard):
                raise DatasetError(f"{self.folder} holds no latents of shard {shard.index}")
        clips = LatentClips(tuple(self._open_shard(shard, num_states) for shard in shards), rows)
        if not len(clips):
            raise DatasetError(f"{self.data} holds no window of {self.source.plan.length} frames in one segment")
        return clips

    def count_missing(self, *, part: int = 0, parts: int = 1) -> int:
        """Count the windows that `fill` would encode. Raises DatasetError as it does."""
        return sum(len(self.source.plan.starts(shard)) for shard in self._missing(part, parts))

    def _missing(self, part: int, parts: int) -> list[RawShard]:
        return [shard for shard in find_raw_shards(self.data)[part::parts] if not self._is_cached(shard)]

    def _fill_shard(self, shard: RawShard, encode: Encode, device: torch.device) -> Iterator[int]:
        if shard.frame_size() != self.source.frame_size:
            raise DatasetError(
                f"{shard.video.name} is {_pixels(shard.frame_size())}, others {_pixels(self.source.frame_size)}"
            )
        path, starts = self._path(shard), self.source.plan.starts(shard)
        partial = path.with_suffix(".partial")
        latents = np.lib.format.open_memmap(partial, "w+", np.float16, (len(starts), *self.source.shape))
        for index, clip in enumerate(read_clips(shard, starts, self.source.plan.offsets)):
            latents[index] = _encode(encode, clip, device)
            yield 1
        latents.flush()
        partial.replace(path)
        partial.write_text(json.dumps(self.source.describe(shard)))
        partial.replace(path.with_suffix(".json"))

    def _open_shard(self, shard: RawShard, num_states: int) -> LatentShard:
        states = shard.read_states()
        if states.shape[1] != num_states:
            raise DatasetError(f"{shard.states.name} has {states.shape[1]} states; the model takes {num_states}")
        return LatentShard(np.load(self._path(shard), mmap_mode="r"), self.source.plan.starts(shard), states)

    def _is_cached(self, shard: RawShard) -> bool:
        record = self._path(shard).with_suffix(".json")
        if not record.exists():
            return False
        held, wanted = json.loads(record.read_text()), self.source.describe(shard)
        if held != wanted:
            raise DatasetError(f"{record} was made of another {_difference(held, wanted)}; choose another folder")
        return True

    def _check_space(self, missing: Sequence[RawShard]) -> None:
        clip_bytes = 2 * int(np.prod(self.source.shape))
        needed = clip_bytes * sum(len(self.source.plan.starts(shard)) for shard in missing)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise DatasetError(f"latents need {needed / 1e9:.1f} GB; {self.folder} has {free / 1e9:.1f} GB free")

    def _path(self, shard: RawShard) -> Path:
        return self.folder / f"latents_{shard.index}.npy"


@torch.no_grad()
def _encode(encode: Encode, clip: np.ndarray, device: torch.device) -> Float16[np.ndarray, "t c y x"]:
    pictures = to_input(clip).movedim(0, 1)[None]
    return encode(pictures.to(device))[0].half().cpu().numpy()


@lru_cache(maxsize=2)
def _shuffle(count: int, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    return np.random.default_rng((seed, epoch)).permutation(count)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels"


def _difference(held: Mapping[str, object], wanted: Mapping[str, object]) -> str:
    return next(name for name in wanted if held.get(name) != wanted[name])
