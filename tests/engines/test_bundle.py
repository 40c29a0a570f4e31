import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foreframe_engines import (
    GRAPHS,
    LIKELIHOOD_GRAPHS,
    Bundle,
    BundleError,
    Calibration,
    GraphFiles,
    NoisePlan,
    SpreadCalibration,
    TokenRow,
    builtin_bundle,
    bundle,
    calibrate_surprise,
    calibration_to_json,
    open_likelihood_engine,
    open_rollout_engine,
    write_contract,
    write_manifest,
)
from foreframe_engines.bundle import verify_folder
from foreframe_engines.contract_json import NO_LATENTS, NO_SAMPLER
from foreframe_engines.spread import SpreadScale


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def flip_byte(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)


def grow_file(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")


def link_weights_elsewhere(folder: Path) -> None:
    outside = folder.parent / "elsewhere"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)


def list_outside(folder: Path, name: str) -> None:
    entry = {"sha256": "0" * 64, "size": 0}
    edit_manifest(folder, lambda manifest: manifest["files"].update({name: entry}))


TAMPERINGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights changed": (lambda folder: flip_byte(folder, "model.safetensors"), "'model.safetensors' differs"),
    "graph changed": (lambda folder: flip_byte(folder, "step.onnx"), "'step.onnx' differs"),
    "contract changed": (lambda folder: flip_byte(folder, "contract.json"), "'contract.json' differs"),
    "file grown": (lambda folder: grow_file(folder, "stats.json"), "'stats.json' differs"),
    "file missing": (lambda folder: (folder / "decode.onnx").unlink(), "'decode.onnx' is missing"),
    "file unlisted": (lambda folder: (folder / "extra.bin").touch(), "'extra.bin' is not in the manifest"),
    "folder inside": (lambda folder: (folder / "more").mkdir(), "'more' is not a plain file"),
    "symlink": (link_weights_elsewhere, "'model.safetensors' is not a plain file"),
    "pipe": (lambda folder: os.mkfifo(folder / "pipe"), "'pipe' is not a plain file"),
    "name leaves": (lambda folder: list_outside(folder, "../elsewhere"), "'../elsewhere'"),
    "name absolute": (lambda folder: list_outside(folder, "/etc/hostname"), "'/etc/hostname'"),
    "name of a parent": (lambda folder: list_outside(folder, ".."), "'..'"),
    "name backslash": (lambda folder: list_outside(folder, "a\\b"), "not the name of a file"),
    "manifest lists itself": (lambda folder: list_outside(folder, "manifest.json"), "'manifest.json'"),
    "manifest missing": (lambda folder: (folder / "manifest.json").unlink(), "'manifest.json' cannot be read"),
    "manifest cut": (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json: not readable"),
    "manifest binary": (lambda folder: (folder / "manifest.json").write_bytes(b"\xff"), "'manifest.json' is not UTF-8"),
    "manifest list": (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json: expected an object"),
    "other format": (lambda folder: edit_manifest(folder, lambda m: m.update(format="x/1")), "format: 'x/1'"),
    "extra key": (lambda folder: edit_manifest(folder, lambda m: m.update(more=1)), "'more' is unknown"),
    "files a list": (lambda folder: edit_manifest(folder, lambda m: m.update(files=[])), "files: expected an object"),
    "digest short": (
        lambda folder: edit_manifest(folder, lambda m: m["files"]["stats.json"].update(sha256="0")),
        "'stats.json': sha256: expected 64",
    ),
    "size a string": (
        lambda folder: edit_manifest(folder, lambda m: m["files"]["stats.json"].update(size="1")),
        "'stats.json': size: expected",
    ),
    "size negative": (
        lambda folder: edit_manifest(folder, lambda m: m["files"]["stats.json"].update(size=-1)),
        "'stats.json': size: expected",
    ),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_a_tampered_bundle_is_refused_by_name(bundle_folder: Path, tampering: str) -> None:
    Bundle.open(bundle_folder)
    tamper, message = TAMPERINGS[tampering]
    tamper(bundle_folder)
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle_folder)
    assert message in str(caught.value)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle.open(tmp_path / "nothing")


def test_statistics_swapped_under_a_fresh_manifest_are_refused(bundle_folder: Path) -> None:
    text = (bundle_folder / "stats.json").read_text()
    (bundle_folder / "stats.json").write_text(text.replace("1.0", "2.0"))
    write_manifest(bundle_folder)
    with pytest.raises(BundleError, match="statistics_sha256"):
        Bundle.open(bundle_folder)


@pytest.mark.parametrize("name", ["other.onnx", "../step.onnx"])
def test_a_graph_outside_the_bundle_is_refused(bundle_folder: Path, name: str) -> None:
    contract = json.loads((bundle_folder / "contract.json").read_text())
    contract["graphs"]["step"] = name
    (bundle_folder / "contract.json").write_text(json.dumps(contract))
    write_manifest(bundle_folder)
    with pytest.raises(BundleError, match="graphs: step"):
        Bundle.open(bundle_folder)


def test_an_intact_bundle_gives_contract_statistics_and_graph_paths(golden_bundle: Path) -> None:
    opened = Bundle.open(golden_bundle)
    assert opened.contract.model == "toy"
    assert opened.contract.state.dim == 3
    assert opened.statistics.q99.tolist() == [1.5, 1.5, 1.5]
    assert opened.graph_path("step") == golden_bundle / "step.onnx"


def test_a_bundle_of_both_models_gives_all_eight_graphs(golden_likelihood_bundle: Path, golden_bundle: Path) -> None:
    opened = Bundle.open(golden_likelihood_bundle)
    assert opened.contract.tokens is not None
    paths = [opened.graph_path(name) for name in ("step", *LIKELIHOOD_GRAPHS)]
    assert [path.name for path in paths] == [f"{name}.onnx" for name in ("step", *LIKELIHOOD_GRAPHS)]
    with pytest.raises(BundleError, match="no frame_step graph"):
        Bundle.open(golden_bundle).graph_path("frame_step")


def make_likelihood_only(folder: Path) -> None:
    """Take everything of the rollout model out of a bundle of both."""
    opened = Bundle.open(folder)
    for name in GRAPHS:
        opened.graph_path(name).unlink()
    contract = replace(
        opened.contract, capabilities=("likelihood",), sampler=NO_SAMPLER, latent_shape=NO_LATENTS, frames_per_latent=1
    )
    graphs = GraphFiles(**{name: f"{name}.onnx" for name in LIKELIHOOD_GRAPHS})
    write_contract(folder, contract, opened.statistics, graphs)
    write_manifest(folder)


def test_a_bundle_of_the_likelihood_model_alone_is_read_as_one_of_both(
    likelihood_folder: Path, golden_likelihood_bundle: Path, make_row: Callable[..., TokenRow]
) -> None:
    make_likelihood_only(likelihood_folder)
    opened = Bundle.open(likelihood_folder)
    with pytest.raises(BundleError, match="the bundle has no step graph"):
        opened.graph_path("step")
    answers = []
    for bundle_of in (opened, Bundle.open(golden_likelihood_bundle)):
        engine = open_likelihood_engine(bundle_of, num_threads=1)
        (score,) = engine.read([make_row(top_k=2)])
        answers.append(score)
        engine.close()
    np.testing.assert_array_equal(answers[0].log_probability, answers[1].log_probability)


def test_a_rollout_engine_needs_a_bundle_that_predicts(likelihood_folder: Path) -> None:
    make_likelihood_only(likelihood_folder)
    with pytest.raises(BundleError, match="the bundle has no encode graph"):
        open_rollout_engine(Bundle.open(likelihood_folder), num_threads=1)


def test_a_folder_of_any_files_is_verified_against_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"some")
    write_manifest(tmp_path)
    digest = verify_folder(tmp_path)
    assert verify_folder(tmp_path) == digest
    (tmp_path / "weights").write_bytes(b"else")
    with pytest.raises(BundleError, match="'weights' differs from the manifest"):
        verify_folder(tmp_path)


