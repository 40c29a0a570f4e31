"""Every experiment from the command line: one JSON object, the same in a file, and a chart beside it."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from foreframe_engines.testing import ToyRolloutEngine
from foreframe_server.cli import facts
from foreframe_server.reports.lines import flat_lines


def published(tmp_path, record):
    assert json.loads((tmp_path / "found" / "it.json").read_text()) == record
    with Image.open(tmp_path / "found" / "it.png") as picture:
        assert picture.format == "PNG"
    return record


@pytest.fixture
def out(tmp_path):
    return ("--out", tmp_path / "found" / "it.json")


def test_compression(run_json, episodes, token_bundle, tmp_path, out):
    data = episodes(tmp_path / "test", range(8_000_000, 8_000_003))
    train, validation = episodes(tmp_path / "train", range(4)), episodes(tmp_path / "val", range(7_000_000, 7_000_002))
    sets = ("--data", data, "--train", train, "--validation", validation, "--train-episodes", 3)
    record = run_json("eval", "compression", *sets, "--bundle", token_bundle, "--clips", 3, "--top-k", 2, *out)
    assert (published(tmp_path, record)["clips"], record["train_tokens"]) == (3, 3 * 16 * 4)
    assert set(record["baselines"]) == {"uniform", "unigram", "per_position", "copy_previous", "bigram"}
    assert record["teacher_forced"]["low"] <= record["teacher_forced"]["mean"] <= record["teacher_forced"]["high"]


def test_rollouts_of_two_bundles(run_json, episodes, token_bundle, tmp_path, out):
    data = episodes(tmp_path / "test", range(8_000_000, 8_000_003))
    two = ("--bundle", token_bundle, "--against", token_bundle, "--label", "plain", "--against-label", "scheduled")
    sizes = ("--clips", 3, "--context-grids", 3, "--target-grids", 4)
    record = published(tmp_path, run_json("eval", "rollouts", "--data", data, *two, *sizes, *out))
    assert [model["label"] for model in record["models"]] == ["plain", "scheduled"]
    assert record["second_minus_first"]["autoregressive"] == {"mean": 0, "low": 0, "high": 0}
    assert len(record["models"][0]["teacher_forced_per_step"]) == 4


def test_states(run_json, tmp_path, out):
    record = published(tmp_path, run_json("eval", "states", "--clips", 2, *out))
    assert (record["clips"], record["seed"]) == (2, 0)
    assert len(record["answers"]["true_states"]["psnr_db"]) == 8


def test_ensembles_up_to_a_size(run_json, tmp_path, out):
    record = published(tmp_path, run_json("eval", "ensembles", "--clips", 2, "--largest", 5, *out))
    assert {answer["size"] for answer in record["answers"] if answer["strategy"] == "median"} == {5}


def test_noise_against_a_reference(run_json, monkeypatch, tmp_path, out):
    """On the shipped clips with the toy's arithmetic: the model itself takes a minute a clip."""
    monkeypatch.setattr(
        facts,
        "open_rollout_engine",
        lambda bundle, num_threads: ToyRolloutEngine(replace(bundle.contract, latent_shape=(3, 32, 32))),
    )
    record = published(tmp_path, run_json("eval", "noise", "--clips", 2, "--reference", 16, *out))
    assert (record["clips"], record["reference_members"], record["frame"]) == (2, 16, 8)
    assert record["inside_masks"]["clips"] == 2
    assert {(each["members"], each["steps"]) for each in record["spent"] if each["evaluations"] == 64} == {
        (64, 1), (32, 2), (16, 4), (8, 8), (4, 16),
    }  # fmt: skip


@pytest.mark.parametrize(
    "option", [("--data", "a"), ("--clips", 2), ("--bundle", "b"), ("--json",), ("--noise-plans",)]
)
def test_an_experiment_s_options_stand_behind_its_name(run, option):
    result = run("eval", *option, "states")
    assert result.exit_code == 2
    assert "belongs after the subcommand states" in " ".join(result.stderr.replace("│", " ").split())


def test_plain_eval_takes_its_options_before_and_without_a_subcommand(run):
    result = run("eval", "--clips", 1000)
    assert (result.exit_code, result.stdout) == (3, "")
    assert "24 clips" in result.stderr
    assert "compression" in run("eval", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("eval", "compression", "--data", "a", "--train", "a", "--validation", "a"), "a holds no dataset.json"),
        (("eval", "rollouts", "--data", "a", "--target-grids", 20), "at most 16 grids"),
        (("eval", "rollouts", "--data", "a"), "a holds no dataset.json"),
        (("bench", "history", "--data", "a"), "a holds no dataset.json"),
        (("calibrate", "--data", "a"), "a holds no dataset.json"),
    ],
)
def test_faults_end_with_3_and_one_line(run, token_bundle, arguments, words):
    result = run(*arguments, "--bundle", token_bundle, *(("--top-k", 2) if "compression" in arguments else ()))
    assert (result.exit_code, result.stdout) == (3, ""), result.stderr
    assert words in result.stderr.splitlines()[-1]


def test_more_top_ids_than_there_are_is_a_fault(run, token_bundle):
    sets = ("--data", "a", "--train", "a", "--validation", "a")
    result = run("eval", "compression", *sets, "--bundle", token_bundle)
    assert result.exit_code == 3
    assert "6 ids" in result.stderr


def test_another_ending_than_json_is_wrong_usage(run):
    for arguments in (("eval", "states", "--data", "nowhere"), ("bench", "history", "--data", "nowhere")):
        assert run(*arguments, "--out", "found.png").exit_code == 2


def test_a_record_is_shown_line_by_line():
    interval = {"mean": 1.23456, "low": 1, "high": 2}
    record = {"experiment": "x", "a": 1, "b": {"c": interval}, "d": [interval, interval], "e": [{"f": 1}], "g": None}
    assert dict(flat_lines(record)) == {
        "a": "1",
        "b.c": "1.235  (1 .. 2)",
        "d": "1.235, 1.235",
        "e": "1 entries, in the JSON",
    }
