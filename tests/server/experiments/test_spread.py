"""What a calibration is worth: it holds on recordings like those it saw, and what it does not notice is said."""

from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest

from foreframe_engines import sample
from foreframe_engines.ensemble import EnsembleStatistics
from foreframe_engines.surprise import calibrate_surprise
from foreframe_server.cli.console import format_json
from foreframe_server.experiments.spread import SIZES, calibrate_spread, measure_spreads, spread_query
from foreframe_server.experiments.spread_checks import (
    FAULTS,
    OTHER_STATES,
    RECORDED,
    Reader,
    check_spread,
    spread_chart,
    summarise_checks,
)
from foreframe_server.plots import plot_curves


@pytest.fixture
def predict(rollout_engine):
    return partial(sample, rollout_engine)


@pytest.fixture
def calibration(predict, rollout_engine, clips):
    contract = rollout_engine.contract
    return calibrate_spread(contract, list(measure_spreads(predict, contract, clips)), 0.5)


def test_each_size_is_measured_by_its_own_members(predict, rollout_engine, clips):
    contract = rollout_engine.contract
    for clip, measured in zip(clips, measure_spreads(predict, contract, clips), strict=True):
        for size in SIZES:
            drawn = predict(spread_query(contract, clip, size))
            assert measured[size].spread.tolist() == list(drawn.spread_per_frame)
            error = np.square(drawn.members.mean(axis=0) - clip.frames[4:]).mean(axis=(1, 2, 3))
            np.testing.assert_allclose(measured[size].error, np.sqrt(error) / 255)


def test_a_bundle_s_own_guidance_is_what_is_measured(rollout_engine, clips):
    contract = rollout_engine.contract
    guided = replace(contract, sampler=replace(contract.sampler, guidance=3.5))
    assert spread_query(guided, clips[0]).sampling.guidance == 3.5
    assert spread_query(contract, clips[0]).sampling.guidance == 1.0


def test_every_case_is_measured_and_faults_change_what_is_seen(predict, rollout_engine, clips, calibration):
    seen = []

    def watching(query):
        seen.append(query)
        return predict(query)

    contract = rollout_engine.contract
    measured = list(check_spread(watching, contract, clips, calibration, None))
    assert set(measured[0]) == {RECORDED, OTHER_STATES, *FAULTS}
    first, other, *faults = seen[: len(measured[0])]
    assert first.context.tobytes() == other.context.tobytes() == clips[0].frames[:4].tobytes()
    assert first.states.tobytes() != other.states.tobytes()
    for query in faults:
        assert query.context.shape == first.context.shape
        assert query.context.tobytes() != first.context.tobytes()
        assert query.states.tobytes() == first.states.tobytes()


def test_recordings_seen_keep_what_they_were_calibrated_to(predict, rollout_engine, clips, calibration):
    measured = list(check_spread(predict, rollout_engine.contract, clips, calibration, None))
    report = summarise_checks(rollout_engine.contract, measured, calibration)
    assert report.cases[RECORDED].told_by_spread.mean <= 0.5
    assert min(each.mean for each in report.within_bound) >= 0.5
    assert report.cases[RECORDED].told_by_surprise is None
    for frame, each in enumerate(report.spread):
        by_hand = [
            EnsembleStatistics.of(predict(spread_query(rollout_engine.contract, clip, 8)).members) for clip in clips
        ]
        spreads = [statistics.spread_per_frame(calibration.noise)[frame] for statistics in by_hand]
        assert each.mean == pytest.approx(np.mean(spreads), abs=1e-5)


def test_surprise_is_told_beside_it(predict, rollout_engine, likelihood_engine, clips, calibration, tmp_path):
    reader = Reader(likelihood_engine, calibrate_surprise([1.0, 2.0, 3.0]))
    measured = list(check_spread(predict, rollout_engine.contract, clips, calibration, reader))
    report = summarise_checks(rollout_engine.contract, measured, calibration)
    assert report.cases[RECORDED].told_by_surprise.mean == 1  # any frame costs more than three bits
    format_json(asdict(report))
    plot_curves(spread_chart(report), tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 10_000
