"""Whether MuJoCo can render here without a screen."""

import os
import subprocess
import sys

from foreframe_server.cli.faults import Fault

_PACKAGES = {"egl": "libegl1 libegl-mesa0 libgl1-mesa-dri", "osmesa": "libosmesa6"}
_PROBE = """
import mujoco
with mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 16, 16) as renderer:
    renderer.render()
"""
_PROBE_TIMEOUT_S = 60


def choose_gl() -> str:
    """Set MUJOCO_GL, unless it is set, to one that works, and return it. Raises Fault when none does."""
    asked = os.environ.get("MUJOCO_GL")
    for backend in [asked] if asked else _PACKAGES:
        if _can_render(backend):
            os.environ["MUJOCO_GL"] = backend
            return backend
    tried = f"MUJOCO_GL={asked} does not work" if asked else "no OpenGL that renders without a screen was found"
    ways = " or ".join(f"`apt-get install {packages}` and MUJOCO_GL={name}" for name, packages in _PACKAGES.items())
    raise Fault(f"{tried}: {ways}")


def _can_render(backend: str) -> bool:
    # In a process of its own: a wrong library may end it, and mujoco keeps the first choice that it sees.
    environment = {**os.environ, "MUJOCO_GL": backend}
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter and a constant
            [sys.executable, "-c", _PROBE], env=environment, capture_output=True, timeout=_PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
