"""What spread is usual: bounds hold for recordings like those measured, and for nothing that was drawn otherwise."""

import json
from dataclasses import replace

import numpy as np
import pytest

from foreframe_engines import (
    BundleError,
    Calibration,
    EnsembleSpec,
    MeasuredSpread,
    NoisePlan,
    Prediction,
    Reducer,
    Sampling,
    SpreadCalibration,
    Strategy,
    calibrate_scales,
    calibration_from_json,
    calibration_to_json,
)
from foreframe_engines.spread import SpreadScale

FRAMES = 3
SCALES = (
    SpreadScale(2, (0.2, 0.3, 0.4), (3.0, 2.0, 1.0)),
    SpreadScale(8, (0.1, 0.2, 0.3), (2.0, 1.5, 0.5)),
)
CALIBRATION = SpreadCalibration(40, 0.95, 4, 1.0, NoisePlan.ANTITHETIC, SCALES)


def prediction(spread: tuple[float, ...], members: int = 8, indices: tuple[int, ...] = (1, 2, 3)) -> Prediction:
    shape = (len(indices), 2, 2)
    return Prediction(
        frame_indices=indices,
        frames=np.zeros((*shape, 3), np.uint8),
        members=np.zeros((members, *shape, 3), np.uint8),
        variance=np.zeros(shape, np.float32),
        spread_per_frame=spread,
        sampling=Sampling(Strategy.SAMPLE, 4, 0),
        ensemble=EnsembleSpec(members),
    )


def draw(num_clips: int, seed: int) -> MeasuredSpread:
    """Make spreads that grow over frames, with errors that follow them; all frames of a clip go together."""
    rng = np.random.default_rng(seed)
    spread = rng.lognormal(0, 0.3, (num_clips, 1)) * np.array([0.1, 0.2, 0.3]) * rng.lognormal(0, 0.05, (num_clips, 3))
    return MeasuredSpread(spread, spread * rng.lognormal(0.7, 0.2, (num_clips, 3)))


@pytest.mark.parametrize(
    ("spread", "horizon", "verdict"),
    [((0.1, 0.2, 0.3), 3, "usual"), ((0.1, 0.2, 0.31), 2, "partly"), ((0.11, 0.0, 0.0), 0, "unusual")],
)
def test_the_horizon_ends_before_the_first_frame_beyond_its_line(
    spread: tuple[float, ...], horizon: int, verdict: str
) -> None:
    judgement = CALIBRATION.judge(prediction(spread))
    assert judgement is not None
    assert (judgement.trusted_horizon, judgement.verdict) == (horizon, verdict)
    assert judgement.line_per_frame == SCALES[1].line_per_frame
    assert judgement.error_per_frame == pytest.approx(np.multiply(spread, SCALES[1].error_per_spread))


def test_frames_that_were_not_asked_are_not_judged() -> None:
    judgement = CALIBRATION.judge(prediction((0.1, 0.31), indices=(1, 3)))
    assert judgement is not None
    assert (judgement.line_per_frame, judgement.trusted_horizon, judgement.num_usual) == ((0.1, 0.3), 1, 1)


@pytest.mark.parametrize(("members", "scale"), [(2, 0), (7, 0), (8, 1), (20, 1)])
def test_the_largest_measured_ensemble_that_fits_decides(members: int, scale: int) -> None:
    judgement = CALIBRATION.judge(prediction((0.1, 0.1, 0.1), members))
    assert judgement is not None
    assert judgement.line_per_frame == SCALES[scale].line_per_frame


def test_the_error_of_another_reducer_was_not_measured() -> None:
    typical = prediction((0.1, 0.1, 0.1))
    typical = replace(typical, ensemble=replace(typical.ensemble, reducer=Reducer.MEDOID))
    judgement = CALIBRATION.judge(typical)
    assert judgement is not None
    assert judgement.error_per_frame is None


