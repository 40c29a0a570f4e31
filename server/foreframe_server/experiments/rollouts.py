"""How a likelihood model's cost grows when it reads its own guesses, step by step, for one model or two.

Teacher-forced: every grid before is the true one. Autoregressive: the greedy ids are fed back. What is scored is the
true grid in both. Models may have different tokenizers; then their costs cannot be compared, only their growth.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from foreframe_engines import Contract
from foreframe_engines.engine import LikelihoodEngine
from foreframe_engines.episodes import Clip
from foreframe_engines.reading import greedy_rollout, teacher_forced
from foreframe_server.experiments.compression import costs, curve
from foreframe_server.experiments.token_clips import Split, TokenClip
from foreframe_server.intervals import Interval, Resamples
from foreframe_server.plots import Chart, Curve


@dataclass(frozen=True, slots=True, eq=False)
class ClipRollout:
    """One clip under one model: cost of each target grid, in nats per token."""

    seed: int
    teacher_forced: Float64[np.ndarray, " g"]
    autoregressive: Float64[np.ndarray, " g"]
    target: Int64[np.ndarray, "g s"]


@dataclass(frozen=True, slots=True)
class ModelRollouts:
    """One model's costs by step, in nats per token. exposure_gap: autoregressive minus teacher-forced."""

    label: str
    model: str
    revision: str
    teacher_forced_per_step: Sequence[Interval]
    autoregressive_per_step: Sequence[Interval]
    exposure_gap_per_step: Sequence[Interval]
    teacher_forced: Interval
    autoregressive: Interval
    exposure_gap: Interval


@dataclass(frozen=True, slots=True)
class Difference:
    """The second model minus the first, paired, in nats per token; None where their ids differ."""

    teacher_forced: Interval
    autoregressive: Interval


@dataclass(frozen=True, slots=True)
class RolloutsReport:
    """The costs of one model or two on the same clips; intervals are of 95 %, over episodes."""

    clips: int
    episodes: int
    seed: int
    context_grids: int
    target_grids: int
    models: Sequence[ModelRollouts]
    second_minus_first: Difference | None
    unit: str = "nats per token"
    experiment: str = "rollouts"


def measure_rollouts(engine: LikelihoodEngine, clips: Sequence[Clip], split: Split) -> Iterator[ClipRollout]:
    """Measure clips one after another."""
    for clip in clips:
        tokens = TokenClip.of(engine, clip, split)
        context = tokens.read(engine)
        yield ClipRollout(
            seed=clip.seed,
            teacher_forced=costs(teacher_forced(engine, context, tokens.target, tokens.target_states)),
            autoregressive=costs(greedy_rollout(engine, context, tokens.target_states, tokens.target)),
            target=tokens.target,
        )


def summarise_rollouts(
    models: Sequence[tuple[str, Contract]],
    measured: Sequence[Sequence[ClipRollout]],
    split: Split,
    seed: int = 0,
) -> RolloutsReport:
    """Sum up what each labelled model makes of the same clips."""
    seeds = [clip.seed for clip in measured[0]]
    resamples = Resamples.of(seeds, seed)
    summaries = [
        _summarise(label, contract, clips, resamples) for (label, contract), clips in zip(models, measured, strict=True)
    ]
    return RolloutsReport(
        clips=len(seeds),
        episodes=len(set(seeds)),
        seed=seed,
        context_grids=split.context_grids,
        target_grids=split.target_grids,
        models=summaries,
        second_minus_first=_difference(measured, resamples),
    )


def _summarise(label: str, contract: Contract, clips: Sequence[ClipRollout], resamples: Resamples) -> ModelRollouts:
    true = np.stack([clip.teacher_forced for clip in clips])
    greedy = np.stack([clip.autoregressive for clip in clips])
    return ModelRollouts(
        label=label,
        model=contract.model,
        revision=contract.revision,
        teacher_forced_per_step=resamples.means(true),
        autoregressive_per_step=resamples.means(greedy),
        exposure_gap_per_step=resamples.means(greedy - true),
        teacher_forced=resamples.mean(true.mean(axis=1)),
        autoregressive=resamples.mean(greedy.mean(axis=1)),
        exposure_gap=resamples.mean((greedy - true).mean(axis=1)),
    )


def _difference(measured: Sequence[Sequence[ClipRollout]], resamples: Resamples) -> Difference | None:
    if len(measured) < 2:
        return None
    first, second = measured[0], measured[1]
    if not all(np.array_equal(one.target, other.target) for one, other in zip(first, second, strict=True)):
        return None
    pairs = list(zip(first, second, strict=True))
    true = np.array([(other.teacher_forced - one.teacher_forced).mean() for one, other in pairs])
    greedy = np.array([(other.autoregressive - one.autoregressive).mean() for one, other in pairs])
    return Difference(resamples.mean(true), resamples.mean(greedy))


def rollouts_chart(report: RolloutsReport) -> Chart:
    """Show both costs of each model over the step."""
    series: list[Curve] = []
    for colour, each in enumerate(report.models):
        name = f"{each.label}, " if len(report.models) > 1 else ""
        own = curve(f"{name}autoregressive", each.autoregressive_per_step)
        true = curve(f"{name}teacher-forced", each.teacher_forced_per_step)
        series += [{**own, "colour": colour}, {**true, "colour": colour, "line": "dashed"}]
    return {
        "title": "What it costs a model to read its own guesses",
        "note": f"{report.clips} clips of {report.episodes} held-out episodes; bands: 95 % over episodes",
        "x_label": "grids after the context",
        "y_label": "cross-entropy, nats per token",
        "ticks": list(range(1, report.target_grids + 1)),
        "series": series,
    }
