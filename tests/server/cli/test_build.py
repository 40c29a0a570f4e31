"""`build` says what became of every graph; anything wrong outside is one line and exit code 3."""

import sys

import pytest

from foreframe_engines import RuntimeUnavailable
from foreframe_engines.runtime.tensorrt_library import find_library


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setenv("FOREFRAME_ENGINE__NUM_THREADS", "1")


@pytest.fixture
def rtx():
    try:
        return find_library(("tensorrt-rtx",))
    except RuntimeUnavailable as error:
        pytest.skip(str(error))


def test_a_build_is_one_json_object_with_what_was_measured(run_json, tmp_path):
    record = run_json("build", "--buckets", "1", "--backend", "onnxruntime", "--cache", tmp_path / "engines")
    assert record["device"] == "cpu"
    assert record["buckets"] == [1]
    assert {graph["graph"] for graph in record["graphs"]} >= {"step", "decode", "frame_step"}
    assert all(graph["parity"]["reference"] == "torch" for graph in record["graphs"])
    assert record["steps"]["1"] in record["measured"]
    assert record["decode"] in record["measured"]
    assert list((tmp_path / "engines").glob("choice-*.json"))


def test_a_person_sees_tables(run, tmp_path):
    result = run("build", "--buckets", "1", "--backend", "onnxruntime", "--cache", tmp_path / "engines")
    assert result.exit_code == 0, result.stderr
    assert "frame_step" in result.stdout
    assert "of what is allowed" in " ".join(result.stdout.split())
    assert "step of 1" in result.stdout
    assert str(tmp_path / "engines") in result.stderr


def test_the_folder_of_the_settings_is_used(run_json, tmp_path, monkeypatch):
    monkeypatch.setenv("FOREFRAME_ENGINE__CACHE", str(tmp_path / "kept"))
    record = run_json("build", "--buckets", "1", "--backend", "onnxruntime")
    assert record["folder"] == str(tmp_path / "kept")
    assert (tmp_path / "kept").is_dir()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "cuda"), "cuda-bindings is not installed"),
        (("--backend", "tensorrt"), "tensorrt needs a GPU, or --device"),
        (("--backend", "onnxruntime", "--precision", "bf16"), "onnxruntime computes a bundle in fp32"),
        (("nowhere",), "nowhere cannot be read"),
    ],
)
def test_what_is_not_here_is_one_line_and_exit_code_3(run, tmp_path, arguments, words):
    result = run("build", *arguments, "--cache", tmp_path / "engines")
    assert result.exit_code == 3
    (line,) = [line for line in result.stderr.splitlines() if line != "building ..."]
    assert words in line
    assert not (tmp_path / "engines").exists()


def test_an_architecture_that_cannot_be_built_for_is_refused(run, rtx, tmp_path):
    result = run("build", "--device", "sm90", "--cache", tmp_path / "engines")
    assert result.exit_code == 3
    assert "not sm90" in result.stderr


@pytest.mark.parametrize("buckets", ["4,1", "0", "1,x", "1,,2", "1,1"])
def test_sizes_that_are_no_list_are_a_usage_error(run, buckets):
    result = run("build", "--buckets", buckets)
    assert result.exit_code == 2
    assert "--buckets" in result.stderr
