"""Factorised against full space-time attention: what each learned by step and by second, and what a step costs.

Values and charts alone; the training is done elsewhere and comes in as logs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foreframe_server.intervals import Interval
from foreframe_server.plots import Chart, Curve, Panel


@dataclass(frozen=True, slots=True)
class Learning:
    """One training run as it was evaluated: steps, seconds spent training, and held-out costs by name, nats."""

    span: str
    parameters: int
    steps: Sequence[int]
    seconds: Sequence[float]
    nats: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class StepCost:
    """A training step of one clip of `grids`: seconds on one thread, and MiB kept for the backward pass."""

    span: str
    grids: int
    seconds: float
    kept_mib: float


@dataclass(frozen=True, slots=True)
class AttentionReport:
    """Both kinds on the same data, seed, steps and parameters; nats are per token.

    final: held-out cost at the end with its 95 % interval over episodes. full_minus_factorised: the paired difference.
    """

    runs: Sequence[Learning]
    final: Mapping[str, Interval]
    full_minus_factorised: Interval
    costs: Sequence[StepCost]
    clips: int
    batch_size: int
    clip_grids: int
    seed: int
    experiment: str = "attention"


@dataclass(frozen=True, slots=True)
class MotionReport:
    """Sprites that cross a grid: nats per place where a sprite is, by the cells it moves a grid."""

    runs: Sequence[Learning]
    final: Mapping[str, Mapping[str, float]]
    clips: int
    batch_size: int
    seed: int
    experiment: str = "motion"


def attention_chart(report: AttentionReport) -> Chart:
    """Show cost by step and by second, and what a step takes as clips grow."""
    cost, step, second = "cross-entropy, nats per token", "training steps", "seconds on one core"
    by_step = [_curve(run.span, run.steps, run.nats["true_nats"]) for run in report.runs]
    by_second = [_curve(run.span, run.seconds, run.nats["true_nats"]) for run in report.runs]
    lengths = "grids in a clip"
    return {
        "title": "Factorised against full space-time attention, the same parameters",
        "note": f"{report.clips} held-out clips; batches of {report.batch_size} clips of {report.clip_grids} grids",
        "x_label": "",
        "panels": [
            {"title": "by training step", "x_label": step, "y_label": cost, "series": by_step},
            {"title": "by training time", "x_label": second, "y_label": cost, "series": by_second},
            {
                "title": "time of a training step",
                "x_label": lengths,
                "y_label": "seconds, one clip",
                "series": [_cost_curve(report.costs, run.span, "seconds") for run in report.runs],
            },
            {
                "title": "memory of a training step",
                "x_label": lengths,
                "y_label": "MiB kept for the backward pass",
                "series": [_cost_curve(report.costs, run.span, "kept_mib") for run in report.runs],
            },
        ],
    }


def motion_chart(report: MotionReport) -> Chart:
    """Show the cost at every speed at the end, and as it was learned at the slowest and fastest motion."""
    speeds, label = list(report.runs[0].nats), "nats a place with a sprite"
    at_the_end: Panel = {
        "title": "at the end",
        "x_label": "cells moved a grid",
        "y_label": label,
        "ticks": [int(speed) for speed in speeds],
        "series": [
            _curve(run.span, [int(speed) for speed in speeds], [run.nats[speed][-1] for speed in speeds])
            for run in report.runs
        ],
    }
    as_learned: list[Panel] = [
        {
            "title": f"as it was learned, speed {speed}",
            "x_label": "training steps",
            "y_label": label,
            "series": [_curve(run.span, run.steps, run.nats[speed]) for run in report.runs],
        }
        for speed in (speeds[1], speeds[-1])
    ]
    return {
        "title": "Motion across positions: sprites that jump some cells a grid",
        "note": f"{report.clips} held-out clips a speed; two grids of context make the rest certain",
        "x_label": "",
        "panels": [at_the_end, *as_learned],
    }


def _curve(label: str, x: Sequence[float], y: Sequence[float]) -> Curve:
    return {"label": label, "x": list(x), "y": list(y)}


def _cost_curve(costs: Sequence[StepCost], span: str, name: str) -> Curve:
    own = [cost for cost in costs if cost.span == span]
    return _curve(span, [cost.grids for cost in own], [getattr(cost, name) for cost in own])