def test_a_likelihood_graph_that_is_missing_is_refused(likelihood_folder: Path) -> None:
    (likelihood_folder / "top_k.onnx").unlink()
    write_manifest(likelihood_folder)
    with pytest.raises(BundleError, match=r"graphs: top_k: 'top_k\.onnx' is not a file"):
        Bundle.open(likelihood_folder)


def test_a_calibration_comes_with_a_likelihood_model(likelihood_folder: Path) -> None:
    assert Bundle.open(likelihood_folder).calibration == Calibration()
    calibration = Calibration(surprise=calibrate_surprise([30.0, 40.0, 80.0]))
    (likelihood_folder / "calibration.json").write_text(calibration_to_json(calibration))
    with pytest.raises(BundleError, match=r"'calibration\.json' is not in the manifest"):
        Bundle.open(likelihood_folder)
    write_manifest(likelihood_folder)
    assert Bundle.open(likelihood_folder).calibration == calibration
    (likelihood_folder / "calibration.json").write_text('{"surprise": {}}')
    write_manifest(likelihood_folder)
    with pytest.raises(BundleError, match=r"calibration\.json: surprise: key 'scenario' is missing"):
        Bundle.open(likelihood_folder)


def test_a_calibration_without_a_likelihood_model_is_refused(bundle_folder: Path) -> None:
    (bundle_folder / "calibration.json").write_text(
        calibration_to_json(Calibration(surprise=calibrate_surprise([30.0, 40.0])))
    )
    write_manifest(bundle_folder)
    with pytest.raises(BundleError, match=r"calibration\.json: surprise: the bundle has no likelihood model"):
        Bundle.open(bundle_folder)


