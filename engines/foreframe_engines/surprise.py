"""What surprise is usual: bits a grid over held-out episodes, teacher forced, and where a new number stands in them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foreframe_engines.errors import BundleError
from foreframe_engines.strict_json import JsonRecord

SCENARIO = "teacher_forced"
"""The only one calibrated: the grids before a surprise did happen."""
NUM_QUANTILES = 101

SURPRISE_KEYS = ("scenario", "num_grids", "mean", "std", "quantiles")


@dataclass(frozen=True, slots=True)
class Surprise:
    """How unusual a grid's bits are: standard deviations above the mean, and the share 0..1 of grids with fewer."""

    z: float
    quantile: float


@dataclass(frozen=True, slots=True)
class SurpriseCalibration:
    """Bits a grid on held-out episodes; `quantiles` are those of 0, 1, ... 100 %."""

    num_grids: int
    mean: float
    std: float
    quantiles: tuple[float, ...]
    scenario: str = SCENARIO

    def surprise(self, bits: float) -> Surprise:
        """Place one grid's bits; beyond the extremes seen the quantile stays 0 or 1 while z goes on."""
        quantile = np.interp(bits, self.quantiles, np.linspace(0, 1, NUM_QUANTILES))
        return Surprise((bits - self.mean) / self.std, float(quantile))


def calibrate_surprise(bits_per_grid: Sequence[float]) -> SurpriseCalibration:
    """Describe held-out grids. Raises ValueError when their bits are all equal, not finite or negative."""
    values = np.array(bits_per_grid, np.float64)
    if not values.size or not np.isfinite(values).all() or values.min() < 0 or values.min() == values.max():
        raise ValueError("a calibration needs different, finite numbers of bits, none below 0")
    quantiles = np.quantile(values, np.linspace(0, 1, NUM_QUANTILES))
    return SurpriseCalibration(values.size, float(values.mean()), float(values.std()), tuple(quantiles.tolist()))


def read_surprise(record: JsonRecord) -> SurpriseCalibration:
    """Read the object with SURPRISE_KEYS. Raises BundleError naming the key that is wrong."""
    if record.text("scenario") != SCENARIO:
        raise BundleError(f"{record.at('scenario')}: only {SCENARIO!r} is known")
    std, quantiles = record.number("std"), record.numbers("quantiles")
    if std <= 0:
        raise BundleError(f"{record.at('std')}: expected a number above 0")
    if len(quantiles) != NUM_QUANTILES or quantiles[0] < 0 or list(quantiles) != sorted(quantiles):
        raise BundleError(f"{record.at('quantiles')}: expected {NUM_QUANTILES} ascending numbers, none below 0")
    if not quantiles[0] <= record.number("mean") <= quantiles[-1]:
        raise BundleError(f"{record.at('mean')}: outside the quantiles")
    return SurpriseCalibration(record.count("num_grids"), record.number("mean"), std, quantiles)
