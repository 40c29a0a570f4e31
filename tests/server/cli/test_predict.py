"""`predict` and `eval` on the built-in model; quality is not looked at, only that numbers are numbers."""

import json
import math
import re
import shutil
from dataclasses import replace

import httpx
import numpy as np
import pytest
from PIL import Image

from foreframe_engines import Bundle, builtin_bundle, write_manifest
from foreframe_engines.calibration import calibration_to_json
from foreframe_engines.episodes import load_clips
from foreframe_server.cli.overrides import read_overridden
from foreframe_server.cli.serving import running_server
from foreframe_server.codec.pictures import Size
from foreframe_server.codec.video import decode_mp4


def numbers(value):
    """Every number anywhere in a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [value] if isinstance(value, int | float) else []


def copy_psnr(clip):
    """PSNR of the last frame when the last of four context frames is copied, written out."""
    error = (clip.frames[3].astype(float) - clip.frames[-1].astype(float)) ** 2
    return 10 * math.log10(255**2 / error.mean())


def replace_lines(folder, lines):
    """Put other lines into the calibration of a bundle's spread, and return it."""
    calibration = Bundle.open(folder).calibration
    scales = tuple(replace(scale, line_per_frame=lines) for scale in calibration.spread.scales)
    spread = replace(calibration.spread, scales=scales)
    (folder / "calibration.json").write_text(calibration_to_json(replace(calibration, spread=spread)))
    write_manifest(folder)
    return spread


def test_the_printed_request_is_what_the_server_takes(run):
    printed = run("predict", "--start", 3, "--steps", 2, "--ensemble", 2, "--print-request")
    assert printed.exit_code == 0, printed.stderr
    with running_server(read_overridden(port=0, engine={"processes": 0})) as address:
        reply = httpx.post(f"{address}/v1/predictions", json=json.loads(printed.stdout))
    assert reply.status_code == 200, reply.text
    assert len(reply.json()["frames"]) == 8


def test_a_prediction_is_drawn_and_summed_up(run_json, clips_file, tmp_path):
    out = tmp_path / "pictures" / "strip.png"
    summary = run_json("predict", clips_file, "--start", 2, "--ensemble", 2, "--steps", 2, "--out", out)
    assert (summary["members"], summary["steps"], summary["frames"]) == (2, 2, 8)
    assert summary["psnr_copy_last"] == pytest.approx(copy_psnr(load_clips(clips_file)[2]), abs=1e-3)
    assert math.isfinite(summary["psnr_last"])
    with Image.open(out) as picture:
        assert picture.width > 12 * 2 * 64


@pytest.mark.parametrize("lines", [(9.0, 9.0, 9.0), (9.0, 9.0, 1e-6), (1e-6, 9.0, 9.0)])
def test_the_spread_is_judged_by_the_models_own_calibration(run, run_json, tmp_path, lines):
    folder = tmp_path / "bundle"
    shutil.copytree(builtin_bundle(), folder)
    calibration = replace_lines(folder, (*lines, *[9.0] * 5))
    beyond = next((place for place, line in enumerate(lines) if line < 1), 8)
    arguments = ("predict", "--bundle", folder, "--ensemble", 2, "--steps", calibration.steps)
    summary = run_json(*arguments)
    verdict = {8: "usual", 0: "unusual"}.get(beyond, "partly")
    assert (summary["verdict"], summary["trusted_horizon"]) == (verdict, beyond)
    shown = run(*arguments).stdout
    assert re.search(rf"verdict\W+{verdict}\b", shown)
    assert re.search(rf"trusted horizon\W+{beyond}\b", shown)
    other_steps = run_json(*arguments[:-1], calibration.steps - 1)
    assert (other_steps["verdict"], other_steps["trusted_horizon"]) == ("uncalibrated", None)


