"""How good each way to answer is at each ensemble size: PSNR, SSIM and sharpness of the frames that go back.

The members of a clip are drawn once for each noise plan; a smaller ensemble is its first members, as in service.
Sharpness is the gradient energy of the answers over that of the truth: below 1 they are blurred.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from foreframe_engines import Contract, EnsembleSpec, NoisePlan, Reducer, reduce_members
from foreframe_engines.episodes import Clip
from foreframe_server.evaluation import Predict, clip_query, posterior_query
from foreframe_server.intervals import Interval, Resamples
from foreframe_server.measures import Quality, gradient_energy
from foreframe_server.plots import Chart, Curve, Panel

SIZES = (1, 5, 10, 20, 50)
_REDUCERS = (Reducer.MEAN, Reducer.MEDIAN, Reducer.MEDOID)
_PLAN_WORDS = {NoisePlan.ANTITHETIC: "antithetic", NoisePlan.IID: "independent"}


@dataclass(frozen=True, slots=True)
class Answer:
    """One way to answer. strategy: sample, mean, median, medoid, posterior_mean or copy_last."""

    strategy: str
    size: int
    noise: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ClipAnswers:
    """How good each answer about one clip is, and how much gradient energy the truth has, frame by frame."""

    seed: int
    truth_energy: Float64[np.ndarray, " f"]
    answers: Mapping[Answer, Quality]


@dataclass(frozen=True, slots=True)
class AnswerQuality:
    """Means over clips; sharpness is a ratio of means."""

    psnr_db: Interval
    ssim: Interval
    sharpness_ratio: Interval


@dataclass(frozen=True, slots=True)
class AnswerMeasures:
    """One answer's quality at the last frame and over all frames of the horizon. evaluations: of the network.

    psnr_gain_db: at the last frame, on one sample, paired.
    """

    strategy: str
    noise: str | None
    size: int
    evaluations: int
    last_frame: AnswerQuality
    all_frames: AnswerQuality
    psnr_gain_db: Interval


@dataclass(frozen=True, slots=True)
class EnsemblesReport:
    """Every strategy at every size; intervals are of 95 %, over episodes."""

    model: str
    revision: str
    clips: int
    episodes: int
    seed: int
    steps: int
    horizon_frames: int
    answers: Sequence[AnswerMeasures]
    unit: str = "PSNR in dB; SSIM and ratios without unit; sizes in members"
    experiment: str = "ensembles"


def measure_ensembles(
    predict: Predict, contract: Contract, clips: Iterable[Clip], sizes: Sequence[int] = SIZES
) -> Iterator[ClipAnswers]:
    """Measure clips one after another; `predict` must take the largest size, which may be beyond the serving limit."""
    for clip in clips:
        truth = clip.frames[contract.context_frames :]
        frames = dict(_answers(predict, contract, clip, sizes))
        measured = {answer: Quality.of(each, truth) for answer, each in frames.items()}
        yield ClipAnswers(clip.seed, gradient_energy(truth), measured)


def _answers(
    predict: Predict, contract: Contract, clip: Clip, sizes: Sequence[int]
) -> Iterator[tuple[Answer, np.ndarray]]:
    yield Answer("copy_last", 0), np.repeat(clip.frames[contract.context_frames - 1][None], contract.horizon, axis=0)
    yield Answer("posterior_mean", 1), predict(posterior_query(contract, clip)).frames
    query = clip_query(contract, clip, max(sizes))
    for plan in NoisePlan:
        members = predict(replace(query, ensemble=replace(query.ensemble, noise=plan))).members
        yield Answer("sample", 1, plan.value), members[0]
        for reducer in _REDUCERS:
            for size in (size for size in sizes if size > 1):
                reduced = reduce_members(members[:size], EnsembleSpec(size, reducer, plan))
                yield Answer(reducer.value, size, plan.value), reduced


def summarise_ensembles(contract: Contract, measured: Sequence[ClipAnswers], seed: int = 0) -> EnsemblesReport:
    """Turn the measures of clips into the report's numbers."""
    seeds = [clip.seed for clip in measured]
    resamples = Resamples.of(seeds, seed)
    return EnsemblesReport(
        model=contract.model,
        revision=contract.revision,
        clips=len(seeds),
        episodes=len(set(seeds)),
        seed=seed,
        steps=contract.sampler.steps,
        horizon_frames=contract.horizon,
        answers=[_summarise(answer, measured, contract, resamples) for answer in measured[0].answers],
    )


