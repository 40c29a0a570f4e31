from contextlib import closing

import numpy as np

from foreframe_engines import Bundle, builtin_bundle, open_likelihood_engine, open_rollout_engine
from foreframe_engines.golden import example_clips, record_likelihood, record_rollout


def test_every_rollout_graph_is_run_in_every_size(golden_bundle) -> None:
    bundle = Bundle.open(golden_bundle)
    with closing(open_rollout_engine(bundle, num_threads=1)) as engine:
        runs = record_rollout(bundle, engine.sessions, (1, 4))
    assert {name: len(found) > 0 for name, found in runs.items()} == dict.fromkeys(bundle_graphs(bundle), True)
    for name, tensor in (("step", "latents"), ("decode", "latents")):
        assert {len(run.inputs[tensor]) for run in runs[name]} == {1, 4}


def test_every_likelihood_graph_is_run_without_a_past_and_with_one(golden_likelihood_bundle) -> None:
    bundle = Bundle.open(golden_likelihood_bundle)
    with closing(open_likelihood_engine(bundle, num_threads=1)) as engine:
        runs = record_likelihood(bundle, engine.sessions, engine.memory, (1, 2))
    assert set(runs) == {"tokenize", "detokenize", "frame_step", "top_k"}
    assert {run.inputs["keys"].shape[1:3] for run in runs["frame_step"]} == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert all(found for found in runs.values())


def test_recording_twice_gives_the_same(golden_bundle) -> None:
    bundle = Bundle.open(golden_bundle)
    with closing(open_rollout_engine(bundle, num_threads=1)) as engine:
        first, second = (record_rollout(bundle, engine.sessions, (1,))["step"][0] for _ in range(2))
    for name, values in first.inputs.items():
        np.testing.assert_array_equal(values, second.inputs[name])


def test_clips_that_ship_are_preferred_to_random_ones(golden_bundle) -> None:
    shipped, random = example_clips(Bundle.open(builtin_bundle())), example_clips(Bundle.open(golden_bundle))
    assert len(shipped) == len(random) == 2
    assert np.abs(np.diff(shipped[0].frames.astype(int), axis=2)).mean() < 20  # a picture
    assert np.abs(np.diff(random[0].frames.astype(int), axis=2)).mean() > 60  # noise


def bundle_graphs(bundle: Bundle) -> list[str]:
    return [name for name in ("encode", "condition", "step", "decode") if getattr(bundle.graphs, name)]
