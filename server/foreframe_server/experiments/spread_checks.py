"""What a calibration of the spread is worth: on recordings it has not seen, and on the same ones made wrong.

A camera goes dark, freezes or is covered, states come from elsewhere: does the spread tell, and does the surprise at
the last frame seen?
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, UInt8

from foreframe_engines import Contract, SpreadCalibration, SurpriseCalibration
from foreframe_engines.engine import LikelihoodEngine
from foreframe_engines.episodes import Clip
from foreframe_server.evaluation import Predict, pair_clips
from foreframe_server.experiments.compression import curve, teacher_forced_costs
from foreframe_server.experiments.spread import ClipSpread, spread_of, spread_query
from foreframe_server.experiments.token_clips import Split, TokenClip
from foreframe_server.intervals import Interval, Resamples
from foreframe_server.plots import Chart, Curve, Value

MEMBERS = 8
RARE = 0.99
"""A frame that costs more bits than this share of held-out ones is flagged."""

RECORDED = "as_recorded"
OTHER_STATES = "states_of_another"
_GREY = 128

_Frames = UInt8[np.ndarray, "t h w 3"]


def _covered(context: _Frames) -> _Frames:
    """Put a grey square over the middle quarter."""
    rows, columns = context.shape[1] // 4, context.shape[2] // 4
    changed = context.copy()
    changed[:, rows:-rows, columns:-columns] = _GREY
    return changed


def _noise(context: _Frames) -> _Frames:
    return np.random.default_rng(0).integers(0, 256, context.shape, np.uint8)


FAULTS: Mapping[str, Callable[[_Frames], _Frames]] = {
    "black": np.zeros_like,
    "half_as_bright": lambda context: context // 2,
    "noise": _noise,
    "mirrored": lambda context: context[:, :, ::-1],
    "colours_swapped": lambda context: context[..., ::-1],
    "covered": _covered,
    "frozen": lambda context: np.repeat(context[:1], len(context), axis=0),
}
"""What may go wrong with the frames that are seen."""


@dataclass(frozen=True, slots=True, eq=False)
class CaseClip:
    """One recording in one case. quantile: of the last seen frame's bits; None without a likelihood model."""

    spread: ClipSpread
    is_usual: bool
    bound: Float64[np.ndarray, " f"]
    quantile: float | None


@dataclass(frozen=True, slots=True)
class CaseReport:
    """Shares 0..1 of recordings, or of frames for `within_bound`; errors as root mean square, white is 1.

    told_by_surprise: None without a likelihood model.
    """

    told_by_spread: Interval
    told_by_surprise: Interval | None
    within_bound: Interval
    error_last: Interval
    bound_last: Interval


@dataclass(frozen=True, slots=True)
class SpreadReport:
    """A calibration against recordings it has not seen; lists run over the frames of the horizon."""

    model: str
    revision: str
    clips: int
    calibrated_on: int
    coverage: float
    members: int
    steps: int
    spread: Sequence[Interval]
    line: Sequence[float]
    error: Sequence[Interval]
    bound: Sequence[Interval]
    within_bound: Sequence[Interval]
    rank_correlation: Sequence[float]
    cases: Mapping[str, CaseReport]
    unit: str = "spread and error as root mean square over pixels, white is 1"
    experiment: str = "spread"


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """A likelihood model, and what surprise is usual of it."""

    engine: LikelihoodEngine
    calibration: SurpriseCalibration

    def quantile(self, context: _Frames, clip: Clip) -> float:
        """Place the last seen frames' bits among those of held-out episodes."""
        window = self.engine.tokens.window_grids
        seen = len(context) // self.engine.tokens.window_frames * window
        frames = seen // window * self.engine.tokens.window_frames
        part = Clip(clip.seed, clip.start, context[:frames], clip.states[:frames], clip.masks[:frames])
        nats = teacher_forced_costs(self.engine, TokenClip.of(self.engine, part, Split(seen - window, window)))
        return self.calibration.surprise(float(nats[-1]) * self.engine.tokens.tokens / math.log(2)).quantile


def check_spread(
    predict: Predict, contract: Contract, clips: Sequence[Clip], calibration: SpreadCalibration, reader: Reader | None
) -> Iterator[Mapping[str, CaseClip]]:
    """Measure clips one after another, each in every case. Raises DatasetError when all are of one episode."""
    for clip, other in pair_clips(clips):
        context = clip.frames[: contract.context_frames]
        cases = {RECORDED: (context, clip), OTHER_STATES: (context, replace(clip, states=other.states))}
        cases |= {name: (np.ascontiguousarray(change(context)), clip) for name, change in FAULTS.items()}
        yield {
            name: _check(predict, contract, frames, told, calibration, reader) for name, (frames, told) in cases.items()
        }


