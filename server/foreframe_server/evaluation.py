"""What a rollout model is worth on clips it has never seen: PSNR, spread, and what its states are for.

It knows clips and predictions, and not where predictions are made. PSNR is in dB, the mean over clips of each clip's
own; inside masks it is that of the pooled error, since a clip's mask can be empty.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from foreframe_engines import (
    Contract,
    DatasetError,
    EnsembleSpec,
    NoisePlan,
    Prediction,
    Query,
    RolloutEngine,
    Sampling,
    Strategy,
)
from foreframe_engines.episodes import Clip
from foreframe_engines.sampling import sample

ENSEMBLE_SIZES = (1, 2, 5, 10, 20)
LARGEST = ENSEMBLE_SIZES[-1]

Predict: TypeAlias = Callable[[Query], Prediction]
"""Whatever answers queries: an engine in this process, or a server far away."""
Errors: TypeAlias = Float64[np.ndarray, " f"]
"""Mean squared error of each frame of the horizon, on a scale where white is 1."""

_WHITE = 255.0
_MIN_ERROR = 1e-10
_MAX_SEEDS = 10**12


@dataclass(frozen=True, slots=True)
class MaskMeasures:
    """Sums over the pixels of the last frame, inside and outside the masks of uncertain objects."""

    num_inside: int
    num_outside: int
    errors_inside: Mapping[int, float]
    """Squared error of the ensemble mean, by ensemble size."""
    variance_inside: float
    variance_outside: float


@dataclass(frozen=True, slots=True, eq=False)
class ClipMeasures:
    """How far each answer about one clip is from what happened, and how far the ensemble's members spread."""

    copy_last: Errors
    posterior_mean: Errors
    zero_states: Errors
    shuffled_states: Errors
    ensemble: Mapping[int, Errors]
    variance: Float64[np.ndarray, " f"]
    masks: MaskMeasures


@dataclass(frozen=True, slots=True)
class NoisePlanMeasures:
    """Mean squared error of ensemble means against a large reference ensemble, by size; correlation within pairs."""

    clips: int
    reference_members: int
    antithetic: Mapping[int, float]
    iid: Mapping[int, float]
    pair_correlation: float


@dataclass(frozen=True, slots=True)
class LatencyMeasures:
    """Medians of whole requests, in ms, from the client's call to its arrays."""

    posterior_mean_p50: float
    ensemble8_p50: float


@dataclass(frozen=True, slots=True)
class Report:
    """The numbers of an evaluation, in dB at the last frame of the horizon unless they are curves over it.

    A `psnr_in_masks` of None: no mask had a pixel. spread_skill: near 1 when the spread is as large as the error.
    """

    model: str
    revision: str
    clips: int
    horizon: int
    steps: int
    psnr_reconstruction: float
    psnr_copy_last: float
    psnr_sample: float
    psnr_ensemble: Mapping[int, float]
    psnr_posterior_mean: float
    psnr_zero_states: float
    psnr_shuffled_states: float
    psnr_in_masks: Mapping[int, float] | None
    variance_in_masks_over_outside: float | None
    spread_skill: Sequence[float]
    curves: Mapping[str, Sequence[float]]
    latency_ms: LatencyMeasures | None = None
    noise_plans: NoisePlanMeasures | None = None


def clip_query(contract: Contract, clip: Clip, size: int = 1) -> Query:
    """Ask for a clip's whole future; equal clips get equal seeds, so members are shared between sizes."""
    return Query(
        model=contract.model,
        context=clip.frames[: contract.context_frames],
        states=clip.states,
        frame_indices=tuple(range(1, contract.horizon + 1)),
        sampling=Sampling(Strategy.SAMPLE, contract.sampler.steps, seed=clip.seed * 1000 + clip.start),
        ensemble=EnsembleSpec(size),
    )


def posterior_query(contract: Contract, clip: Clip) -> Query:
    """Ask for the posterior mean of a clip's whole future."""
    query = clip_query(contract, clip)
    return replace(query, sampling=replace(query.sampling, strategy=Strategy.POSTERIOR_MEAN, steps=1))


def pair_clips(clips: Sequence[Clip]) -> Iterator[tuple[Clip, Clip]]:
    """Give every clip one of another episode, half the list away. Raises DatasetError when there is none."""
    for index, clip in enumerate(clips):
        start = index + len(clips) // 2
        others = (clips[other % len(clips)] for other in range(start, start + len(clips)))
        other = next((other for other in others if other.seed != clip.seed), None)
        if other is None:
            raise DatasetError("clips of at least two episodes are needed: one lends its states to another")
        yield clip, other


