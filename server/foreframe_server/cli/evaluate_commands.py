"""`foreframe eval` and its experiments with their options. Imports typer alone, as `commands` does."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from foreframe_server.cli.options import (
    BundleOption,
    ClipsOption,
    ContextGridsOption,
    DataOption,
    JsonFlag,
    OutOption,
    SeedOption,
    TargetGridsOption,
    refuse_before,
)

WorkOption = Annotated[Path, typer.Option(help="Folder of the two runs; what is there is continued.")]
SpanOption = Annotated[
    Literal["factorised", "full"] | None,
    typer.Option(help="Train that kind alone and compare nothing, to use two cores.", show_default="both"),
]

evaluate = typer.Typer(invoke_without_command=True)


@evaluate.callback()
def evaluate_quality(
    context: typer.Context,
    *,
    data: DataOption = None,
    clips: ClipsOption = None,
    bundle: BundleOption = None,
    noise_plans: Annotated[
        bool, typer.Option("--noise-plans", help="Also compare antithetic with independent noise (minutes).")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Measure a model on clips it has never seen: PSNR, spread, what its states are for, latency over HTTP."""
    if context.invoked_subcommand is not None:
        given = {"--data": data, "--clips": clips, "--bundle": bundle, "--json": json or None}
        refuse_before(context.invoked_subcommand, {**given, "--noise-plans": noise_plans or None})
        return
    from foreframe_server.cli.evaluate import evaluate_model
    from foreframe_server.cli.overrides import read_private
    from foreframe_server.cli.report import print_report

    report = evaluate_model(read_private(bundle), data, clips, has_noise_plans=noise_plans)
    print_report(report, is_json=json)


@evaluate.command("compression")
def evaluate_compression(
    *,
    data: Annotated[Path, typer.Option(help="Data set of held-out episodes to score.")],
    train: Annotated[Path, typer.Option(help="Data set that the counting models are fitted on.")],
    validation: Annotated[Path, typer.Option(help="Data set that chooses their smoothing.")],
    clips: ClipsOption = None,
    context_grids: ContextGridsOption = 4,
    target_grids: TargetGridsOption = 8,
    top_k: Annotated[int, typer.Option(min=1, help="Ids a place that count as top.")] = 500,
    train_episodes: Annotated[
        int | None, typer.Option(min=1, help="Fit on the first so many episodes.", show_default="all")
    ] = None,
    bundle: BundleOption = None,
    out: OutOption = None,
    json: JsonFlag = False,
) -> None:
    """Compare the likelihood model's nats per token with counting, with wrong states, and with its own guesses."""
    from foreframe_server.cli.evaluate_compression import Ask, run_compression
    from foreframe_server.cli.experiments import check_out, publish
    from foreframe_server.cli.overrides import read_private
    from foreframe_server.experiments.token_clips import Split

    check_out(out)
    ask = Ask(data, train, validation, clips, train_episodes, Split(context_grids, target_grids), top_k)
    publish(run_compression(read_private(bundle), ask), out, is_json=json)


@evaluate.command("ensembles")
def evaluate_ensembles(
    *,
    data: DataOption = None,
    clips: ClipsOption = None,
    largest: Annotated[int, typer.Option(min=1, help="Leave larger ensembles out.")] = 50,
    bundle: BundleOption = None,
    out: OutOption = None,
    json: JsonFlag = False,
) -> None:
    """Compare PSNR, SSIM and sharpness of every strategy at 1, 5, 10, 20 and 50 members."""
    from foreframe_server.cli.evaluate_rollout import run_ensembles
    from foreframe_server.cli.experiments import check_out, publish
    from foreframe_server.cli.overrides import read_private

    check_out(out)
    publish(run_ensembles(read_private(bundle), data, clips, largest), out, is_json=json)


@evaluate.command("noise")
def evaluate_noise(
    *,
    data: DataOption = None,
    clips: ClipsOption = None,
    reference: Annotated[int, typer.Option(min=2, help="Independent members that stand for endless ones.")] = 256,
    steps: Annotated[int | None, typer.Option(min=1, help="Solver steps.", show_default="the model's")] = None,
    bundle: BundleOption = None,
    out: OutOption = None,
    json: JsonFlag = False,
) -> None:
    """Compare antithetic with independent noise: error of the mean, spread, and members x steps at equal compute."""
    from foreframe_server.cli.evaluate_rollout import run_noise
    from foreframe_server.cli.experiments import check_out, publish
    from foreframe_server.cli.overrides import read_private

    check_out(out)
    publish(run_noise(read_private(bundle), data, clips, reference, steps), out, is_json=json)


