"""Write many episodes with one process a core. Knows the world's name, not its content."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from types import ModuleType

from foreframe_engines.episodes import episode_path, save_episode, write_dataset_card
from foreframe_models.worlds.eve_tabletop.names import STATE_NAMES
from foreframe_models.worlds.gl import choose_gl

WORLD = "eve-tabletop"


def generate(folder: Path, seeds: range, *, num_frames: int, size: int, num_workers: int) -> Iterator[Path]:
    """Write one episode a seed and yield each path as it is done; episodes already there are kept.

    Raises RuntimeError when no OpenGL is installed, ModuleNotFoundError without `mujoco`.
    """
    world = _import_world()
    labels = world.OBJECT_LABELS
    write_dataset_card(folder, world=WORLD, fps=world.FPS, state_names=STATE_NAMES, labels=labels)
    present = [seed for seed in seeds if episode_path(folder, seed).exists()]
    yield from (episode_path(folder, seed) for seed in present)
    missing = sorted(set(seeds) - set(present))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        futures = [pool.submit(_write_one, folder, seed, num_frames, size) for seed in missing]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _write_one(folder: Path, seed: int, num_frames: int, size: int) -> Path:
    return save_episode(folder, _import_world().generate_episode(seed, num_frames, size))


def _import_world() -> ModuleType:
    choose_gl()
    from foreframe_models.worlds.eve_tabletop import episode  # noqa: PLC0415 - after the choice

    return episode
