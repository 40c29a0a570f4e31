"""What a rollout model's states are for: one sample with the true, the average and another episode's states.

All three share their noise. Average states are how the model was trained to be told nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from foreframe_engines import Contract
from foreframe_engines.episodes import Clip
from foreframe_server.evaluation import Predict, clip_query, pair_clips
from foreframe_server.experiments.compression import curve
from foreframe_server.intervals import Interval, Resamples
from foreframe_server.measures import Quality
from foreframe_server.plots import Chart, Panel

_LABELS = {
    "true_states": "true states",
    "zero_states": "average states",
    "shuffled_states": "another episode's states",
    "copy_last": "last frame copied",
}


@dataclass(frozen=True, slots=True, eq=False)
class ClipStates:
    """How good each answer about one clip is, frame by frame."""

    seed: int
    answers: Mapping[str, Quality]


@dataclass(frozen=True, slots=True)
class FrameIntervals:
    """Means over clips, one a frame of the horizon."""

    psnr_db: Sequence[Interval]
    ssim: Sequence[Interval]


@dataclass(frozen=True, slots=True)
class StatesReport:
    """Quality by frame of the horizon for each kind of states; intervals are of 95 %, over episodes, paired."""

    model: str
    revision: str
    clips: int
    episodes: int
    seed: int
    steps: int
    frame_period_s: float
    answers: Mapping[str, FrameIntervals]
    true_minus_zero: FrameIntervals
    true_minus_shuffled: FrameIntervals
    unit: str = "PSNR in dB, SSIM without unit; lists run over the frames of the horizon"
    experiment: str = "states"


def measure_states(predict: Predict, contract: Contract, clips: Sequence[Clip]) -> Iterator[ClipStates]:
    """Measure clips one after another. Raises DatasetError when all are of one episode."""
    for clip, other in pair_clips(clips):
        truth, query = clip.frames[contract.context_frames :], clip_query(contract, clip)
        no_states = np.tile(contract.state.mean, (len(clip.states), 1))
        frames = {
            "true_states": predict(query).frames,
            "zero_states": predict(replace(query, states=no_states)).frames,
            "shuffled_states": predict(replace(query, states=other.states)).frames,
            "copy_last": np.repeat(query.context[-1:], len(truth), axis=0),
        }
        yield ClipStates(clip.seed, {name: Quality.of(each, truth) for name, each in frames.items()})


def summarise_states(contract: Contract, measured: Sequence[ClipStates], seed: int = 0) -> StatesReport:
    """Turn the measures of clips into the report's numbers."""
    seeds = [clip.seed for clip in measured]
    resamples = Resamples.of(seeds, seed)
    stacked = {name: _stack([clip.answers[name] for clip in measured]) for name in _LABELS}
    true = stacked["true_states"]
    return StatesReport(
        model=contract.model,
        revision=contract.revision,
        clips=len(seeds),
        episodes=len(set(seeds)),
        seed=seed,
        steps=contract.sampler.steps,
        frame_period_s=round(1 / contract.fps, 5),
        answers={name: _intervals(each, resamples) for name, each in stacked.items()},
        true_minus_zero=_intervals(true - stacked["zero_states"], resamples),
        true_minus_shuffled=_intervals(true - stacked["shuffled_states"], resamples),
    )


def _stack(answers: Sequence[Quality]) -> np.ndarray:
    """Return PSNR and SSIM of clips, `2 n f`."""
    return np.array([[each.psnr_db for each in answers], [each.ssim for each in answers]])


def _intervals(values: np.ndarray, resamples: Resamples) -> FrameIntervals:
    psnr, ssim = values
    return FrameIntervals(resamples.means(psnr), resamples.means(ssim))


def states_chart(report: StatesReport) -> Chart:
    """Show PSNR and SSIM over the horizon."""
    return {
        "title": f"{report.model} {report.revision}: what the robot's states are worth",
        "note": f"one sample of {report.steps} steps; {report.clips} clips of {report.episodes} held-out episodes; "
        "bands: 95 % over episodes",
        "x_label": "",
        "panels": [_panel(report, "psnr_db", "PSNR, dB"), _panel(report, "ssim", "SSIM")],
    }


def _panel(report: StatesReport, measure: str, label: str) -> Panel:
    num_frames = len(report.answers["true_states"].psnr_db)
    return {
        "x_label": f"frames ahead, {1000 * report.frame_period_s:.0f} ms each",
        "y_label": label,
        "ticks": list(range(1, num_frames + 1)),
        "series": [curve(_LABELS[name], getattr(each, measure)) for name, each in report.answers.items()],
    }