def test_a_calibration_of_the_spread_knows_every_frame(bundle_folder: Path) -> None:
    horizon = Bundle.open(bundle_folder).contract.horizon
    for num_frames in (horizon, horizon - 1):
        numbers = (0.1,) * num_frames
        spread = SpreadCalibration(40, 0.95, 4, 1.0, NoisePlan.ANTITHETIC, (SpreadScale(2, numbers, numbers),))
        (bundle_folder / "calibration.json").write_text(calibration_to_json(Calibration(spread=spread)))
        write_manifest(bundle_folder)
        if num_frames == horizon:
            assert Bundle.open(bundle_folder).calibration == Calibration(spread=spread)
    with pytest.raises(BundleError, match=rf"spread: scales: expected {horizon} numbers"):
        Bundle.open(bundle_folder)


def test_a_calibration_of_the_spread_needs_a_model_that_predicts(likelihood_folder: Path) -> None:
    make_likelihood_only(likelihood_folder)
    contract = Bundle.open(likelihood_folder).contract
    numbers = (0.1,) * contract.horizon
    spread = SpreadCalibration(40, 0.95, 4, 1.0, NoisePlan.ANTITHETIC, (SpreadScale(2, numbers, numbers),))
    (likelihood_folder / "calibration.json").write_text(calibration_to_json(Calibration(spread=spread)))
    write_manifest(likelihood_folder)
    with pytest.raises(BundleError, match="spread: the bundle predicts nothing"):
        Bundle.open(likelihood_folder)


def test_the_shipped_bundle_opens() -> None:
    shipped = Bundle.open(builtin_bundle())
    assert shipped.contract.model == "eve-tabletop"


def test_the_digest_names_the_content_and_not_the_manifests_layout(bundle_folder: Path) -> None:
    digest = Bundle.open(bundle_folder).digest
    manifest = json.loads((bundle_folder / "manifest.json").read_text())
    (bundle_folder / "manifest.json").write_text(json.dumps(manifest, indent=7, sort_keys=True))
    assert Bundle.open(bundle_folder).digest == digest
    (bundle_folder / "README.md").write_text("a card\n")
    write_manifest(bundle_folder)
    assert Bundle.open(bundle_folder).digest != digest


def test_a_manifest_is_not_written_over_a_symlink(bundle_folder: Path) -> None:
    link_weights_elsewhere(bundle_folder)
    with pytest.raises(BundleError, match="not a plain file"):
        write_manifest(bundle_folder)


def test_a_builtin_bundle_lies_in_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bundle, "BUILTIN", tmp_path)
    (tmp_path / "my_robot").mkdir()
    (tmp_path / "my_robot" / "manifest.json").touch()
    assert builtin_bundle("my-robot") == tmp_path / "my_robot"


@pytest.mark.parametrize("name", ["nothing-here", "../bundles", "", "Eve"])
def test_an_unknown_builtin_bundle_is_refused_by_name(name: str) -> None:
    with pytest.raises(BundleError, match=r"nothing_here|is not the name"):
        builtin_bundle(name)
