"""What spread is usual, and how large an error comes with it: members of held-out episodes against what happened.

Both bounds are split-conformal (Vovk et al., "Algorithmic Learning in a Random World", 2005; error over spread as in
Lei et al., arXiv 1604.04173, section 5.2): on recordings like those measured they hold with the coverage stated. They
say nothing of other recordings, and a model that is wrong can be sure: its spread may be usual all the same.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float64

from foreframe_engines.errors import BundleError
from foreframe_engines.strict_json import JsonRecord
from foreframe_engines.types import NoisePlan, Prediction, Reducer, Strategy

Verdict: TypeAlias = Literal["usual", "partly", "unusual"]

SPREAD_KEYS = ("num_clips", "coverage", "steps", "guidance", "noise", "scales")
_SCALE_KEYS = ("members", "line_per_frame", "error_per_spread")


@dataclass(frozen=True, slots=True)
class MeasuredSpread:
    """Spreads of ensembles of one size, and the errors of their means: root mean square over pixels, white is 1."""

    spread: Float64[np.ndarray, "n f"]
    error: Float64[np.ndarray, "n f"]


@dataclass(frozen=True, slots=True)
class SpreadScale:
    """What holds for ensembles of at least so many members, a number for each frame of the horizon.

    line_per_frame: the spread that whole predictions stay under, at all frames at once. error_per_spread: what a
    frame's error stays under, as a multiple of its spread.
    """

    members: int
    line_per_frame: tuple[float, ...]
    error_per_spread: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Judgement:
    """How a prediction's spread compares, a number for each of its frames.

    error_per_frame: None where the answer is not the mean. trusted_horizon: the last frame before the first whose
    spread passes its line, 0 when the first does. num_usual: how many frames come before that one.
    """

    coverage: float
    line_per_frame: tuple[float, ...]
    error_per_frame: tuple[float, ...] | None
    trusted_horizon: int
    num_usual: int

    @property
    def verdict(self) -> Verdict:
        """Say where the spread passes its line: nowhere, at the first frame, or at a later one."""
        if self.num_usual == len(self.line_per_frame):
            return "usual"
        return "partly" if self.num_usual else "unusual"


@dataclass(frozen=True, slots=True)
class SpreadCalibration:
    """Bounds that `coverage` of held-out predictions keep, for ensembles drawn as stated. Scales ascend in members."""

    num_clips: int
    coverage: float
    steps: int
    guidance: float
    noise: NoisePlan
    scales: tuple[SpreadScale, ...]

    @property
    def num_frames(self) -> int:
        """How many frames of the horizon it knows."""
        return len(self.scales[0].line_per_frame)

    def judge(self, prediction: Prediction) -> Judgement | None:
        """Compare a prediction's spread with what is usual; None where it was drawn otherwise than was measured."""
        scale = self._scale(prediction)
        if scale is None:
            return None
        places = [index - 1 for index in prediction.frame_indices]
        line = tuple(scale.line_per_frame[place] for place in places)
        spread = prediction.spread_per_frame
        beyond = (at for at, (one, most) in enumerate(zip(spread, line, strict=True)) if one > most)
        num_usual = next(beyond, len(line))
        is_mean = prediction.ensemble.reducer is Reducer.MEAN
        return Judgement(
            coverage=self.coverage,
            line_per_frame=line,
            error_per_frame=tuple(
                scale.error_per_spread[place] * one for place, one in zip(places, spread, strict=True)
            )
            if is_mean
            else None,
            trusted_horizon=prediction.frame_indices[num_usual - 1] if num_usual else 0,
            num_usual=num_usual,
        )

    def _scale(self, prediction: Prediction) -> SpreadScale | None:
        drawn = prediction.sampling
        if drawn.strategy is not Strategy.SAMPLE or prediction.ensemble.noise is not self.noise:
            return None
        if (drawn.steps, drawn.guidance) != (self.steps, self.guidance):
            return None
        if max(prediction.frame_indices) > self.num_frames:
            return None
        return next((scale for scale in reversed(self.scales) if scale.members <= prediction.num_members), None)


def calibrate_scales(measured: Mapping[int, MeasuredSpread], coverage: float) -> tuple[SpreadScale, ...]:
    """Find the bounds for each number of members, from at least two.

    Raises ValueError when there are too few clips for the coverage, or when members of a clip do not differ.
    """
    return tuple(_scale(members, measured[members], coverage) for members in sorted(measured))


def _scale(members: int, measured: MeasuredSpread, coverage: float) -> SpreadScale:
    spread, error = measured.spread, measured.error
    if not (np.isfinite(spread).all() and np.isfinite(error).all() and spread.size and spread.min() > 0):
        raise ValueError("a calibration needs finite errors and members that differ")
    usual = spread.mean(axis=0)
    largest = _conformal_quantile((spread / usual).max(axis=1, keepdims=True), coverage)
    return SpreadScale(
        members,
        tuple((largest * usual).tolist()),
        tuple(_conformal_quantile(error / spread, coverage).tolist()),
    )


def _conformal_quantile(values: Float64[np.ndarray, "n f"], coverage: float) -> Float64[np.ndarray, " f"]:
    """Return what one more value stays under with at least this probability."""
    place = _ceil((len(values) + 1) * coverage)
    if place > len(values):
        least = _ceil(coverage / (1 - coverage))
        raise ValueError(f"a coverage of {coverage:g} needs at least {least} clips")
    found: Float64[np.ndarray, " f"] = np.sort(values, axis=0)[place - 1]
    return found


def _ceil(value: float) -> int:
    """Round up, except where a decimal fraction missed a whole number by its binary rest."""
    return math.ceil(round(value, 9))


def read_spread(record: JsonRecord) -> SpreadCalibration:
    """Read the object with SPREAD_KEYS. Raises BundleError naming the key that is wrong."""
    coverage, scales = record.number("coverage"), tuple(map(_read_scale, record.records("scales", _SCALE_KEYS)))
    if not 0 < coverage < 1:
        raise BundleError(f"{record.at('coverage')}: expected a number between 0 and 1")
    sizes, lengths = [scale.members for scale in scales], {len(scale.line_per_frame) for scale in scales}
    if sizes != sorted(set(sizes)) or sizes[0] < 2 or len(lengths) > 1:
        raise BundleError(f"{record.at('scales')}: expected ascending members from 2, and one length")
    if record.text("noise") not in tuple(NoisePlan):
        raise BundleError(f"{record.at('noise')}: expected one of {', '.join(NoisePlan)}")
    return SpreadCalibration(
        num_clips=record.count("num_clips"),
        coverage=coverage,
        steps=record.count("steps"),
        guidance=record.number("guidance"),
        noise=NoisePlan(record.text("noise")),
        scales=scales,
    )


def _read_scale(record: JsonRecord) -> SpreadScale:
    line, ratios = record.numbers("line_per_frame"), record.numbers("error_per_spread")
    if len(line) != len(ratios) or min(*line, *ratios) <= 0:
        raise BundleError(f"{record.at('line_per_frame')}: expected as many numbers above 0 as in error_per_spread")
    return SpreadScale(record.count("members"), line, ratios)