def measure_clip(predict: Predict, contract: Contract, clip: Clip, other: Clip, drawn: Prediction) -> ClipMeasures:
    """Measure one clip; `other` lends its states, `drawn` is the answer to its `clip_query` of LARGEST members."""
    truth = clip.frames[contract.context_frames :]
    means = {size: drawn.members[:size].mean(axis=0, dtype=np.float64) for size in ENSEMBLE_SIZES}
    single = clip_query(contract, clip)
    no_states = np.tile(contract.state.mean, (len(clip.states), 1))
    return ClipMeasures(
        copy_last=squared_errors(clip.frames[contract.context_frames - 1], truth),
        posterior_mean=squared_errors(predict(posterior_query(contract, clip)).frames, truth),
        zero_states=squared_errors(predict(replace(single, states=no_states)).frames, truth),
        shuffled_states=squared_errors(predict(replace(single, states=other.states)).frames, truth),
        ensemble={size: squared_errors(mean, truth) for size, mean in means.items()},
        variance=drawn.variance.mean(axis=(1, 2), dtype=np.float64),
        masks=_measure_masks(means, truth[-1], drawn, clip.masks[-1] > 0),
    )


def _measure_masks(
    means: Mapping[int, Float64[np.ndarray, "f h w 3"]],
    truth: UInt8[np.ndarray, "h w 3"],
    drawn: Prediction,
    is_inside: Bool[np.ndarray, "h w"],
) -> MaskMeasures:
    errors = {size: (np.square(mean[-1] - truth) / _WHITE**2).mean(axis=-1) for size, mean in means.items()}
    variance = drawn.variance[-1].astype(np.float64)
    return MaskMeasures(
        num_inside=int(is_inside.sum()),
        num_outside=int((~is_inside).sum()),
        errors_inside={size: float(error[is_inside].sum()) for size, error in errors.items()},
        variance_inside=float(variance[is_inside].sum()),
        variance_outside=float(variance[~is_inside].sum()),
    )


def measure_clips(predict: Predict, contract: Contract, clips: Sequence[Clip]) -> Iterator[ClipMeasures]:
    """Measure clips one after another. Raises DatasetError when all are of one episode."""
    for clip, other in pair_clips(clips):
        yield measure_clip(predict, contract, clip, other, predict(clip_query(contract, clip, LARGEST)))


def summarise_measures(contract: Contract, measures: Sequence[ClipMeasures], psnr_reconstruction: float) -> Report:
    """Turn the measures of clips into the report's numbers."""
    answers = {
        "copy_last": np.stack([each.copy_last for each in measures]),
        "sample": np.stack([each.ensemble[1] for each in measures]),
        f"ensemble_{LARGEST}": np.stack([each.ensemble[LARGEST] for each in measures]),
        "posterior_mean": np.stack([each.posterior_mean for each in measures]),
    }
    last = {name: psnr(errors[:, -1]) for name, errors in answers.items()}
    return Report(
        model=contract.model,
        revision=contract.revision,
        clips=len(measures),
        horizon=contract.horizon,
        steps=contract.sampler.steps,
        psnr_reconstruction=psnr_reconstruction,
        psnr_copy_last=last["copy_last"],
        psnr_sample=last["sample"],
        psnr_ensemble={size: psnr([each.ensemble[size][-1] for each in measures]) for size in ENSEMBLE_SIZES},
        psnr_posterior_mean=last["posterior_mean"],
        psnr_zero_states=psnr([each.zero_states[-1] for each in measures]),
        psnr_shuffled_states=psnr([each.shuffled_states[-1] for each in measures]),
        psnr_in_masks=_psnr_in_masks([each.masks for each in measures]),
        variance_in_masks_over_outside=_variance_ratio([each.masks for each in measures]),
        spread_skill=_spread_skill(measures),
        curves={name: [psnr(frame) for frame in errors.T] for name, errors in answers.items()},
    )


def _psnr_in_masks(masks: Sequence[MaskMeasures]) -> dict[int, float] | None:
    pixels = sum(each.num_inside for each in masks)
    if pixels == 0:
        return None
    return {size: psnr([sum(each.errors_inside[size] for each in masks) / pixels]) for size in ENSEMBLE_SIZES}


def _variance_ratio(masks: Sequence[MaskMeasures]) -> float | None:
    inside, outside = sum(each.num_inside for each in masks), sum(each.num_outside for each in masks)
    total_outside = sum(each.variance_outside for each in masks)
    if inside == 0 or total_outside == 0:
        return None
    return round(sum(each.variance_inside for each in masks) / inside / (total_outside / outside), 3)


