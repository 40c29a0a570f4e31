"""What a likelihood model saves: nats per token on held-out clips against counting, and what the states are worth.

All sides are scored on the same target tokens of the same clips, so every comparison is paired. A cross-entropy here
is a mean of -log p over the whole vocabulary, in nats per token, unless its name says otherwise.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from foreframe_engines.engine import LikelihoodEngine
from foreframe_engines.episodes import Clip
from foreframe_engines.nats import TopKCrossEntropy, TopKDefinition, top_k_cross_entropy
from foreframe_engines.reading import greedy_rollout, teacher_forced
from foreframe_engines.types import GridScores
from foreframe_server.evaluation import pair_clips
from foreframe_server.experiments.token_clips import Split, TokenClip
from foreframe_server.intervals import Interval, Resamples
from foreframe_server.measures import psnr_db
from foreframe_server.plots import Chart, Curve, Value
from foreframe_server.token_baselines import Baseline, Places

CHALLENGE_TOP_K = 500
"""How many ids a place the 1X challenge's compression track takes; its scorer is not public."""


@dataclass(frozen=True, slots=True, eq=False)
class ClipCosts:
    """One clip's costs in nats, for each target grid the mean over its tokens."""

    seed: int
    teacher_forced: GridScores
    autoregressive: GridScores
    zero_states: Float64[np.ndarray, " g"]
    shuffled_states: Float64[np.ndarray, " g"]
    baselines: Mapping[str, Float64[np.ndarray, " g"]]
    reconstruction_psnr_db: float
    ids: Int64[np.ndarray, "t s"]


@dataclass(frozen=True, slots=True)
class BaselineMeasures:
    """A counting model's cost, and the share of it that the likelihood model saves (0.25: a quarter less)."""

    nats_per_token: Interval
    saved_by_model_ratio: Interval
    chosen_on_validation: Mapping[str, float | str]


@dataclass(frozen=True, slots=True)
class StateMeasures:
    """Teacher-forced cost when all states are the average ones or another episode's, and how much more that is."""

    zero_states: Interval
    shuffled_states: Interval
    zero_minus_true: Interval
    shuffled_minus_true: Interval


@dataclass(frozen=True, slots=True)
class TokenizerMeasures:
    """How near frames come back from their ids, and how the vocabulary is used."""

    psnr_db: Interval
    ids_used_train: int
    perplexity_train: float
    ids_used_test: int
    repeated_from_previous_grid_ratio: Interval


@dataclass(frozen=True, slots=True)
class CodeLength:
    """What the target costs in bits, teacher-forced, and what it costs to number each id instead."""

    bits_per_token: Interval
    bits_per_frame: Interval
    bits_per_pixel: Interval
    flat_bits_per_token: float
    flat_bits_per_pixel: float


@dataclass(frozen=True, slots=True)
class CompressionReport:
    """The compression table. Costs are in nats per token; intervals are of 95 %, over episodes, paired."""

    model: str
    revision: str
    clips: int
    episodes: int
    seed: int
    context_grids: int
    target_grids: int
    tokens_per_grid: int
    vocabulary_ids: int
    train_tokens: int
    teacher_forced: Interval
    autoregressive: Interval
    autoregressive_minus_teacher_forced: Interval
    baselines: Mapping[str, BaselineMeasures]
    states: StateMeasures
    teacher_forced_per_step: Sequence[Interval]
    autoregressive_per_step: Sequence[Interval]
    top_k_teacher_forced: Sequence[TopKCrossEntropy]
    top_k_autoregressive: Sequence[TopKCrossEntropy]
    code_length: CodeLength
    tokenizer: TokenizerMeasures
    unit: str = "nats per token, unless a key names another unit"
    experiment: str = "compression"


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """What the clips are measured with."""

    split: Split
    baselines: Sequence[Baseline]
    train: Sequence[Int64[np.ndarray, "t s"]]
    top_k: int = CHALLENGE_TOP_K
    seed: int = 0


def measure_costs(engine: LikelihoodEngine, clips: Sequence[Clip], setting: Setting) -> Iterator[ClipCosts]:
    """Measure clips one after another. Raises DatasetError when all are of one episode."""
    for clip, other in pair_clips(clips):
        yield _measure_clip(engine, clip, TokenClip.of(engine, other, setting.split).states, setting)


