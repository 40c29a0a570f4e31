"""The arrays' annotations are what really passes through, and a wrong array is caught."""

import subprocess
import sys

CODE = """
from dataclasses import replace
from functools import partial
import numpy as np
from jaxtyping import TypeCheckError, install_import_hook
names = ["experiments.compression", "experiments.ensembles", "experiments.rollouts", "experiments.states",
         "experiments.surprise", "experiments.token_clips", "benchmarks", "intervals", "measures", "token_baselines"]
with install_import_hook([f"foreframe_server.{name}" for name in names], "beartype.beartype"):
    from foreframe_server import benchmarks, intervals, measures, token_baselines
    from foreframe_server.experiments import compression, ensembles, rollouts, states, surprise, token_clips
from foreframe_engines import sample
from foreframe_engines.episodes import Clip
from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine, toy_contract, toy_tokens
contract = toy_contract(size=16, tokens=toy_tokens())
tokens, engine, rng = ToyLikelihoodEngine(contract), ToyRolloutEngine(contract), np.random.default_rng(0)
frames, rows = rng.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8), rng.standard_normal((12, 3), dtype=np.float32)
clips = [Clip(seed, 0, frames, rows, frames[..., 0]) for seed in (1, 2)]
split, ids = token_clips.Split(4, 8), [tokens.tokenize(frames)]
setting = compression.Setting(split, token_baselines.fit_baselines(ids, ids, 6), ids, 2)
compression.summarise_costs(tokens, list(compression.measure_costs(tokens, clips, setting)), setting)
found = list(rollouts.measure_rollouts(tokens, clips, split))
rollouts.summarise_rollouts([("a", contract), ("b", contract)], [found, found], split)
list(surprise.bits_of_clips(tokens, clips, split))
predict = partial(sample, engine)
states.summarise_states(contract, list(states.measure_states(predict, contract, clips)))
ensembles.summarise_ensembles(contract, list(ensembles.measure_ensembles(predict, contract, clips, (1, 2))))
plans = benchmarks.Plans(frames[:4], rows[:4], np.stack([rows[4:], rows[4:]]))
benchmarks.measure_sharing(tokens, plans, 1, map(float, range(1, 99)).__next__)
benchmarks.measure_history(tokens, ids[0], rows, 1, map(float, range(1, 99)).__next__)
for wrong in (lambda: measures.ssim(frames / 255, frames), lambda: replace(plans, states=rows[:4].astype(float)),
              lambda: intervals.Resamples.of([1, 2]).mean(np.zeros((2, 2)))):
    try:
        wrong()
    except TypeCheckError:
        print("caught")
"""


def test_arrays_are_what_the_annotations_say():
    # -B: what a hooked import imports in passing would be kept unchecked, where a later hook takes it for checked.
    done = subprocess.run([sys.executable, "-B", "-c", CODE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["caught"] * 3), done.stderr[-2000:]
