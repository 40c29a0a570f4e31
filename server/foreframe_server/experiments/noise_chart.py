"""The chart of the experiment on noise: errors and spreads by size, then what evaluations of the network buy."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from foreframe_engines import NoisePlan
from foreframe_server.experiments.noise import NoiseReport, RegionReport, SpentMeasures
from foreframe_server.plots import Chart, Curve, Panel

_PLAN_WORDS = {NoisePlan.ANTITHETIC: "antithetic", NoisePlan.IID: "independent"}
_LINES: Mapping[NoisePlan, Literal["solid", "dashed"]] = {NoisePlan.ANTITHETIC: "solid", NoisePlan.IID: "dashed"}


def noise_chart(report: NoiseReport) -> Chart:
    """Show errors and spreads over the ensemble's size, then PSNR and error over the evaluations spent."""
    return {
        "title": f"{report.model} {report.revision}: antithetic against independent noise",
        "note": f"frame {report.frame}, {report.steps} steps a member unless said; reference: "
        f"{report.reference_members} independent members; {report.clips} clips of {report.episodes} held-out episodes",
        "x_label": "",
        "panels": [_error_panel(report), _spread_panel(report), *_spent_panels(report)],
    }


def _regions(report: NoiseReport) -> Iterator[tuple[str, RegionReport]]:
    yield "whole frame", report.overall
    if report.inside_masks is not None:
        yield "uncertain objects", report.inside_masks


def _error_panel(report: NoiseReport) -> Panel:
    series = [
        _error_curve(region, plan, f"{words}, {name}", colour)
        for colour, (name, region) in enumerate(_regions(report))
        for plan, words in _PLAN_WORDS.items()
    ]
    return _panel("error of the mean", "ensemble size, members", "root mean square, grey levels of 255", series)


def _error_curve(region: RegionReport, plan: NoisePlan, label: str, colour: int) -> Curve:
    errors = [each for each in region.errors if each.noise == plan.value]
    return {
        "label": label,
        "x": [each.members for each in errors],
        "y": [_root_level(each.error.mean) for each in errors],
        "low": [_root_level(each.error.low) for each in errors],
        "high": [_root_level(each.error.high) for each in errors],
        "colour": colour,
        "line": _LINES[plan],
    }


def _root_level(squared: float) -> float:
    return max(squared, 0.0) ** 0.5


def _spread_panel(report: NoiseReport) -> Panel:
    series: list[Curve] = [
        {
            "label": name,
            "x": [each.members for each in region.spread],
            "y": [each.ratio.mean for each in region.spread],
            "low": [each.ratio.low for each in region.spread],
            "high": [each.ratio.high for each in region.spread],
            "colour": colour,
        }
        for colour, (name, region) in enumerate(_regions(report))
    ]
    return _panel("spread told by antithetic members", "ensemble size, members", "over the reference's spread", series)


def _spent_panels(report: NoiseReport) -> Iterator[Panel]:
    measures: Mapping[tuple[str, str], Callable[[SpentMeasures], float]] = {
        ("closeness to the truth", "PSNR, dB"): lambda each: each.psnr_db.mean,
        ("distance from the reference", "root mean square, grey levels of 255"): lambda each: _root_level(
            each.error.mean
        ),
    }
    for (title, y_label), measure in measures.items():
        yield _panel(title, "evaluations of the network", y_label, list(_spent_curves(report, measure)))


def _spent_curves(report: NoiseReport, measure: Callable[[SpentMeasures], float]) -> Iterator[Curve]:
    for colour, steps in enumerate(sorted({each.steps for each in report.spent})):
        for plan, words in _PLAN_WORDS.items():
            chosen = [each for each in report.spent if (each.steps, each.noise) == (steps, plan.value)]
            yield {
                "label": f"{steps} step{'s' if steps > 1 else ''} a member, {words}",
                "x": [each.evaluations for each in chosen],
                "y": [measure(each) for each in chosen],
                "colour": colour,
                "line": _LINES[plan],
            }


def _panel(title: str, x_label: str, y_label: str, series: Sequence[Curve]) -> Panel:
    return {
        "title": title,
        "x_label": x_label,
        "y_label": y_label,
        "x_scale": "log",
        "ticks": sorted({place for curve in series for place in curve["x"]}),
        "series": series,
    }