def _measure_clip(
    engine: LikelihoodEngine, clip: Clip, other_states: Float32[np.ndarray, "g n"], setting: Setting
) -> ClipCosts:
    tokens = TokenClip.of(engine, clip, setting.split)
    context = tokens.read(engine)
    no_states = np.tile(engine.contract.state.mean, (len(tokens.ids), 1))
    places = Places(tokens.previous, tokens.target)
    back = engine.detokenize(tokens.ids)
    return ClipCosts(
        seed=clip.seed,
        teacher_forced=teacher_forced(engine, context, tokens.target, tokens.target_states, setting.top_k),
        autoregressive=greedy_rollout(engine, context, tokens.target_states, tokens.target, setting.top_k),
        zero_states=teacher_forced_costs(engine, tokens.with_states(no_states)),
        shuffled_states=teacher_forced_costs(engine, tokens.with_states(other_states)),
        baselines={each.name: each.nats(places).mean(axis=1) for each in setting.baselines},
        reconstruction_psnr_db=float(psnr_db(back, clip.frames).mean()),
        ids=tokens.ids,
    )


def teacher_forced_costs(engine: LikelihoodEngine, clip: TokenClip) -> Float64[np.ndarray, " g"]:
    """Return the cost of each target grid in nats per token, every grid before it being the true one."""
    return costs(teacher_forced(engine, clip.read(engine), clip.target, clip.target_states))


def costs(scores: GridScores) -> Float64[np.ndarray, " g"]:
    """Return each grid's mean -log p in nats per token."""
    return -scores.log_probability.mean(axis=1, dtype=np.float64)


def summarise_costs(engine: LikelihoodEngine, measured: Sequence[ClipCosts], setting: Setting) -> CompressionReport:
    """Turn the costs of clips into the table."""
    contract, tokens, split = engine.contract, engine.tokens, setting.split
    resamples = Resamples.of([clip.seed for clip in measured], setting.seed)
    true = np.stack([costs(clip.teacher_forced) for clip in measured])
    greedy = np.stack([costs(clip.autoregressive) for clip in measured])
    return CompressionReport(
        model=contract.model,
        revision=contract.revision,
        clips=len(measured),
        episodes=len({clip.seed for clip in measured}),
        seed=setting.seed,
        context_grids=split.context_grids,
        target_grids=split.target_grids,
        tokens_per_grid=tokens.tokens,
        vocabulary_ids=tokens.vocabulary,
        train_tokens=sum(grids.size for grids in setting.train),
        teacher_forced=resamples.mean(true.mean(axis=1)),
        autoregressive=resamples.mean(greedy.mean(axis=1)),
        autoregressive_minus_teacher_forced=resamples.mean((greedy - true).mean(axis=1)),
        baselines={each.name: _baseline(each, measured, true, resamples) for each in setting.baselines},
        states=_states(measured, true, resamples),
        teacher_forced_per_step=resamples.means(true),
        autoregressive_per_step=resamples.means(greedy),
        top_k_teacher_forced=_top_k([clip.teacher_forced for clip in measured], setting.top_k, tokens.vocabulary),
        top_k_autoregressive=_top_k([clip.autoregressive for clip in measured], setting.top_k, tokens.vocabulary),
        code_length=_code_length(engine, split, true, resamples),
        tokenizer=_tokenizer(measured, setting, resamples),
    )


def _baseline(
    baseline: Baseline, measured: Sequence[ClipCosts], true: Float64[np.ndarray, "n g"], resamples: Resamples
) -> BaselineMeasures:
    counted = np.stack([clip.baselines[baseline.name] for clip in measured]).mean(axis=1)
    share = resamples.ratio(counted - true.mean(axis=1), counted)
    return BaselineMeasures(resamples.mean(counted), share, baseline.chosen)


def _states(measured: Sequence[ClipCosts], true: Float64[np.ndarray, "n g"], resamples: Resamples) -> StateMeasures:
    zero = np.stack([clip.zero_states for clip in measured])
    shuffled = np.stack([clip.shuffled_states for clip in measured])
    changed = (zero, shuffled, zero - true, shuffled - true)
    return StateMeasures(*(resamples.mean(each.mean(axis=1)) for each in changed))


