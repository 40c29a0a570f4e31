"""`doctor`: what is broken is named with a remedy, the rest is examined all the same."""

import json
import shutil
import socket
from dataclasses import replace

import pytest

from foreframe_engines import Bundle, builtin_bundle, write_manifest
from foreframe_engines.bundle import write_contract


@pytest.fixture(autouse=True)
def machine_without_gl(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disable")


@pytest.fixture
def examine(run):
    def look(*arguments):
        result = run("doctor", *arguments, "--json")
        record = json.loads(result.stdout)
        assert record["ok"] is (result.exit_code == 0)
        return {check["name"]: check for check in record["checks"]}

    return look


def test_a_machine_that_can_serve_is_fit_without_the_optional_parts(examine):
    checks = examine()
    needed = ("Python", "packages", "ONNX Runtime", "bundle", "a prediction", "clips")
    assert {checks[name]["status"] for name in needed} == {"ok"}
    assert checks["OpenGL"]["status"] == "missing (optional)"
    assert "libegl1" in checks["OpenGL"]["detail"]


def test_what_is_broken_ends_with_1_and_says_what_to_do(examine, monkeypatch, tmp_path):
    bundle = shutil.copytree(builtin_bundle(), tmp_path / "bundle")
    with (bundle / "model.safetensors").open("r+b") as weights:
        weights.seek(-1, 2)
        weights.write(b"\x01")
    monkeypatch.setenv("FOREFRAME_CACHE__REDIS_URL", f"unix://{tmp_path}/no.sock")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("FOREFRAME_HTTP__PORT", str(taken.getsockname()[1]))
        checks = examine("--bundle", bundle)
    for name in ("bundle", "a prediction", "Redis"):
        assert checks[name]["status"] == "broken"
        assert checks[name]["remedy"]
    assert "model.safetensors" in checks["bundle"]["detail"]
    assert checks["port"]["status"] == "missing (optional)"
    assert checks["client"]["status"] == "ok"


def test_a_bundle_without_clips_is_whole_and_what_it_lacks_is_said(examine, tmp_path):
    bundle = shutil.copytree(builtin_bundle(), tmp_path / "bundle")
    (bundle / "clips.npz").unlink()
    damaged = examine("--bundle", bundle)
    write_manifest(bundle)
    checks = examine("--bundle", bundle)
    assert damaged["bundle"]["status"] == damaged["clips"]["status"] == "broken"
    assert {checks[name]["status"] for name in ("bundle", "a prediction")} == {"ok"}
    assert checks["clips"]["status"] == "missing (optional)"
    assert "has no clips.npz: how good it is cannot be checked" in checks["clips"]["detail"]


def test_a_bundle_that_predicts_nothing_is_whole_and_no_prediction_is_tried(examine, tmp_path):
    bundle = Bundle.open(shutil.copytree(builtin_bundle(), tmp_path / "bundle"))
    contract = replace(bundle.contract, capabilities=("likelihood",))
    graphs = replace(bundle.graphs, encode=None, condition=None, step=None, decode=None)
    write_contract(bundle.path, contract, bundle.statistics, graphs)
    (bundle.path / "calibration.json").unlink()  # its spread is of the half that is gone
    write_manifest(bundle.path)
    checks = examine("--bundle", bundle.path)
    assert checks["bundle"]["status"] == "ok"
    assert checks["a prediction"]["status"] == "missing (optional)"
    assert "no rollout half" in checks["a prediction"]["detail"]


def test_bad_settings_are_a_finding(examine, run, monkeypatch):
    monkeypatch.setenv("FOREFRAME_HTTP__PORT", "many")
    settings = examine()["settings"]
    assert settings["status"] == "broken"
    assert "FOREFRAME_HTTP__PORT" in settings["detail"]
    assert "broken" in run("doctor").stdout


def test_a_redis_that_answers_is_fine(examine, monkeypatch, redis_server):
    monkeypatch.setenv("FOREFRAME_CACHE__REDIS_URL", redis_server.url)
    assert examine()["Redis"] == {"name": "Redis", "status": "ok", "detail": "answers", "remedy": ""}
