"""Cached latents of windows: what is cached, how it is read, and when a cache is not taken."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from foreframe_engines.errors import DatasetError
from foreframe_models.data.latent_clips import ClipPlan, LatentCache, LatentSource
from foreframe_models.data.raw_shards import save_raw_shard

PLAN = ClipPlan(offsets=(0, 2, 4, 6, 6), stride=2)
SOURCE = LatentSource(PLAN, (16, 16), (2, 3, 2, 2), "first encoder")
CPU = torch.device("cpu")


def encode(pictures: Tensor) -> Tensor:
    """One latent of the first frame, one of the mean of the others; every eighth pixel."""
    frames = torch.stack([pictures[:, :, 0], pictures[:, :, 1:].mean(2)], dim=1)
    return frames[..., ::8, ::8]


def refuse(pictures: Tensor) -> Tensor:
    raise AssertionError(f"{len(pictures)} clips are encoded again")


def write_shards(folder: Path, *lengths: int) -> Path:
    """Plain grey frames; a state row holds shard and frame."""
    for index, length in enumerate(lengths):
        greys = np.random.default_rng(index).integers(0, 256, (length, 1, 1, 1), dtype=np.uint8)
        states = np.stack([np.full(length, index), np.arange(length)], axis=1).astype(np.float32)
        segments = np.where(np.arange(length) < 12, 1, 3).astype(np.int32)
        save_raw_shard(folder, index, np.broadcast_to(greys, (length, 16, 16, 3)), states, segments)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> LatentCache:
    return LatentCache(tmp_path / "latents", write_shards(tmp_path / "data", 24, 10), SOURCE)


def fill(cache: LatentCache, encoder: Callable[[Tensor], Tensor] = encode) -> int:
    return sum(cache.fill(encoder, CPU))


def test_every_window_is_cached_once_and_read_with_its_states(cache: LatentCache) -> None:
    assert cache.count_missing() == 8
    assert fill(cache) == 8  # starts 0, 2, 4, 12, 14, 16 of shard 0; 0, 2 of shard 1
    clips = cache.open(PLAN.offsets, 2)
    assert len(clips) == 8
    read = clips.read([7, 0, 3])
    assert read.latents.shape == (3, 2, 3, 2, 2)
    assert (read.latents.dtype, read.states.dtype) == (torch.float32, torch.float32)
    assert read.states[..., 0].tolist() == [[1.0] * 5, [0.0] * 5, [0.0] * 5]
    assert read.states[..., 1].tolist() == [[2, 4, 6, 8, 8], [0, 2, 4, 6, 6], [12, 14, 16, 18, 18]]
    greys = np.random.default_rng(0).integers(0, 256, 24, dtype=np.uint8) / 127.5 - 1.0
    assert read.latents[1, 0].mean().item() == pytest.approx(greys[0], abs=0.03)
    assert read.latents[2, 1].mean().item() == pytest.approx(greys[[14, 16, 18, 18]].mean(), abs=0.03)
    assert clips.all_states().shape == (34, 2)


def test_every_state_row_between_first_and_last_frame_can_be_asked_for(cache: LatentCache) -> None:
    fill(cache)
    states = cache.open(tuple(range(7)), 2).read([1]).states
    assert states[0, :, 1].tolist() == [2, 3, 4, 5, 6, 7, 8]


def test_what_is_cached_is_not_encoded_again_and_an_interrupted_shard_is(cache: LatentCache) -> None:
    for done, _ in enumerate(cache.fill(encode, CPU), 1):
        if done == 7:  # the second shard is half done
            break
    with pytest.raises(DatasetError, match="no latents of shard 1"):
        cache.open(PLAN.offsets, 2)
    assert cache.count_missing() == fill(cache) == 2
    assert cache.count_missing() == 0
    assert fill(cache, refuse) == 0


def test_processes_share_the_shards_out(cache: LatentCache) -> None:
    assert [cache.count_missing(part=part, parts=2) for part in (0, 1)] == [6, 2]
    assert [sum(cache.fill(encode, CPU, part=part, parts=2)) for part in (0, 1)] == [6, 2]
    assert len(cache.open(PLAN.offsets, 2)) == 8


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"encoder": "another"}, "encoder"),
        ({"plan": replace(PLAN, stride=4)}, "stride"),
        ({"plan": replace(PLAN, offsets=(0, 1, 2, 3, 4))}, "offsets"),
        ({"shape": (2, 3, 4, 4)}, "shape"),
    ],
)
def test_a_cache_of_another_source_is_refused(cache: LatentCache, change: dict[str, object], what: str) -> None:
    fill(cache)
    other = replace(cache, source=replace(SOURCE, **change))  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match=f"another {what}"):
        fill(other)
    with pytest.raises(DatasetError, match=f"another {what}"):
        other.open(PLAN.offsets, 2)


def test_a_cache_of_another_video_is_refused(cache: LatentCache) -> None:
    fill(cache)
    video = cache.data / "videos/video_1.mp4"
    content = bytearray(video.read_bytes())
    content[-1] ^= 1
    video.write_bytes(content)
    with pytest.raises(DatasetError, match=r"latents_1\.json was made of another video"):
        cache.open(PLAN.offsets, 2)


def test_other_states_than_the_models_and_data_without_windows_are_refused(cache: LatentCache, tmp_path: Path) -> None:
    fill(cache)
    with pytest.raises(DatasetError, match="has 2 states; the model takes 25"):
        cache.open(PLAN.offsets, 25)
    empty = LatentCache(tmp_path / "none", write_shards(tmp_path / "short", 6), SOURCE)
    assert fill(empty) == 0
    with pytest.raises(DatasetError, match="no window of 7 frames in one segment"):
        empty.open(PLAN.offsets, 2)


def test_videos_of_another_size_are_refused(cache: LatentCache) -> None:
    other = replace(cache, source=replace(SOURCE, frame_size=(32, 16)))
    with pytest.raises(DatasetError, match=r"video_0\.mp4 is 16 x 16 pixels, others 32 x 16"):
        fill(other)


def test_a_disk_that_is_too_small_is_told_with_numbers_before_work_begins(cache: LatentCache) -> None:
    huge = replace(cache, source=replace(SOURCE, shape=(1_000_000, 48, 32, 320)))
    with pytest.raises(DatasetError, match=r"latents need 7864\.3 GB; .* GB free"):
        fill(huge, refuse)


def test_a_pass_holds_every_window_once_and_the_next_one_in_another_order(cache: LatentCache) -> None:
    fill(cache)
    clips = cache.open(PLAN.offsets, 2)
    series = clips.shuffled(3, range(24))
    assert [Counter(series[start : start + 8]) for start in (0, 8, 16)] == [Counter(range(8))] * 3
    assert len({tuple(series[start : start + 8]) for start in (0, 8, 16)}) == 3
    assert clips.shuffled(3, [5, 13]) == [series[5], series[13]]
    assert clips.shuffled(4, range(24)) != series


def test_the_default_plan_is_the_papers() -> None:
    plan = ClipPlan()
    assert (len(plan.offsets), plan.offsets[-3:], plan.length, plan.stride) == (21, (72, 76, 76), 77, 8)
