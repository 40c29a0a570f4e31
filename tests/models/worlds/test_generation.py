"""Rendered episodes: equal bytes for equal seeds, masks that name every object, and a folder that can be continued.

Rendering runs in processes of its own, because `mujoco` chooses its GL once, when it is imported.
"""

import importlib.util
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from foreframe_engines.episodes import episode_path, load_episode

if importlib.util.find_spec("mujoco") is None:
    pytest.skip("mujoco is not installed", allow_module_level=True)

GENERATE = """
import sys
from pathlib import Path
from foreframe_engines.episodes import save_episode
from foreframe_models.worlds.eve_tabletop.episode import generate_episode

for folder in sys.argv[1:]:
    Path(folder).mkdir()
    save_episode(Path(folder), generate_episode(8_000_003, num_frames=4, size=32))
"""
CONTINUE = """
import sys
from pathlib import Path
from foreframe_models.worlds.generation import generate

if __name__ == "__main__":
    for path in generate(Path(sys.argv[1]), range(5, 7), num_frames=2, size=16, num_workers=1):
        print(path.name)
"""
OPEN_CAMERA = """
from foreframe_models.worlds.eve_tabletop.episode import Simulation, open_camera
with open_camera(Simulation(0).model, 8):
    pass
"""


def run_python(code: str, *arguments: str, gl: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MUJOCO_GL": gl, "LP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)


@cache
def installed_gl() -> str:
    """Return the GL that works on this machine; skips the test when there is none."""
    for gl in ("egl", "osmesa"):
        if run_python(OPEN_CAMERA, gl=gl).returncode == 0:
            return gl
    pytest.skip("no headless OpenGL: neither EGL nor OSMesa is installed")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same episode, generated twice in one process."""
    root = tmp_path_factory.mktemp("episodes")
    folders = root / "one", root / "two"
    done = run_python(GENERATE, *map(str, folders), gl=installed_gl())
    assert done.returncode == 0, done.stderr[-2000:]
    return folders


def test_equal_seeds_give_equal_bytes_on_disk(folders: tuple[Path, Path]) -> None:
    one, two = (episode_path(folder, 8_000_003).read_bytes() for folder in folders)
    assert one == two


def test_an_episode_is_complete(folders: tuple[Path, Path]) -> None:
    episode = load_episode(episode_path(folders[0], 8_000_003))
    assert (episode.frames.shape, episode.frames.dtype) == ((4, 32, 32, 3), np.uint8)
    assert (episode.states.shape, episode.states.dtype) == ((4, 25), np.float32)
    assert (episode.masks.shape, episode.masks.dtype) == ((4, 32, 32), np.uint8)
    assert episode.metadata["seed"] == episode.seed == 8_000_003
    assert {item["name"] for item in episode.metadata["scene"]["objects"]} == {"ball", "box", "can"}


def test_masks_label_each_object_by_what_is_seen(folders: tuple[Path, Path]) -> None:
    episode = load_episode(episode_path(folders[0], 8_000_003))
    colours = {item["name"]: np.array(item["rgb"]) for item in episode.metadata["scene"]["objects"]}
    assert set(np.unique(episode.masks)) == {0, 1, 2, 3}
    means = {}
    for label, name in enumerate(("ball", "box", "can"), start=1):
        pixels = episode.frames[episode.masks == label]
        assert len(pixels) > 20
        means[name] = pixels.mean(0)
    for name, mean in means.items():
        likeness = {other: np.corrcoef(mean, colour)[0, 1] for other, colour in colours.items()}
        assert max(likeness, key=likeness.get) == name


def test_frames_change_while_the_robot_moves(folders: tuple[Path, Path]) -> None:
    frames = load_episode(episode_path(folders[0], 8_000_003)).frames.astype(int)
    assert frames.std() > 20
    assert (np.abs(np.diff(frames, axis=0)).max(axis=(1, 2, 3)) > 5).all()


def test_generation_keeps_what_is_there_and_adds_what_is_missing(tmp_path: Path) -> None:
    gl = installed_gl()
    first = run_python(CONTINUE, str(tmp_path), gl=gl)
    assert first.stdout.split() == ["episode_00000005.npz", "episode_00000006.npz"], first.stderr[-2000:]
    kept, lost = episode_path(tmp_path, 5), episode_path(tmp_path, 6)
    before, kept_time = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    assert sorted(run_python(CONTINUE, str(tmp_path), gl=gl).stdout.split()) == [kept.name, lost.name]
    assert (kept.stat().st_mtime_ns, lost.read_bytes()) == (kept_time, before)


def test_a_machine_without_gl_is_told_what_to_install() -> None:
    done = run_python(OPEN_CAMERA, gl="disable")
    assert "RuntimeError: no software OpenGL found: install EGL or OSMesa" in done.stderr


def test_a_workers_error_reaches_who_asked_for_episodes(tmp_path: Path) -> None:
    done = run_python(CONTINUE, str(tmp_path), gl="disable")
    assert "RuntimeError: no software OpenGL found: install EGL or OSMesa" in done.stderr
    assert list(tmp_path.glob("*.npz")) == []
