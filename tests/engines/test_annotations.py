"""Dtypes and axes in signatures are what really passes through them, seen by a type checker at run time."""

import subprocess
import sys

PREAMBLE = """
import numpy as np
from jaxtyping import TypeCheckError, install_import_hook
ARRAY_MODULES = [f"foreframe_engines.{name}" for name in ("noise", "ensemble", "rollout", "sampling", "testing")]
with install_import_hook(ARRAY_MODULES, "beartype.beartype"):
    import foreframe_engines as ff
    from foreframe_engines.testing import ToyRolloutEngine
rng = np.random.default_rng(0)
context, states = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8), rng.standard_normal((12, 3), dtype=np.float32)
sampling, spec = ff.Sampling(ff.Strategy.SAMPLE, 2, 0), ff.EnsembleSpec(3, ff.Reducer.MEDIAN)
"""


def run_checked(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", PREAMBLE + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_a_prediction_passes_the_checker() -> None:
    code = 'print(ff.sample(ToyRolloutEngine(), ff.Query("toy", context, states, (1, 8), sampling, spec)).num_members)'
    assert run_checked(code) == "3"


def test_a_wrong_dtype_or_axis_is_caught() -> None:
    code = """
for wrong in (context.astype(np.float32), context[0]):
    try:
        ToyRolloutEngine().encode(wrong)
    except TypeCheckError:
        print("caught")
"""
    assert run_checked(code).split() == ["caught", "caught"]