def _check(
    predict: Predict,
    contract: Contract,
    context: _Frames,
    clip: Clip,
    calibration: SpreadCalibration,
    reader: Reader | None,
) -> CaseClip:
    query = spread_query(contract, clip, MEMBERS)
    drawn = predict(replace(query, context=context))
    judgement = calibration.judge(drawn)
    if judgement is None or judgement.error_per_frame is None:
        raise RuntimeError("the calibration is of another way of drawing than this model's")
    return CaseClip(
        spread=spread_of(drawn, MEMBERS, clip.frames[contract.context_frames :]),
        is_usual=judgement.verdict == "usual",
        bound=np.array(judgement.error_per_frame),
        quantile=None if reader is None else reader.quantile(context, clip),
    )


def summarise_checks(
    contract: Contract, measured: Sequence[Mapping[str, CaseClip]], calibration: SpreadCalibration
) -> SpreadReport:
    """Turn the measures of clips into the report's numbers; intervals are of 95 %, over clips."""
    resamples = Resamples.of(range(len(measured)))
    recorded = [clip[RECORDED] for clip in measured]
    spread, error = _stack(recorded, "spread"), _stack(recorded, "error")
    bound = np.stack([case.bound for case in recorded])
    scale = max((scale for scale in calibration.scales if scale.members <= MEMBERS), key=lambda scale: scale.members)
    return SpreadReport(
        model=contract.model,
        revision=contract.revision,
        clips=len(measured),
        calibrated_on=calibration.num_clips,
        coverage=calibration.coverage,
        members=MEMBERS,
        steps=calibration.steps,
        spread=resamples.means(spread),
        line=[round(value, 5) for value in scale.line_per_frame],
        error=resamples.means(error),
        bound=resamples.means(bound),
        within_bound=resamples.means((error <= bound).astype(float)),
        rank_correlation=[_rank_correlation(*pair) for pair in zip(spread.T, error.T, strict=True)],
        cases={name: _summarise_case([clip[name] for clip in measured], resamples) for name in measured[0]},
    )


def _stack(cases: Sequence[CaseClip], name: str) -> Float64[np.ndarray, "n f"]:
    return np.stack([getattr(case.spread, name) for case in cases])


def _rank_correlation(one: Float64[np.ndarray, " n"], other: Float64[np.ndarray, " n"]) -> float:
    """Return Spearman's coefficient; ties do not happen between measured errors."""
    apart = one.argsort().argsort() - other.argsort().argsort()
    count = len(one)
    return round(1 - 6 * float(np.square(apart).sum()) / (count * (count**2 - 1)), 3)


def _summarise_case(cases: Sequence[CaseClip], resamples: Resamples) -> CaseReport:
    error, bound = _stack(cases, "error"), np.stack([case.bound for case in cases])
    quantiles = [case.quantile for case in cases if case.quantile is not None]
    return CaseReport(
        told_by_spread=resamples.mean(np.array([not case.is_usual for case in cases], np.float64)),
        told_by_surprise=resamples.mean((np.array(quantiles) > RARE).astype(float)) if quantiles else None,
        within_bound=resamples.mean((error <= bound).mean(axis=1)),
        error_last=resamples.mean(error[:, -1]),
        bound_last=resamples.mean(bound[:, -1]),
    )


def spread_chart(report: SpreadReport) -> Chart:
    """Show spread and error over the horizon, and who notices which fault."""
    frames = list(range(1, len(report.line) + 1))
    curves: list[Curve] = [
        {**curve("error of the mean", report.error), "colour": 1},
        {**curve("error stays under (mean bound)", report.bound), "colour": 1, "line": "dashed"},
        {**curve(f"spread of {report.members} members", report.spread), "colour": 0},
        {"label": "spread stays under (line)", "x": frames, "y": report.line, "colour": 0, "line": "dashed"},
    ]
    return {
        "title": f"{report.model} {report.revision}: what the spread tells",
        "note": f"{report.clips} held-out clips, calibrated on {report.calibrated_on} others with a coverage of "
        f"{report.coverage:.0%}; bands: 95 % over clips",
        "x_label": "",
        "panels": [
            {"x_label": "frames ahead", "y_label": "root mean square, white is 1", "ticks": frames, "series": curves},
            {"title": "told by the spread", "x_label": "share of clips", "values": _told(report, "told_by_spread")},
            {
                "title": "told by the surprise at the last frame",
                "x_label": "share of clips",
                "values": _told(report, "told_by_surprise"),
            },
        ],
    }


def _told(report: SpreadReport, name: str) -> list[Value]:
    told = {case: getattr(each, name) for case, each in report.cases.items()}
    return [
        {"label": case.replace("_", " "), "value": each.mean, "low": each.low, "high": each.high}
        for case, each in told.items()
        if each is not None
    ]
