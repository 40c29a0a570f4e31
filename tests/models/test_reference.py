"""A bundle opened on torch: the weights it was exported with, and the answers of ONNX Runtime."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from foreframe_engines import Bundle, BundleError, Query, open_rollout_engine, sample, write_manifest
from foreframe_models.reference import load_models, open_reference_engine
from foreframe_models.weights import WEIGHTS


@pytest.fixture
def folder(exported, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may change."""
    return Path(shutil.copytree(exported.folder, tmp_path / "bundle"))


def edit_config(folder: Path, **rollout: object) -> None:
    path = folder / "model.json"
    tree = json.loads(path.read_text())
    tree["rollout"].update(rollout)
    path.write_text(json.dumps(tree))
    write_manifest(folder)


def test_the_models_come_back_bit_for_bit(exported) -> None:
    models = load_models(exported.folder)
    assert models.config == exported.models.config
    originals = exported.models.by_name()
    for name, loaded in models.by_name().items():
        original = originals[name]
        tensors, expected = loaded.state_dict(), original.state_dict()
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[key], expected[key]) for key in expected)
        assert not loaded.training


def test_both_runtimes_predict_the_same(exported, query: Query) -> None:
    reference, engine = (
        open_reference_engine(exported.folder),
        open_rollout_engine(Bundle.open(exported.folder), num_threads=1),
    )
    expected, ours = sample(reference, query), sample(engine, query)
    assert reference.determinism == "tolerance"
    assert np.abs(ours.members.astype(int) - expected.members).max() <= 1
    np.testing.assert_allclose(ours.spread_per_frame, expected.spread_per_frame, atol=2e-3)


def test_another_architecture_than_the_graphs_is_noticed(exported, folder: Path, query: Query) -> None:
    edit_config(folder, target="velocity")  # fits the same weights, so only the frames can tell
    planted, engine = open_reference_engine(folder), open_rollout_engine(Bundle.open(folder), num_threads=1)
    difference = np.abs(sample(planted, query).members.astype(int) - sample(engine, query).members)
    assert difference.max() > 10


def test_weights_that_do_not_fit_are_refused(folder: Path) -> None:
    edit_config(folder, prompt_length=5)
    with pytest.raises(BundleError, match=rf"{WEIGHTS} does not fit model\.json"):
        open_reference_engine(folder)


def test_a_damaged_bundle_is_refused(folder: Path) -> None:
    with (folder / WEIGHTS).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    with pytest.raises(BundleError, match=WEIGHTS):
        open_reference_engine(folder)


def test_a_bundle_without_its_architecture_is_refused(folder: Path) -> None:
    (folder / "model.json").unlink()
    write_manifest(folder)
    with pytest.raises(BundleError, match=r"model\.json"):
        open_reference_engine(folder)