def _summarise(
    answer: Answer, measured: Sequence[ClipAnswers], contract: Contract, resamples: Resamples
) -> AnswerMeasures:
    found = [clip.answers[answer] for clip in measured]
    truth = np.stack([clip.truth_energy for clip in measured])
    sampled = [clip.answers[Answer("sample", 1, NoisePlan.ANTITHETIC.value)] for clip in measured]
    gains = np.array([own.psnr_db[-1] - single.psnr_db[-1] for own, single in zip(found, sampled, strict=True)])
    each_step = 1 if answer.strategy == "posterior_mean" else contract.sampler.steps
    return AnswerMeasures(
        strategy=answer.strategy,
        noise=answer.noise,
        size=answer.size,
        evaluations=answer.size * each_step,
        last_frame=_quality(found, truth, slice(-1, None), resamples),
        all_frames=_quality(found, truth, slice(None), resamples),
        psnr_gain_db=resamples.mean(gains),
    )


def _quality(
    found: Sequence[Quality], truth: Float64[np.ndarray, "n f"], frames: slice, resamples: Resamples
) -> AnswerQuality:
    psnr, ssim, energy = (
        np.stack([getattr(each, name)[frames] for each in found]).mean(axis=1)
        for name in ("psnr_db", "ssim", "gradient_energy")
    )
    sharpness = resamples.ratio(energy, truth[:, frames].mean(axis=1))
    return AnswerQuality(resamples.mean(psnr), resamples.mean(ssim), sharpness)


def ensembles_chart(report: EnsemblesReport) -> Chart:
    """Show PSNR, SSIM and sharpness at the last frame over the ensemble's size."""
    axes = {
        "psnr_db": ("closeness", "PSNR, dB"),
        "ssim": ("structure", "SSIM"),
        "sharpness_ratio": ("sharpness", "gradient energy over the truth's"),
    }
    return {
        "title": f"{report.model} {report.revision}: every strategy at every ensemble size",
        "note": f"frame {report.horizon_frames} of {report.horizon_frames}, {report.steps} steps a member; "
        f"{report.clips} clips of {report.episodes} held-out episodes",
        "x_label": "",
        "panels": [_panel(report, measure, title, label) for measure, (title, label) in axes.items()],
    }


def _panel(report: EnsemblesReport, measure: str, title: str, label: str) -> Panel:
    sizes = sorted({answer.size for answer in report.answers if answer.size > 0})
    return {
        "title": title,
        "x_label": "ensemble size, members",
        "y_label": label,
        "x_scale": "log",
        "ticks": sizes,
        "series": [*_reducer_curves(report, measure), _level(report, measure, sizes)],
    }


def _reducer_curves(report: EnsemblesReport, measure: str) -> Iterator[Curve]:
    for colour, reducer in enumerate(_REDUCERS):
        for plan, words in _PLAN_WORDS.items():
            chosen = [
                answer
                for answer in report.answers
                if answer.noise == plan.value and answer.strategy in {"sample", reducer.value}
            ]
            intervals = [getattr(answer.last_frame, measure) for answer in chosen]
            yield {
                "label": f"{reducer.value}, {words}",
                "x": [answer.size for answer in chosen],
                "y": [each.mean for each in intervals],
                "colour": colour,
                "line": "solid" if plan is NoisePlan.ANTITHETIC else "dashed",
            }


def _level(report: EnsemblesReport, measure: str, sizes: Sequence[int]) -> Curve:
    (answer,) = (answer for answer in report.answers if answer.strategy == "posterior_mean")
    value = getattr(answer.last_frame, measure).mean
    return {
        "label": "posterior mean, 1 evaluation",
        "x": [sizes[0], sizes[-1]],
        "y": [value, value],
        "colour": 7,
        "line": "dotted",
    }
