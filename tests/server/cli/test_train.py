"""`world generate` and `train rollout` from the command line, on as little as there can be."""

import pytest


def test_a_machine_without_gl_is_told_which_packages_to_install(run, monkeypatch):
    pytest.importorskip("mujoco")
    monkeypatch.setenv("MUJOCO_GL", "disable")
    result = run("world", "generate", "--out", "data", "--episodes", 1)
    assert result.exit_code == 3
    assert "libegl1" in result.stderr
    assert "MUJOCO_GL=osmesa" in result.stderr


def test_both_stages_are_trained_once(run_json, episodes, tmp_path):
    pytest.importorskip("torch")
    data, validation = episodes(tmp_path / "train", [0, 1]), episodes(tmp_path / "validation", [7_000_000])
    arguments = ("train", "rollout", "--data", data, "--validation", validation, "--out", "run")
    arguments = (*arguments, "--autoencoder-steps", 1, "--batch-size", 1, "--steps", 1)
    first = run_json(*arguments)
    assert first["autoencoder"]["step"] == first["rollout"]["step"] == 1
    for name in ("autoencoder/autoencoder.pt", "rollout/rollout.pt", "rollout/statistics.json"):
        assert (tmp_path / "run" / name).is_file()
    again = run_json(*arguments)
    assert again["autoencoder"] == again["rollout"] == {}


def test_the_likelihood_half_is_trained_with_scheduled_sampling(run_json, episodes, tmp_path, few_held_out_clips):
    pytest.importorskip("torch")
    data, validation = episodes(tmp_path / "train", [0, 1]), episodes(tmp_path / "validation", [7_000_000])
    arguments = ("train", "likelihood", "--data", data, "--validation", validation, "--out", "run")
    arguments = (*arguments, "--tokenizer-steps", 1, "--batch-size", 1, "--steps", 2, "--own-input", 0.5)
    report = run_json(*arguments)
    assert (report["tokenizer"]["step"], report["likelihood"]["step"]) == (1, 2)
    for name in ("tokenizer/tokenizer.pt", "likelihood/likelihood.pt"):
        assert (tmp_path / "run" / name).is_file()
