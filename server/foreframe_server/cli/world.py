"""`foreframe world generate`: episodes of the embedded world, one process a core."""

import os
import time
from importlib.util import find_spec
from pathlib import Path

from foreframe_engines.episodes import split_of
from foreframe_server.cli.console import print_json, print_note, track
from foreframe_server.cli.faults import Fault
from foreframe_server.cli.gl import choose_gl


def generate_episodes(
    out: Path, seeds: range, num_frames: int, size: int, num_workers: int | None, *, is_json: bool
) -> None:
    """Write one episode a seed. Raises Fault without MuJoCo or an OpenGL that it can render with."""
    # Not imported: mujoco reads MUJOCO_GL when it is.
    if find_spec("mujoco") is None:
        raise Fault("MuJoCo is not installed; run `pip install 'foreframe[world]'`")
    from foreframe_models.worlds.generation import generate

    workers = min(num_workers or os.cpu_count() or 1, len(seeds))
    backend = choose_gl()
    started = time.perf_counter()
    episodes = generate(out, seeds, num_frames=num_frames, size=size, num_workers=workers)
    for _ in track(episodes, f"episodes ({backend}, {workers} processes)", len(seeds)):
        pass
    elapsed_s = round(time.perf_counter() - started, 2)
    if is_json:
        splits = sorted({split_of(seed) for seed in (seeds[0], seeds[-1])})
        print_json(
            {
                "out": str(out),
                "episodes": len(seeds),
                "seed_start": seeds.start,
                "seed_stop": seeds.stop,
                "splits": splits,
                "frames": num_frames,
                "size": size,
                "elapsed_s": elapsed_s,
            }
        )
    else:
        print_note(f"{len(seeds)} episodes lie in {out} ({elapsed_s:.0f} s)")
