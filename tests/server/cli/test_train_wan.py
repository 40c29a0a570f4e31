"""`train rollout --config wan2.2-1x` from the command line, on a tiny pipeline and synthetic shards."""

import importlib

import pytest

CONFIG = ("train", "rollout", "--config", "wan2.2-1x")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    pytest.importorskip("accelerate")
    toys = importlib.import_module("foreframe_models.testing")
    folder = tmp_path_factory.mktemp("sources")
    return toys.write_toy_pipeline(folder / "base"), toys.write_toy_shards(folder / "data", 100)


def test_an_adapter_is_trained_once_and_a_longer_run_goes_on(run_json, sources, tmp_path):
    base, data = sources
    arguments = (*CONFIG, "--base", base, "--data", data, "--validation", data, "--out", "run")
    arguments = (*arguments, "--batch-size", 2, "--micro-batch-size", 1, "--state-dropout", 0.1)
    first = run_json(*arguments, "--steps", 2)
    assert first["rollout"]["step"] == 2
    assert set(first["rollout"]) == {
        "step",
        "loss",
        "seconds",
        "held_out_loss",
        "copy_last",
        "mean_last",
        "sample_last",
    }
    assert first["adapter"] == "run/adapter.safetensors"
    for name in ("adapter.safetensors", "recipe.json", "statistics.json", "facts.json", "log.csv"):
        assert (tmp_path / "run" / name).is_file()
    assert run_json(*arguments, "--steps", 2)["rollout"] == {}
    assert run_json(*arguments, "--steps", 3)["rollout"]["step"] == 3


def test_what_is_wrong_with_data_or_base_is_one_line(run, sources, tmp_path):
    base, data = sources
    for folder, message in (
        ((base, tmp_path), "holds no metadata_*.json; expected 1X shards"),
        ((tmp_path, data), "holds neither config.json nor transformer/config.json"),
    ):
        result = run(*CONFIG, "--base", folder[0], "--data", folder[1], "--out", "run")
        assert result.exit_code == 3, result.output
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*CONFIG,), "Invalid value for --base: is missing"),
        ((*CONFIG, "--base", "b", "--autoencoder-steps", 3), "means nothing to wan2.2-1x"),
        (("train", "rollout"), "Invalid value for --validation: is missing"),
        (("train", "rollout", "--base", "b"), "Invalid value for --base: means nothing to eve-tabletop"),
        (("train", "rollout", "--state-dropout", 0.1), "means nothing to eve-tabletop"),
    ],
)
def test_options_that_are_missing_or_mean_nothing_are_refused(run, arguments, message):
    result = run(*arguments, "--data", "data", "--out", "run")
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