def test_a_server_gives_the_same_picture(run_json, clips_file, tmp_path):
    arguments = ("predict", clips_file, "--ensemble", 2, "--steps", 4, "--seed", 9, "--out")
    here = run_json(*arguments, tmp_path / "here.png")
    with running_server(read_overridden(host="127.0.0.1", port=0)) as address:
        there = run_json(*arguments, tmp_path / "there.png", "--url", address)
        assert run_json("models", "--url", address)["models"][0]["id"] == "eve-tabletop"
    assert (tmp_path / "here.png").read_bytes() == (tmp_path / "there.png").read_bytes()
    assert (here["verdict"], here["trusted_horizon"]) == (there["verdict"], there["trusted_horizon"])
    assert here["verdict"] != "uncalibrated"
    run_json(*arguments[:-2], 10, "--out", tmp_path / "other.png")
    assert (tmp_path / "here.png").read_bytes() != (tmp_path / "other.png").read_bytes()


def test_an_episode_becomes_a_film_of_the_posterior_mean(run_json, episodes, tmp_path):
    folder = episodes(tmp_path / "data", [8_000_000])
    arguments = ("--start", 4, "--strategy", "posterior_mean", "--out", "film.mp4")
    summary = run_json("predict", folder / "episode_08000000.npz", *arguments)
    assert (summary["members"], summary["steps"], summary["spread_last_grey_levels"]) == (1, 1, None)
    assert (summary["verdict"], summary["trusted_horizon"]) == ("uncalibrated", None)
    film = (tmp_path / "film.mp4").read_bytes()
    assert len(decode_mp4(film, 40, Size(2000, 2000), max_pad_pixels=2000 * 2000)) >= 12


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--start", 24), "0 to 23"),
        (("--ensemble", 99), "at most 32"),
        (("--steps", 999), "64 steps"),
    ],
)
def test_what_the_model_cannot_do_is_said(run, clips_file, arguments, words):
    result = run("predict", clips_file, *arguments)
    assert result.exit_code == 3
    assert words in result.stderr


@pytest.mark.parametrize(("num_frames", "size", "words"), [(8, 64, "shorter"), (16, 32, "are not the model's")])
def test_recordings_of_another_shape_are_refused(run, episodes, tmp_path, num_frames, size, words):
    folder = episodes(tmp_path / "data", [1], num_frames=num_frames, size=size)
    result = run("predict", folder / "episode_00000001.npz")
    assert result.exit_code == 3
    assert words in result.stderr


def test_files_that_are_no_recording_are_refused(run, tmp_path):
    (tmp_path / "text.npz").write_text("not a recording")
    np.savez(tmp_path / "other.npz", numbers=np.zeros(3))
    for name in ("text.npz", "other.npz"):
        result = run("predict", name)
        assert result.exit_code == 3
        assert name in result.stderr
        assert "pickle" not in result.stderr
    assert "is no episode (.npz); recordings are .mcap files or folders" in run("predict", "text.npz").stderr


def test_an_evaluation_is_one_object_of_finite_numbers(run_json, clips_file):
    report = run_json("eval", "--clips", 2)
    assert (report["clips"], report["horizon"]) == (2, 8)
    assert set(report["psnr_ensemble"]) == {"1", "2", "5", "10", "20"}
    assert set(report["latency_ms"]) == {"posterior_mean_p50", "ensemble8_p50"}
    assert set(report) >= {"psnr_sample", "psnr_posterior_mean", "psnr_zero_states", "psnr_shuffled_states"}
    assert len(report["spread_skill"]) == 8
    assert all(math.isfinite(number) for number in numbers(report))
    expected = np.mean([copy_psnr(clip) for clip in load_clips(clips_file)[:2]])
    assert report["psnr_copy_last"] == pytest.approx(expected, abs=1e-3)


def test_models_here_are_listed_with_their_digest(run, run_json):
    (model,) = run_json("models")["models"]
    assert (model["id"], model["path"]) == ("eve-tabletop", str(builtin_bundle()))
    assert len(model["digest"]) == 64
    assert "eve-tabletop" in run("models").stdout
