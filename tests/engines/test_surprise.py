import json

import numpy as np
import pytest

from foreframe_engines import (
    BundleError,
    Calibration,
    SurpriseCalibration,
    calibrate_surprise,
    calibration_from_json,
    calibration_to_json,
)


@pytest.fixture
def calibration() -> SurpriseCalibration:
    return calibrate_surprise(np.random.default_rng(0).gamma(9, 20, 500).tolist())


def test_a_calibration_describes_its_grids() -> None:
    calibration = calibrate_surprise([float(bits) for bits in range(101)])
    assert (calibration.num_grids, calibration.mean, calibration.scenario) == (101, 50, "teacher_forced")
    assert calibration.std == pytest.approx(np.arange(101).std())
    assert calibration.quantiles == pytest.approx(tuple(range(101)))


@pytest.mark.parametrize(
    ("bits", "z", "quantile"), [(50, 0, 0.5), (25.5, -0.84, 0.255), (0, -1.71, 0), (-5, -1.89, 0), (200, 5.14, 1)]
)
def test_surprise_says_how_far_and_how_rare(bits: float, z: float, quantile: float) -> None:
    surprise = calibrate_surprise([float(bits) for bits in range(101)]).surprise(bits)
    assert surprise.z == pytest.approx(z, abs=0.01)
    assert surprise.quantile == pytest.approx(quantile)


def test_held_out_grids_have_even_quantiles_and_standard_z(calibration: SurpriseCalibration) -> None:
    held_out = [calibration.surprise(bits) for bits in np.random.default_rng(1).gamma(9, 20, 2000)]
    assert np.mean([one.z for one in held_out]) == pytest.approx(0, abs=0.15)
    assert np.std([one.z for one in held_out]) == pytest.approx(1, abs=0.15)
    assert np.histogram([one.quantile for one in held_out], 4, (0, 1))[0].min() > 400


@pytest.mark.parametrize("bits", [[], [3.0], [3.0, 3.0], [1.0, np.nan], [1.0, np.inf], [-1.0, 2.0]])
def test_grids_that_say_nothing_are_refused(bits: list[float]) -> None:
    with pytest.raises(ValueError, match="different, finite numbers"):
        calibrate_surprise(bits)


def test_a_calibration_comes_back_exactly(calibration: SurpriseCalibration) -> None:
    whole = Calibration(surprise=calibration)
    assert calibration_from_json(calibration_to_json(whole)) == whole


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("mean", ..., "'mean' is missing"),
        ("more", 1, "'more' is unknown"),
        ("scenario", "autoregressive", "scenario: only 'teacher_forced'"),
        ("num_grids", 0, "num_grids: expected an integer"),
        ("num_grids", 2.5, "num_grids: expected an integer"),
        ("mean", "1", "mean: expected a finite number"),
        ("mean", 1e6, "mean: outside the quantiles"),
        ("std", 0, "std: expected a number above 0"),
        ("quantiles", [1, 2], "quantiles: expected 101 ascending"),
        ("quantiles", [1.0] * 100 + [0.5], "quantiles: expected 101 ascending"),
        ("quantiles", [-1.0] * 101, "quantiles: expected 101 ascending"),
        ("quantiles", [None] * 101, "quantiles: expected a finite number"),
    ],
)
def test_a_wrong_calibration_is_refused_by_key(
    calibration: SurpriseCalibration, key: str, value: object, message: str
) -> None:
    document = json.loads(calibration_to_json(Calibration(surprise=calibration)))
    document["surprise"][key] = value
    if value is ...:
        del document["surprise"][key]
    with pytest.raises(BundleError, match=message) as caught:
        calibration_from_json(json.dumps(document))
    assert str(caught.value).startswith("calibration.json: surprise: ")


@pytest.mark.parametrize("text", ["", "[]", '{"surprise": NaN}', '{"surprise": 1, "surprise": 2}', '{"mean": 1}'])
def test_text_that_is_no_strict_record_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match=r"calibration\.json"):
        calibration_from_json(text)