def test_what_was_drawn_otherwise_is_not_judged() -> None:
    usual = prediction((0.1, 0.1, 0.1))
    assert CALIBRATION.judge(usual) is not None
    for other in (
        prediction((0.0, 0.0, 0.0), members=1),
        replace(usual, sampling=replace(usual.sampling, steps=3)),
        replace(usual, sampling=replace(usual.sampling, guidance=2.0)),
        replace(usual, sampling=replace(usual.sampling, strategy=Strategy.POSTERIOR_MEAN)),
        replace(usual, ensemble=replace(usual.ensemble, noise=NoisePlan.IID)),
        replace(usual, frame_indices=(2, 3, 4)),
    ):
        assert CALIBRATION.judge(other) is None


@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.95])
def test_new_recordings_keep_the_bounds_as_often_as_stated(coverage: float) -> None:
    (scale,) = calibrate_scales({8: draw(2000, 0)}, coverage)
    new = draw(4000, 1)
    kept = (new.spread <= scale.line_per_frame).all(axis=1).mean()
    within = (new.error <= new.spread * scale.error_per_spread).mean(axis=0)
    assert kept == pytest.approx(coverage, abs=0.03)
    np.testing.assert_allclose(within, coverage, atol=0.03)


def test_recordings_that_spread_more_are_told() -> None:
    (scale,) = calibrate_scales({8: draw(200, 0)}, 0.95)
    assert (2 * draw(400, 1).spread > scale.line_per_frame).any(axis=1).mean() > 0.5


@pytest.mark.parametrize(("clips", "coverage"), [(18, 0.95), (8, 0.9), (98, 0.99)])
def test_too_few_clips_for_a_coverage_are_refused(clips: int, coverage: float) -> None:
    with pytest.raises(ValueError, match=rf"needs at least {clips + 1} clips"):
        calibrate_scales({8: draw(clips, 0)}, coverage)
    calibrate_scales({8: draw(clips + 1, 0)}, coverage)


@pytest.mark.parametrize("spread", [0.0, np.nan])
def test_members_that_do_not_differ_tell_nothing(spread: float) -> None:
    measured = draw(40, 0)
    measured.spread[3, 1] = spread
    with pytest.raises(ValueError, match="members that differ"):
        calibrate_scales({8: measured}, 0.9)


def test_a_calibration_comes_back_exactly() -> None:
    whole = Calibration(spread=replace(CALIBRATION, scales=calibrate_scales({4: draw(40, 0), 2: draw(40, 1)}, 0.9)))
    assert calibration_from_json(calibration_to_json(whole)) == whole


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("coverage", 1, "coverage: expected a number between 0 and 1"),
        ("coverage", "most", "coverage: expected a finite number"),
        ("noise", "pink", "noise: expected one of"),
        ("steps", 0, "steps: expected an integer"),
        ("more", 1, "'more' is unknown"),
        ("scales", [], "scales: expected a list that is not empty"),
    ],
)
def test_a_wrong_calibration_is_refused_by_key(key: str, value: object, message: str) -> None:
    document = json.loads(calibration_to_json(Calibration(spread=CALIBRATION)))
    document["spread"][key] = value
    with pytest.raises(BundleError, match=message):
        calibration_from_json(json.dumps(document))


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ([(1, [0.1], [1])], "ascending members from 2"),
        ([(8, [0.1], [1]), (2, [0.1], [1])], "ascending members from 2"),
        ([(2, [0.1], [1]), (2, [0.1], [1])], "ascending members from 2"),
        ([(2, [0.1], [1]), (8, [0.1, 0.2], [1, 1])], "one length"),
        ([(2, [0.1, 0.2], [1])], "as many numbers above 0"),
        ([(2, [0.0], [1])], "as many numbers above 0"),
    ],
)
def test_scales_that_contradict_each_other_are_refused(scales: list[tuple[int, object, object]], message: str) -> None:
    document = json.loads(calibration_to_json(Calibration(spread=CALIBRATION)))
    document["spread"]["scales"] = [
        {"members": members, "line_per_frame": line, "error_per_spread": ratios} for members, line, ratios in scales
    ]
    with pytest.raises(BundleError, match=message):
        calibration_from_json(json.dumps(document))
