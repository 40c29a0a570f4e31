"""Dtypes and axes in signatures are what really passes through them, seen by a type checker at run time."""

import subprocess
import sys
from pathlib import Path

import pytest

PREAMBLE = """
import numpy as np
from jaxtyping import TypeCheckError, install_import_hook
ARRAY_MODULES = [f"foreframe_engines.{name}" for name in (
    "noise", "ensemble", "rollout", "sampling", "testing", "reading", "nats", "windows", "likelihood",
)]
with install_import_hook(ARRAY_MODULES, "beartype.beartype"):
    import foreframe_engines as ff
    from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine
rng = np.random.default_rng(0)
context, states = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8), rng.standard_normal((12, 3), dtype=np.float32)
sampling, spec = ff.Sampling(ff.Strategy.SAMPLE, 2, 0), ff.EnsembleSpec(3, ff.Reducer.MEDIAN)
"""


def run_checked(code: str) -> str:
    # -B: what a hooked import imports in passing would be kept unchecked, where a later hook takes it for checked.
    done = subprocess.run([sys.executable, "-B", "-c", PREAMBLE + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_a_prediction_passes_the_checker() -> None:
    code = 'print(ff.sample(ToyRolloutEngine(), ff.Query("toy", context, states, (1, 8), sampling, spec)).num_members)'
    assert run_checked(code) == "3"


@pytest.mark.parametrize("is_toy", [True, False])
def test_a_likelihood_passes_the_checker(golden_likelihood_bundle: Path, is_toy: bool) -> None:
    opened = f"ff.open_likelihood_engine(ff.Bundle.open(Path({str(golden_likelihood_bundle)!r})), num_threads=1)"
    code = f"""
from pathlib import Path
engine = {"ToyLikelihoodEngine()" if is_toy else opened}
frames = np.concatenate([context[:3], context[1:]])
ids, rows = engine.tokenize(frames), ff.grid_states(states[:6], engine.tokens)
seen = ff.read_history(engine, ids[:2], rows[:2])
scores = ff.greedy_rollout(engine, seen, rows[2:], ids[2:], top_k=2)
ff.teacher_forced(engine, seen, ids[2:], rows[2:])
entropies = [ff.top_k_cross_entropy(scores, 2, definition, 6) for definition in ff.TopKDefinition]
engine.detokenize(np.concatenate([scores.greedy, scores.greedy]))
print(ff.count_nats(scores, num_pixels=128).num_tokens == scores.greedy.size)
"""
    assert run_checked(code) == "True"


def test_a_wrong_dtype_or_axis_is_caught() -> None:
    code = """
for wrong in (context.astype(np.float32), context[0]):
    try:
        ToyRolloutEngine().encode(wrong)
    except TypeCheckError:
        print("caught")
"""
    assert run_checked(code).split() == ["caught", "caught"]


def test_ids_of_a_wrong_dtype_are_caught() -> None:
    code = """
engine = ToyLikelihoodEngine()
try:
    ff.read_history(engine, engine.tokenize(context).astype(np.int32), states[:4])
except TypeCheckError:
    print("caught")
"""
    assert run_checked(code) == "caught"
