"""Which OpenGL draws the pictures. Chosen before `mujoco` is imported, because it reads the choice then."""

import os

NO_GL = "no software OpenGL found: install EGL or OSMesa and set MUJOCO_GL=egl or MUJOCO_GL=osmesa"


def choose_gl() -> None:
    """Ask for a headless GL, and for one render thread a process, unless the environment says otherwise."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("LP_NUM_THREADS", "1")