@evaluate.command("spread")
def evaluate_spread(
    *,
    data: DataOption = None,
    clips: ClipsOption = None,
    bundle: BundleOption = None,
    out: OutOption = None,
    json: JsonFlag = False,
) -> None:
    """Check the spread's calibration on clips it has not seen, and what it tells of wrong cameras and states."""
    from foreframe_server.cli.evaluate_rollout import run_spread
    from foreframe_server.cli.experiments import check_out, publish
    from foreframe_server.cli.overrides import read_private

    check_out(out)
    publish(run_spread(read_private(bundle), data, clips), out, is_json=json)


@evaluate.command("states")
def evaluate_states(
    *,
    data: DataOption = None,
    clips: ClipsOption = None,
    bundle: BundleOption = None,
    out: OutOption = None,
    json: JsonFlag = False,
) -> None:
    """Compare true states with average ones and another episode's, frame by frame."""
    from foreframe_server.cli.evaluate_rollout import run_states
    from foreframe_server.cli.experiments import check_out, publish
    from foreframe_server.cli.overrides import read_private

    check_out(out)
    publish(run_states(read_private(bundle), data, clips), out, is_json=json)


@evaluate.command("rollouts")
def evaluate_rollouts(
    *,
    data: Annotated[Path, typer.Option(help="Data set of held-out episodes to score.")],
    clips: ClipsOption = None,
    context_grids: ContextGridsOption = 4,
    target_grids: TargetGridsOption = 8,
    bundle: BundleOption = None,
    against: Annotated[
        Path | None, typer.Option(help="A second bundle, such as one trained otherwise.", show_default=False)
    ] = None,
    label: Annotated[str, typer.Option(help="What the chart calls the model.")] = "first",
    against_label: Annotated[str, typer.Option(help="What the chart calls the second.")] = "second",
    out: OutOption = None,
    json: JsonFlag = False,
) -> None:
    """Compare the likelihood model's cost on true histories with that on its own guesses, step by step."""
    from foreframe_server.cli.evaluate_rollouts import Ask, run_rollouts
    from foreframe_server.cli.experiments import check_out, publish
    from foreframe_server.cli.overrides import read_private
    from foreframe_server.experiments.token_clips import Split

    check_out(out)
    ask = Ask(data, clips, Split(context_grids, target_grids), against, (label, against_label))
    publish(run_rollouts(read_private(bundle), ask), out, is_json=json)


@evaluate.command("attention")
def evaluate_attention(
    *,
    data: Annotated[Path, typer.Option(help="Data set to train on.")],
    validation: Annotated[Path, typer.Option(help="Data set of held-out episodes.")],
    run: Annotated[Path, typer.Option(help="Folder of a training run with a tokenizer.")],
    work: WorkOption,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each kind.")] = 1500,
    only: SpanOption = None,
    seed: SeedOption = 0,
    out: OutOption = None,
    json: JsonFlag = False,
) -> None:
    """Train full and factorised attention alike on the world's tokens, and compare cost, memory and time."""
    from foreframe_server.cli.experiments import check_out, publish
    from foreframe_server.cli.study import Ask, Episodes, run_attention

    check_out(out)
    finding = run_attention(Ask(work, steps, seed, only), Episodes(data, validation, run))
    if finding is not None:
        publish(finding, out, is_json=json)


@evaluate.command("motion")
def evaluate_motion(
    *,
    work: WorkOption,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each kind.")] = 2000,
    only: SpanOption = None,
    seed: SeedOption = 0,
    out: OutOption = None,
    json: JsonFlag = False,
) -> None:
    """Train full and factorised attention on sprites that jump across positions, and compare them by speed."""
    from foreframe_server.cli.experiments import check_out, publish
    from foreframe_server.cli.study import Ask, run_motion

    check_out(out)
    finding = run_motion(Ask(work, steps, seed, only))
    if finding is not None:
        publish(finding, out, is_json=json)
