"""Dtypes and axes in the readers' signatures are what really passes through them."""

import subprocess
import sys

CODE = """
from pathlib import Path
import numpy as np
from jaxtyping import install_import_hook
NAMES = ("recordings", "pixels", "plain", "lerobot", "lerobot_tables")
MODULES = [f"foreframe_engines.readers.{{name}}" for name in NAMES]
with install_import_hook(MODULES, "beartype.beartype"):
    from foreframe_engines.readers import LeRobotRecordings, PlainRecordings
    from foreframe_engines.readers.recordings import unmasked_episode
from foreframe_engines.testing_lerobot import LeRobotLayout, write_lerobot
folder = Path({folder!r})
frames, states = np.zeros((5, 16, 16, 3), np.uint8), np.zeros((5, 2), np.float32)
episode = unmasked_episode(0, frames, states, {{}})
for codec in (None, "libx264rgb"):
    write_lerobot(folder / str(codec), [episode], LeRobotLayout(10, "head", ("a", "b"), codec))
    assert LeRobotRecordings.open(folder / str(codec)).read(0).frames.shape == frames.shape
(folder / "plain").mkdir()
np.save(folder / "plain" / "states.npy", states)
(folder / "plain" / "clip.mp4").write_bytes(next(folder.glob("**/*.mp4")).read_bytes())
assert PlainRecordings.open(folder / "plain").read(0).states.shape == states.shape
try:
    unmasked_episode(0, frames, states.astype(np.float64), {{}})
except TypeError:
    print("checked")
"""


def test_every_reader_passes_the_checker_and_a_wrong_dtype_does_not(tmp_path) -> None:
    code = CODE.format(folder=str(tmp_path))
    # -B: what a hooked import imports in passing would be kept unchecked, where a later hook takes it for checked.
    done = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "checked", done.stderr[-2000:]