def _spread_skill(measures: Sequence[ClipMeasures]) -> list[float]:
    """Divide spread by error of the ensemble mean, for each frame of the horizon.

    The mean of n independent members errs by (n + 1) / n of a draw's variance; antithetic members, whose mean errs
    less, are flattered by at most the root of that: 2.5 % for 20.
    """
    variance = np.mean([each.variance for each in measures], axis=0)
    error = np.mean([each.ensemble[LARGEST] for each in measures], axis=0)
    ratio = np.sqrt((LARGEST + 1) / LARGEST * variance / np.maximum(error, _MIN_ERROR))
    return [round(float(each), 3) for each in ratio]


def measure_reconstruction(engine: RolloutEngine, clips: Sequence[Clip]) -> float:
    """Return the PSNR in dB of the clips' context frames, encoded and decoded with nothing predicted."""
    contract = engine.contract
    errors = []
    for clip in clips:
        context = clip.frames[: contract.context_frames]
        latents = engine.encode(context)
        # The context's own latents stand where a member's future would.
        member = np.concatenate([latents, latents])
        indices = range(1, min(contract.context_frames, contract.horizon) + 1)
        errors.append(squared_errors(engine.decode([member], indices)[0], context[: len(indices)]).mean())
    return psnr(errors)


def measure_noise_plans(engine: RolloutEngine, clips: Iterable[Clip], reference_members: int) -> NoisePlanMeasures:
    """Compare plans by the error of their means (last frame, decoded) against independent reference ensembles."""
    antithetic: dict[int, list[float]] = {2: [], 4: [], 10: []}
    iid: dict[int, list[float]] = {4: [], 10: [], 20: []}
    correlations = []
    for clip in clips:
        reference = _draw_last_frames(engine, clip, EnsembleSpec(reference_members, noise=NoisePlan.IID), seed=1)
        for errors, plan in ((antithetic, NoisePlan.ANTITHETIC), (iid, NoisePlan.IID)):
            members = _draw_last_frames(engine, clip, EnsembleSpec(max(errors), noise=plan), seed=2)
            for size, values in errors.items():
                values.append(_error_of_mean(members[:size], reference))
            if plan is NoisePlan.ANTITHETIC:
                correlations.append(_pair_correlation(members, reference.mean(axis=0)))
    return NoisePlanMeasures(
        clips=len(correlations),
        reference_members=reference_members,
        antithetic={size: fmean(values) for size, values in antithetic.items()},
        iid={size: fmean(values) for size, values in iid.items()},
        pair_correlation=round(fmean(correlations), 3),
    )


def _draw_last_frames(
    engine: RolloutEngine, clip: Clip, ensemble: EnsembleSpec, *, seed: int
) -> Float64[np.ndarray, "k h w 3"]:
    query = clip_query(engine.contract, clip)
    query = replace(
        query,
        frame_indices=(engine.contract.horizon,),
        ensemble=ensemble,
        sampling=replace(query.sampling, seed=query.sampling.seed + seed * _MAX_SEEDS),
    )
    return sample(engine, query).members[:, 0] / _WHITE


def _error_of_mean(members: Float64[np.ndarray, "k h w 3"], reference: Float64[np.ndarray, "n h w 3"]) -> float:
    """Estimate the squared error of the members' mean; the reference's own sampling error is taken off."""
    own = reference.var(axis=0, ddof=1).mean() / len(reference)
    return float(np.square(members.mean(axis=0) - reference.mean(axis=0)).mean() - own)


def _pair_correlation(members: Float64[np.ndarray, "k h w 3"], centre: Float64[np.ndarray, "h w 3"]) -> float:
    deviations = members - centre
    return float((deviations[::2] * deviations[1::2]).mean() / np.square(deviations).mean())


def squared_errors(
    frames: UInt8[np.ndarray, "..."] | Float64[np.ndarray, "..."], truth: UInt8[np.ndarray, "f h w 3"]
) -> Errors:
    """Return the mean squared error of frames 0..255, or of one frame for all, on a scale where white is 1."""
    return np.square(frames.astype(np.float64) - truth).mean(axis=(-3, -2, -1)) / _WHITE**2


def psnr(errors: Sequence[float] | Float64[np.ndarray, " n"]) -> float:
    """Return the mean of the errors' PSNRs in dB, at most 100, to a thousandth."""
    return round(float(np.mean(-10.0 * np.log10(np.maximum(errors, _MIN_ERROR)))), 3)
