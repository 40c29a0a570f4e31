"""A bundle's `calibration.json`: what spread and what surprise are usual on held-out episodes, each where measured."""

import json
from dataclasses import asdict, dataclass

from foreframe_engines.spread import SPREAD_KEYS, SpreadCalibration, read_spread
from foreframe_engines.strict_json import JsonRecord, parse_json
from foreframe_engines.surprise import SURPRISE_KEYS, SurpriseCalibration, read_surprise

CALIBRATION = "calibration.json"


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured of a model, if anything. spread: of its members. surprise: of its likelihoods."""

    spread: SpreadCalibration | None = None
    surprise: SurpriseCalibration | None = None


UNCALIBRATED = Calibration()


def calibration_to_json(calibration: Calibration) -> str:
    """Write the text of `calibration.json`; the numbers come back exactly."""
    parts = {name: part for name, part in asdict(calibration).items() if part is not None}
    return json.dumps(parts, indent=2) + "\n"


def calibration_from_json(text: str) -> Calibration:
    """Read the text of `calibration.json`. Raises BundleError naming the key that is wrong."""
    record = JsonRecord(parse_json(text, CALIBRATION), CALIBRATION, (), ("spread", "surprise"))
    return Calibration(
        spread=read_spread(record.record("spread", SPREAD_KEYS)) if record.has("spread") else None,
        surprise=read_surprise(record.record("surprise", SURPRISE_KEYS)) if record.has("surprise") else None,
    )
