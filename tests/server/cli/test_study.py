"""`eval motion` and `eval attention`: one kind at a time or both, resumed from their folder, reported and drawn."""

import json

import pytest

pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def few_and_short_clips(monkeypatch, few_held_out_clips):
    """What takes minutes at full size and shows nothing more about the command."""
    monkeypatch.setattr("foreframe_server.cli.study.HELD_OUT", 4)
    monkeypatch.setattr("foreframe_server.cli.study.LENGTHS", (1, 4))


def test_both_kinds_are_compared_on_sprites(run, run_json, tmp_path):
    pytest.importorskip("matplotlib")
    arguments = ("eval", "motion", "--work", "work", "--steps", 1)
    for span in ("full", "factorised"):
        alone = run(*arguments, "--only", span, "--json")
        assert (alone.exit_code, alone.stdout) == (0, "")
    report = run_json(*arguments, "--out", "motion.json")
    assert [each["span"] for each in report["runs"]] == ["factorised", "full"]
    assert len({each["parameters"] for each in report["runs"]}) == 1
    assert report["final"]["full"].keys() == {"0", "1", "2", "3"}
    assert json.loads((tmp_path / "motion.json").read_text()) == report
    assert (tmp_path / "motion.png").read_bytes().startswith(b"\x89PNG")


def test_both_kinds_are_compared_on_a_worlds_tokens(run_json, episodes, tmp_path):
    pytest.importorskip("matplotlib")
    data, validation = episodes(tmp_path / "train", [0, 1]), episodes(tmp_path / "validation", [7_000_000])
    run_json("train", "likelihood", "--data", data, "--validation", validation, "--out", "run",
             "--tokenizer-steps", 1, "--steps", 1, "--batch-size", 1)  # fmt: skip
    report = run_json("eval", "attention", "--data", data, "--validation", validation, "--run", "run",
                      "--work", "work", "--steps", 1, "--out", "attention.json")  # fmt: skip
    assert report["final"].keys() == {"factorised", "full"}
    for interval in (*report["final"].values(), report["full_minus_factorised"]):
        assert interval["low"] <= interval["mean"] <= interval["high"]
    longest = {cost["span"]: cost for cost in report["costs"] if cost["grids"] == 4}
    assert all(cost["seconds"] > 0 and cost["kept_mib"] > 0 for cost in longest.values())
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")
