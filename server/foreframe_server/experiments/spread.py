"""How far a rollout model's members spread on clips it has never seen, and how far their mean is from the truth."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, UInt8

from foreframe_engines import (
    Contract,
    EnsembleSpec,
    MeasuredSpread,
    Prediction,
    Query,
    SpreadCalibration,
    calibrate_scales,
)
from foreframe_engines.ensemble import EnsembleStatistics
from foreframe_engines.episodes import Clip
from foreframe_server.evaluation import Predict, clip_query, squared_errors

SIZES = (2, 4, 8, 16)
LARGEST = SIZES[-1]


@dataclass(frozen=True, slots=True, eq=False)
class ClipSpread:
    """Spread and error of each frame of one clip: root mean square over pixels, white is 1."""

    spread: Float64[np.ndarray, " f"]
    error: Float64[np.ndarray, " f"]


def measure_spreads(predict: Predict, contract: Contract, clips: Iterable[Clip]) -> Iterator[Mapping[int, ClipSpread]]:
    """Draw one ensemble a clip, and measure the first 2, 4, 8 and 16 members of it."""
    for clip in clips:
        drawn = predict(spread_query(contract, clip))
        yield {size: spread_of(drawn, size, clip.frames[contract.context_frames :]) for size in SIZES}


def spread_query(contract: Contract, clip: Clip, size: int = LARGEST) -> Query:
    """Ask for a clip's whole future as a request without wishes of its own is asked."""
    query = clip_query(contract, clip, size)
    return replace(query, sampling=replace(query.sampling, guidance=_guidance(contract)))


def _guidance(contract: Contract) -> float:
    return 1.0 if contract.sampler.guidance is None else contract.sampler.guidance


def spread_of(drawn: Prediction, size: int, truth: UInt8[np.ndarray, "f h w 3"]) -> ClipSpread:
    """Measure a prediction's first members."""
    members = drawn.members[:size]
    spread = EnsembleStatistics.of(members).spread_per_frame(drawn.ensemble.noise)
    return ClipSpread(np.array(spread), np.sqrt(squared_errors(members.mean(axis=0, dtype=np.float64), truth)))


def calibrate_spread(
    contract: Contract, clips: Sequence[Mapping[int, ClipSpread]], coverage: float
) -> SpreadCalibration:
    """Find the bounds that so many clips keep. Raises ValueError when there are too few for the coverage."""
    return SpreadCalibration(
        num_clips=len(clips),
        coverage=coverage,
        steps=contract.sampler.steps,
        guidance=_guidance(contract),
        noise=EnsembleSpec().noise,
        scales=calibrate_scales({size: stack([clip[size] for clip in clips]) for size in SIZES}, coverage),
    )


def stack(clips: Sequence[ClipSpread]) -> MeasuredSpread:
    """Put clips of one size of ensemble together."""
    return MeasuredSpread(np.stack([each.spread for each in clips]), np.stack([each.error for each in clips]))
