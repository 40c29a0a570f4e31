"""`foreframe eval attention` and `eval motion`: train both kinds of attention, or go on, and compare them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foreframe_server.cli.console import open_progress
from foreframe_server.cli.experiments import Finding
from foreframe_server.cli.faults import needs_torch
from foreframe_server.experiments.attention import (
    AttentionReport,
    Learning,
    MotionReport,
    StepCost,
    attention_chart,
    motion_chart,
)
from foreframe_server.intervals import Resamples

if TYPE_CHECKING:
    from foreframe_models.st_transformer import Span, StConfig, StTransformer
    from foreframe_models.training.likelihood import TokenClips
    from foreframe_models.training.loop import Progress

LENGTHS = (2, 4, 8, 16, 32)
HELD_OUT = 120


@dataclass(frozen=True, slots=True)
class Ask:
    """Where the two runs lie and how long they are. `span` trains that kind only, to use two cores or machines."""

    work: Path
    steps: int
    seed: int
    span: str | None


@dataclass(frozen=True, slots=True)
class Episodes:
    """What the attention study learns from: episodes, and the run whose tokenizer turns them into ids."""

    data: Path
    validation: Path
    run: Path


def run_attention(ask: Ask, episodes: Episodes) -> Finding | None:
    """Compare both kinds on the embedded world's tokens; None after training one alone. Raises DatasetError, Fault."""
    with needs_torch():
        from foreframe_models.studies import attention as study
    train, held_out = _token_clips(episodes, ask.work, study.CLIP_GRIDS)
    loop = study.study_loop(ask.steps, ask.seed)
    _train_each(ask, lambda span: study.train_on_tokens(span, train, held_out, loop, ask.work / span))
    if ask.span is not None:
        return None
    models = _load_each(ask.work, study.token_config)
    nats = {span: study.clip_nats(model, held_out, HELD_OUT) for span, model in models.items()}
    resamples = Resamples.of([clip % len(held_out.ids) for clip in range(HELD_OUT)], ask.seed)
    costs = study.measure_costs(next(iter(models.values())).config, LENGTHS)
    report = AttentionReport(
        runs=_learnings(ask.work, models),
        final={span: resamples.mean(values) for span, values in nats.items()},
        full_minus_factorised=resamples.mean(nats["full"] - nats["factorised"]),
        costs=[StepCost(cost.span, cost.num_grids, cost.seconds, cost.kept_mib) for cost in costs],
        clips=HELD_OUT,
        batch_size=study.BATCH_SIZE,
        clip_grids=study.CLIP_GRIDS,
        seed=ask.seed,
    )
    return Finding(asdict(report), attention_chart(report))


def run_motion(ask: Ask) -> Finding | None:
    """Compare both kinds on sprites that cross positions; None after training one alone. Raises Fault without torch."""
    with needs_torch():
        from foreframe_models.studies import attention as study
    loop = study.study_loop(ask.steps, ask.seed)
    _train_each(ask, lambda span: study.train_on_sprites(span, loop, ask.work / span, num_held_out=HELD_OUT))
    if ask.span is not None:
        return None
    runs = _learnings(ask.work, _load_each(ask.work, study.sprite_config))
    report = MotionReport(
        runs=runs,
        final={run.span: {speed: nats[-1] for speed, nats in run.nats.items()} for run in runs},
        clips=HELD_OUT,
        batch_size=study.BATCH_SIZE,
        seed=ask.seed,
    )
    return Finding(asdict(report), motion_chart(report))


def _token_clips(episodes: Episodes, work: Path, length: int) -> "tuple[TokenClips, TokenClips]":
    from foreframe_models.embedded import Run
    from foreframe_models.training.data import EpisodeTensors, state_statistics
    from foreframe_models.training.likelihood import kept_ids, token_clips, tokenize_episodes

    train, validation = EpisodeTensors.load(episodes.data), EpisodeTensors.load(episodes.validation)
    tokenizer, statistics = Run(episodes.run).tokenizer(), state_statistics(train.states)
    return (
        token_clips(kept_ids(tokenizer, train, work / "ids.pt"), train, statistics, length),
        token_clips(tokenize_episodes(tokenizer, validation), validation, statistics, length),
    )


def _train_each(ask: Ask, train: "Callable[[Span], Iterator[Progress]]") -> None:
    import torch

    from foreframe_models.st_transformer import Span

    torch.set_num_threads(1)
    for span in Span if ask.span is None else [Span(ask.span)]:
        with open_progress(is_shown=True) as bar:
            task = bar.add_task(span, total=ask.steps, note="")
            for moment in train(span):
                bar.update(task, completed=moment.step, note=f"loss {moment.loss:.4f}")
            bar.update(task, completed=ask.steps)


def _load_each(work: Path, config: "Callable[[Span], StConfig]") -> "dict[str, StTransformer]":
    from foreframe_models.st_transformer import Span
    from foreframe_models.studies.attention import load_trained

    return {span: load_trained(config(span), work / span) for span in Span}


def _learnings(work: Path, models: "Mapping[str, StTransformer]") -> list[Learning]:
    from foreframe_models.training.loop import read_evaluations

    found = []
    for span, model in models.items():
        moments = read_evaluations(work / span)
        found.append(
            Learning(
                span=span,
                parameters=sum(parameter.numel() for parameter in model.parameters()),
                steps=[moment.step for moment in moments],
                seconds=[moment.seconds for moment in moments],
                nats={name: [moment.metrics[name] for moment in moments] for name in moments[0].metrics},
            )
        )
    return found
