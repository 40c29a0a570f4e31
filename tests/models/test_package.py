"""What the package imports, and that the arrays' annotations are what really passes through."""

import subprocess
import sys


def run_python(code: str) -> str:
    # -B: what a hooked import imports in passing would be kept unchecked, where a later hook takes it for checked.
    done = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_importing_the_package_imports_no_world_and_no_torch() -> None:
    code = "import sys, foreframe_models.worlds.generation\nprint(*({'mujoco', 'torch'} & set(sys.modules)))"
    assert run_python(code) == ""
    assert run_python(f"import torch\n{code}") == "torch"


CHECKED = """
import numpy as np
import torch
from jaxtyping import TypeCheckError, install_import_hook
with install_import_hook(["foreframe_models.training.data", "foreframe_engines.episodes"], "beartype.beartype"):
    from foreframe_engines.episodes import Episode
    from foreframe_models.training.data import EpisodeTensors, state_statistics, to_input
frames, states = np.zeros((2, 5, 8, 8, 3), np.uint8), np.ones((2, 5, 3), np.float32)
EpisodeTensors(frames, states, frames[..., 0])
Episode(0, frames[0], states[0], frames[0, ..., 0], {})
print(to_input(frames).shape[2], len(state_statistics(states)))
for wrong in (lambda: to_input(frames.astype(np.float32)), lambda: state_statistics(states.astype(np.float64)),
              lambda: EpisodeTensors(frames, states, frames)):
    try:
        wrong()
    except TypeCheckError:
        print("caught")
"""


def test_array_annotations_hold_and_wrong_arrays_are_caught() -> None:
    assert run_python(CHECKED).split() == ["3", "6", "caught", "caught", "caught"]
