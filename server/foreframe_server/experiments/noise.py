"""How near the mean of few members is to that of very many, for each noise plan, and where evaluations are best spent.

The last frame, decoded to whole grey levels; means of members are not rounded again, and the reference's own sampling
error is taken off. One draw a plan gives several ensembles of each size, side by side. Errors are in squared grey
levels (0..255), pooled over pixels; masks are those of objects whose motion the states do not decide.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from foreframe_engines import Contract, EnsembleSpec, EnsembleStatistics, NoisePlan, Query
from foreframe_engines.episodes import Clip
from foreframe_server.evaluation import Predict, clip_query, psnr, squared_errors
from foreframe_server.intervals import Interval, Resamples

Members: TypeAlias = UInt8[np.ndarray, "k h w 3"]

_WHITE = 255.0
_STREAM = 10**12
"""Beyond every clip's own seed, so that the reference shares no draw with what is measured against it."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is drawn. Sizes are even except 1; `drawn` members are cut into ensembles of each size."""

    reference_members: int = 256
    drawn: int = 40
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 20)
    steps: tuple[int, ...] = (1, 2, 4, 8, 16)
    evaluations: tuple[int, ...] = (4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Ensemble:
    """One way to spend evaluations of the network: members of so many solver steps each."""

    noise: str
    members: int
    steps: int

    @property
    def evaluations(self) -> int:
        """How often the network runs."""
        return self.members * self.steps


@dataclass(frozen=True, slots=True, eq=False)
class RegionNoise:
    """What one clip shows in one region of the frame; means over its pixels, in squared grey levels.

    claimed: the squared standard error that an ensemble reports of itself. variance: estimated from antithetic members.
    """

    num_pixels: int
    error: Mapping[Ensemble, float]
    claimed: Mapping[Ensemble, float]
    variance: Mapping[int, float]
    reference_variance: float
    correlation: float


@dataclass(frozen=True, slots=True)
class SpentNoise:
    """What one way to spend evaluations gives on one clip: PSNR of its mean in dB, and its error."""

    psnr_db: float
    error: float


@dataclass(frozen=True, slots=True, eq=False)
class ClipNoise:
    """What one clip shows. inside: None where no pixel is uncertain."""

    seed: int
    overall: RegionNoise
    inside: RegionNoise | None
    spent: Mapping[Ensemble, SpentNoise]


@dataclass(frozen=True, slots=True)
class ErrorMeasures:
    """The error of one ensemble's mean, and over that of the largest independent ensemble.

    claimed_over_true: squared standard error that it reports of itself over its error.
    """

    noise: str
    members: int
    error: Interval
    over_largest_iid: Interval
    claimed_over_true: Interval | None


@dataclass(frozen=True, slots=True)
class SpreadMeasures:
    """The spread estimated from so many antithetic members, over that of the independent reference members."""

    members: int
    ratio: Interval


@dataclass(frozen=True, slots=True)
class RegionReport:
    """One region of the frame. correlation: within antithetic pairs, pooled over pixels."""

    clips: int
    errors: Sequence[ErrorMeasures]
    spread: Sequence[SpreadMeasures]
    correlation: Interval


@dataclass(frozen=True, slots=True)
class SpentMeasures:
    """What one way to spend evaluations gives. error: against the reference, which has the contract's steps."""

    noise: str
    members: int
    steps: int
    evaluations: int
    psnr_db: Interval
    error: Interval


@dataclass(frozen=True, slots=True)
class NoiseReport:
    """Every plan at every size and at equal compute; intervals are of 95 %, over episodes.

    best_by_psnr, best_by_error: of each number of evaluations, the best of `spent`.
    """

    model: str
    revision: str
    clips: int
    episodes: int
    seed: int
    steps: int
    frame: int
    reference_members: int
    overall: RegionReport
    inside_masks: RegionReport | None
    spent: Sequence[SpentMeasures]
    best_by_psnr: Sequence[SpentMeasures]
    best_by_error: Sequence[SpentMeasures]
    unit: str = "errors in squared grey levels (0..255), PSNR in dB, ratios without unit"
    experiment: str = "noise"


def measure_noise(
    predict: Predict, contract: Contract, clips: Iterable[Clip], scale: Scale | None = None
) -> Iterator[ClipNoise]:
    """Measure clips one after another; `predict` must take the largest size, which may be beyond the serving limit."""
    for clip in clips:
        yield _measure_clip(predict, contract, clip, scale or Scale())


def measure_spent(predict: Predict, contract: Contract, clip: Clip, scale: Scale) -> dict[Ensemble, SpentNoise]:
    """Measure one clip at every way to spend the scale's evaluations, and nothing else."""
    query = last_frame_query(contract, clip)
    centre = _Centre.of(_draw_reference(predict, query, scale))
    return dict(_measure_spent(predict, query, clip.frames[-1:], centre, scale))


def last_frame_query(contract: Contract, clip: Clip) -> Query:
    """Ask for the last frame of a clip's future."""
    return replace(clip_query(contract, clip), frame_indices=(contract.horizon,))


def _draw_reference(predict: Predict, query: Query, scale: Scale) -> Members:
    elsewhere = replace(query, sampling=replace(query.sampling, seed=query.sampling.seed + _STREAM))
    return _draw(predict, elsewhere, EnsembleSpec(scale.reference_members, noise=NoisePlan.IID))


def _measure_clip(predict: Predict, contract: Contract, clip: Clip, scale: Scale) -> ClipNoise:
    query = last_frame_query(contract, clip)
    reference = _draw_reference(predict, query, scale)
    members = {plan: _draw(predict, query, EnsembleSpec(scale.drawn, noise=plan)) for plan in NoisePlan}
    is_inside = clip.masks[-1] > 0
    steps = contract.sampler.steps

    def measure_region(is_chosen: Bool[np.ndarray, "h w"]) -> RegionNoise:
        chosen = {plan: drawn[:, is_chosen] for plan, drawn in members.items()}
        return _measure_region(chosen, _Centre.of(reference[:, is_chosen]), scale.sizes, steps)

    return ClipNoise(
        seed=clip.seed,
        overall=measure_region(np.ones_like(is_inside)),
        inside=measure_region(is_inside) if is_inside.any() else None,
        spent=dict(_measure_spent(predict, query, clip.frames[-1:], _Centre.of(reference), scale)),
    )


def _draw(predict: Predict, query: Query, ensemble: EnsembleSpec) -> Members:
    return predict(replace(query, ensemble=ensemble)).members[:, 0]


@dataclass(frozen=True, slots=True, eq=False)
class _Centre:
    """The mean of many independent members, and what its own sampling adds to an error measured against it."""

    mean: Float64[np.ndarray, "..."]
    variance: float
    own_error: float

    @classmethod
    def of(cls, reference: UInt8[np.ndarray, "k ..."]) -> "_Centre":
        variance = float(reference.var(axis=0, ddof=1, dtype=np.float64).mean())
        return cls(reference.mean(axis=0, dtype=np.float64), variance, variance / len(reference))

    def error(self, means: Float64[np.ndarray, "e ..."]) -> float:
        """Estimate the mean squared error of ensembles' means, unbiased."""
        return float(np.square(means - self.mean).mean()) - self.own_error


def _blocks(members: UInt8[np.ndarray, "k ..."], size: int) -> UInt8[np.ndarray, "e size ..."]:
    """Cut members into ensembles of a size; what is left over is left out."""
    count = len(members) // size
    return members[: count * size].reshape(count, size, *members.shape[1:])


def _measure_region(
    members: Mapping[NoisePlan, UInt8[np.ndarray, "k p 3"]], centre: _Centre, sizes: Sequence[int], steps: int
) -> RegionNoise:
    error, claimed, variance = {}, {}, {}
    for plan, drawn in members.items():
        for size in sizes:
            ensemble, blocks = Ensemble(plan.value, size, steps), _blocks(drawn, size)
            statistics = [_statistics(block) for block in blocks]
            error[ensemble] = centre.error(blocks.mean(axis=1))
            own = [each.standard_error(plan) for each in statistics]
            claimed[ensemble] = float(np.mean([np.nan if each is None else (each * _WHITE) ** 2 for each in own]))
            if plan is NoisePlan.ANTITHETIC and size > 1:
                variance[size] = float(np.mean([each.variance(plan).mean() for each in statistics])) * _WHITE**2
    correlation = _statistics(members[NoisePlan.ANTITHETIC]).correlation(NoisePlan.ANTITHETIC)
    num_pixels = members[NoisePlan.IID].shape[1]
    return RegionNoise(num_pixels, error, claimed, variance, centre.variance, correlation or 0.0)


def _statistics(members: UInt8[np.ndarray, "k p 3"]) -> EnsembleStatistics:
    return EnsembleStatistics.of(members[:, None, None])


def _measure_spent(
    predict: Predict, query: Query, truth: UInt8[np.ndarray, "1 h w 3"], centre: _Centre, scale: Scale
) -> Iterator[tuple[Ensemble, SpentNoise]]:
    most = max(scale.evaluations)
    for plan in NoisePlan:
        for steps in (steps for steps in scale.steps if steps <= most):
            asked = replace(query, sampling=replace(query.sampling, steps=steps))
            drawn = _draw(predict, asked, EnsembleSpec(most // steps, noise=plan))
            for size in (evaluations // steps for evaluations in scale.evaluations if evaluations >= steps):
                means = _blocks(drawn, size).mean(axis=1)
                errors = squared_errors(means, truth)
                yield Ensemble(plan.value, size, steps), SpentNoise(psnr(errors), centre.error(means))


def summarise_noise(
    contract: Contract, measured: Sequence[ClipNoise], reference_members: int, seed: int = 0
) -> NoiseReport:
    """Turn the measures of clips into the report's numbers."""
    seeds = [clip.seed for clip in measured]
    spent = summarise_spent([clip.spent for clip in measured], Resamples.of(seeds, seed))
    equal = group_equal(spent)
    return NoiseReport(
        model=contract.model,
        revision=contract.revision,
        clips=len(seeds),
        episodes=len(set(seeds)),
        seed=seed,
        steps=contract.sampler.steps,
        frame=contract.horizon,
        reference_members=reference_members,
        overall=_summarise_region([clip.overall for clip in measured], Resamples.of(seeds, seed)),
        inside_masks=_summarise_inside(measured, seed),
        spent=spent,
        best_by_psnr=[max(each, key=lambda one: one.psnr_db.mean) for each in equal],
        best_by_error=[min(each, key=lambda one: one.error.mean) for each in equal],
    )


def group_equal(spent: Sequence[SpentMeasures]) -> list[list[SpentMeasures]]:
    """Put the ways of equal compute together, the least first."""
    evaluations = sorted({each.evaluations for each in spent})
    return [[each for each in spent if each.evaluations == count] for count in evaluations]


def summarise_spent(measured: Sequence[Mapping[Ensemble, SpentNoise]], resamples: Resamples) -> list[SpentMeasures]:
    """Sum up what every way to spend evaluations gives, over clips."""
    return [
        SpentMeasures(
            noise=each.noise,
            members=each.members,
            steps=each.steps,
            evaluations=each.evaluations,
            psnr_db=resamples.mean(np.array([clip[each].psnr_db for clip in measured])),
            error=resamples.mean(np.array([clip[each].error for clip in measured])),
        )
        for each in measured[0]
    ]


def _summarise_inside(measured: Sequence[ClipNoise], seed: int) -> RegionReport | None:
    """Sum up the clips that have uncertain pixels; None when none has."""
    found = [(clip.seed, clip.inside) for clip in measured if clip.inside is not None]
    if not found:
        return None
    return _summarise_region([inside for _, inside in found], Resamples.of([episode for episode, _ in found], seed))


def _summarise_region(regions: Sequence[RegionNoise], resamples: Resamples) -> RegionReport:
    pixels = np.array([region.num_pixels for region in regions], np.float64)
    reference = pixels * [region.reference_variance for region in regions]
    return RegionReport(
        clips=len(regions),
        errors=[_summarise_error(ensemble, regions, pixels, resamples) for ensemble in regions[0].error],
        spread=[
            SpreadMeasures(size, _root(resamples.ratio(pixels * [each.variance[size] for each in regions], reference)))
            for size in regions[0].variance
        ],
        correlation=resamples.mean(np.array([region.correlation for region in regions])),
    )


def _summarise_error(
    ensemble: Ensemble, regions: Sequence[RegionNoise], pixels: Float64[np.ndarray, " n"], resamples: Resamples
) -> ErrorMeasures:
    largest = max((each for each in regions[0].error if each.noise == NoisePlan.IID.value), key=lambda one: one.members)
    errors = pixels * [region.error[ensemble] for region in regions]
    claimed = pixels * [region.claimed[ensemble] for region in regions]
    return ErrorMeasures(
        noise=ensemble.noise,
        members=ensemble.members,
        error=resamples.ratio(errors, pixels),
        over_largest_iid=resamples.ratio(errors, pixels * [region.error[largest] for region in regions]),
        claimed_over_true=resamples.ratio(claimed, errors) if np.isfinite(claimed).all() else None,
    )


def _root(interval: Interval) -> Interval:
    return Interval(*(round(value**0.5, 5) for value in (interval.mean, interval.low, interval.high)))