def _top_k(scores: Sequence[GridScores], k: int, vocabulary: int) -> list[TopKCrossEntropy]:
    together = _joined(scores)
    return [top_k_cross_entropy(together, k, definition, vocabulary) for definition in TopKDefinition]


def _joined(scores: Sequence[GridScores]) -> GridScores:
    masses = [each.top_log_mass for each in scores if each.top_log_mass is not None]
    is_in_top = [each.is_in_top for each in scores if each.is_in_top is not None]
    return GridScores(
        log_probability=np.concatenate([each.log_probability for each in scores]),
        greedy=np.concatenate([each.greedy for each in scores]),
        top_log_mass=np.concatenate(masses),
        is_in_top=np.concatenate(is_in_top),
    )


def _code_length(
    engine: LikelihoodEngine, split: Split, true: Float64[np.ndarray, "n g"], resamples: Resamples
) -> CodeLength:
    camera, tokens = engine.contract.camera, engine.tokens
    num_tokens, num_frames = split.target_grids * tokens.tokens, split.target_frames(tokens)
    num_pixels = num_frames * camera.height * camera.width
    bits = true.mean(axis=1) / math.log(2)
    flat = math.log2(tokens.vocabulary)
    return CodeLength(
        bits_per_token=resamples.mean(bits),
        bits_per_frame=resamples.mean(bits * num_tokens / num_frames),
        bits_per_pixel=resamples.mean(bits * num_tokens / num_pixels),
        flat_bits_per_token=round(flat, 5),
        flat_bits_per_pixel=round(flat * num_tokens / num_pixels, 5),
    )


def _tokenizer(measured: Sequence[ClipCosts], setting: Setting, resamples: Resamples) -> TokenizerMeasures:
    _, counts = np.unique(np.concatenate([grids.ravel() for grids in setting.train]), return_counts=True)
    shares = counts / counts.sum()
    repeated = np.array([(clip.ids[1:] == clip.ids[:-1]).mean() for clip in measured])
    return TokenizerMeasures(
        psnr_db=resamples.mean(np.array([clip.reconstruction_psnr_db for clip in measured])),
        ids_used_train=len(counts),
        perplexity_train=round(float(np.exp(-(shares * np.log(shares)).sum())), 1),
        ids_used_test=len(np.unique(np.stack([clip.ids for clip in measured]))),
        repeated_from_previous_grid_ratio=resamples.mean(repeated),
    )


def compression_chart(report: CompressionReport) -> Chart:
    """Show the costs beside each other, and how they grow with the step."""
    model = [
        _value("model, true states", report.teacher_forced, 1),
        _value("model, average states", report.states.zero_states, 1),
        _value("model, another episode's states", report.states.shuffled_states, 1),
    ]
    counted = [_value(name.replace("_", " "), each.nats_per_token, 0) for name, each in report.baselines.items()]
    note = f"{report.clips} clips of {report.episodes} held-out episodes; {report.context_grids} grids seen, the next "
    note += f"{report.target_grids} scored; bands and bars: 95 % over episodes"
    return {
        "title": f"{report.model} {report.revision}: what a token costs",
        "x_label": "",
        "note": note,
        "panels": [
            {"title": "teacher-forced", "x_label": "cross-entropy, nats per token", "values": [*counted, *model]},
            {
                "title": "by step",
                "x_label": "grids after the context",
                "y_label": "cross-entropy, nats per token",
                "ticks": list(range(1, report.target_grids + 1)),
                "series": [
                    curve("teacher-forced", report.teacher_forced_per_step),
                    curve("autoregressive, greedy", report.autoregressive_per_step),
                ],
            },
        ],
    }


def _value(label: str, interval: Interval, colour: int) -> Value:
    return {"label": label, "value": interval.mean, "low": interval.low, "high": interval.high, "colour": colour}


def curve(label: str, intervals: Sequence[Interval]) -> Curve:
    """Draw intervals over 1, 2, 3 and so on."""
    return {
        "label": label,
        "x": list(range(1, len(intervals) + 1)),
        "y": [each.mean for each in intervals],
        "low": [each.low for each in intervals],
        "high": [each.high for each in intervals],
    }
