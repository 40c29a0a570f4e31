"""The command line in this process, on a recording of the toy's size or on the built-in model."""

import json
import os
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import structlog
from typer.testing import CliRunner

from foreframe_engines import Bundle, builtin_bundle, write_contract, write_manifest
from foreframe_engines.episodes import Clip, Episode, save_episode, write_dataset_card
from foreframe_engines.testing import ToyLikelihoodEngine, toy_tokens
from foreframe_server.cli import app, facts
from foreframe_server.settings import PREFIX


@pytest.fixture(autouse=True)
def clean_machine(monkeypatch, tmp_path):
    """No settings from outside, files in a folder of the test's own, and this process keeps its logging."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(structlog, "configure", lambda **_: None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run():
    def invoke(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture
def run_json(run):
    """Run a command that must succeed; standard output must be one JSON object and nothing else."""

    def invoke(*arguments):
        result = run(*arguments, "--json")
        assert result.exit_code == 0, result.stderr
        record = json.loads(result.stdout)
        assert isinstance(record, dict)
        return record

    return invoke


@pytest.fixture
def clips_file():
    return builtin_bundle() / "clips.npz"


def write_episodes(folder, seeds, *, num_frames=16, size=64):
    """Write a data set of noise with the built-in model's 25 states."""
    names = [f"state_{index}" for index in range(25)]
    write_dataset_card(folder, world="noise", fps=15, state_names=names, labels={"ball": 1})
    for seed in seeds:
        rng = np.random.default_rng(seed)
        frames = rng.integers(0, 256, (num_frames, size, size, 3), dtype=np.uint8)
        states = rng.standard_normal((num_frames, 25), dtype=np.float32)
        masks = np.zeros(frames.shape[:3], np.uint8)
        save_episode(folder, Episode(seed, frames, states, masks, {}))
    return folder


@pytest.fixture
def episodes():
    return write_episodes


@pytest.fixture
def toy_clip():
    """A clip of the toy engine's size, with a seed of the test split."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    return Clip(8_000_007, 30, frames, rng.standard_normal((12, 3), dtype=np.float32), np.zeros((12, 8, 8), np.uint8))


@pytest.fixture
def token_bundle(tmp_path, monkeypatch):
    """A copy of the built-in bundle whose likelihood model is the toy; its graphs of tokens are never run."""
    folder = tmp_path / "bundle"
    shutil.copytree(builtin_bundle(), folder)
    bundle = Bundle.open(folder)
    contract = replace(bundle.contract, tokens=toy_tokens(), capabilities=("predict", "likelihood", "score"))
    unused = dict.fromkeys(("tokenize", "detokenize", "frame_step", "top_k"), bundle.graphs.encode)
    (folder / "calibration.json").unlink(missing_ok=True)
    write_contract(folder, contract, bundle.statistics, replace(bundle.graphs, **unused))
    write_manifest(folder)
    monkeypatch.setattr(
        facts, "open_likelihood_engine", lambda bundle, num_threads: ToyLikelihoodEngine(bundle.contract)
    )
    return folder


@pytest.fixture
def few_held_out_clips(monkeypatch):
    """Token models are evaluated on two clips while they are trained: forty of them take most of a short run."""
    likelihood = pytest.importorskip("foreframe_models.training.likelihood")
    attention = pytest.importorskip("foreframe_models.studies.attention")
    few = partial(likelihood.evaluate_likelihood, count=2)
    for module in (likelihood, attention):
        monkeypatch.setattr(module, "evaluate_likelihood", few)
