"""`calibrate` writes a file that the bundle opens with, and leaves alone what it may not change."""

import json
from dataclasses import replace

import numpy as np
import pytest

from foreframe_engines import Bundle
from foreframe_engines.calibration import UNCALIBRATED
from foreframe_engines.testing import ToyLikelihoodEngine
from foreframe_server.cli import calibrate, facts


@pytest.fixture
def data(episodes, tmp_path):
    return episodes(tmp_path / "val", range(7_000_000, 7_000_003))


def test_a_calibrated_bundle_opens_and_has_another_digest(run_json, token_bundle, data):
    before = Bundle.open(token_bundle)
    assert before.calibration == UNCALIBRATED
    record = run_json("calibrate", "--bundle", token_bundle, "--data", data, "--clips", 3, "--coverage", 0.5)
    after = Bundle.open(token_bundle)
    assert after.digest == record["digest"] != before.digest
    surprise, told = after.calibration.surprise, record["surprise"]
    assert (surprise.num_grids, told["num_grids"]) == (24, 24)
    assert surprise.mean == told["mean"]
    assert list(surprise.quantiles) == told["quantiles"]
    assert 0 < told["quantiles"][0] < told["mean"] < told["quantiles"][-1]


def test_the_spread_is_measured_by_the_engine_that_predicts(run_json, token_bundle, data):
    told = run_json("calibrate", "--bundle", token_bundle, "--data", data, "--clips", 3, "--coverage", 0.5)["spread"]
    spread = Bundle.open(token_bundle).calibration.spread
    assert (spread.num_clips, spread.coverage, spread.steps) == (3, 0.5, told["steps"])
    assert [scale.members for scale in spread.scales] == [2, 4, 8, 16]
    assert all(ratio > 1 for scale in spread.scales for ratio in scale.error_per_spread)


def test_too_few_clips_are_said_to_be(run, token_bundle, data):
    result = run("calibrate", "--bundle", token_bundle, "--data", data, "--clips", 3)
    assert result.exit_code == 3
    assert "needs at least 19 clips" in result.stderr
    assert not (token_bundle / "calibration.json").exists()


def test_calibrating_again_gives_the_same_bundle(run_json, token_bundle, data):
    arguments = ("calibrate", "--bundle", token_bundle, "--data", data, "--clips", 3, "--coverage", 0.5)
    assert run_json(*arguments)["digest"] == run_json(*arguments)["digest"]


def test_the_built_in_bundle_is_left_alone_unless_asked(run, run_json, token_bundle, data, monkeypatch):
    monkeypatch.setattr(calibrate, "BUILTIN", token_bundle.parent)
    before = (token_bundle / "manifest.json").read_bytes()
    refused = run("calibrate", "--bundle", token_bundle, "--data", data, "--clips", 3, "--coverage", 0.5)
    assert refused.exit_code == 3
    assert "--in-place" in refused.stderr
    assert (token_bundle / "manifest.json").read_bytes() == before
    run_json("calibrate", "--bundle", token_bundle, "--data", data, "--clips", 3, "--coverage", 0.5, "--in-place")
    assert json.loads((token_bundle / "manifest.json").read_text())["files"]["calibration.json"]["size"] > 0


def test_a_folder_that_may_not_be_written_is_refused_before_the_work(run, token_bundle, data, monkeypatch):
    monkeypatch.setattr(calibrate, "access", lambda path, mode: False)
    result = run("calibrate", "--bundle", token_bundle, "--data", data)
    assert result.exit_code == 3
    assert "may not be written" in result.stderr


class _Even(ToyLikelihoodEngine):
    """Finds every id equally likely."""

    def read(self, rows):
        scores = super().read(rows)
        return [replace(score, log_probability=np.full_like(score.log_probability, -1)) for score in scores]


def test_grids_that_all_cost_the_same_are_refused(run, token_bundle, data, monkeypatch):
    monkeypatch.setattr(facts, "open_likelihood_engine", lambda bundle, num_threads: _Even(bundle.contract))
    result = run("calibrate", "--bundle", token_bundle, "--data", data, "--clips", 3, "--coverage", 0.5)
    assert result.exit_code == 3
    assert "different" in result.stderr
    assert not (token_bundle / "calibration.json").exists()
