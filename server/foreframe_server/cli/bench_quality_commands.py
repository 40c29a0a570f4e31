"""`foreframe bench ensemble`, `bench quality-latency` and their options. Imports typer alone, as `commands` does."""

from typing import Annotated

import typer

from foreframe_server.cli.bench_options import HtmlOption, MarkdownOption, Outputs, ReportOption, RoundsOption
from foreframe_server.cli.faults import needs_client
from foreframe_server.cli.options import BundleOption, JsonFlag, UrlOption


def bench_ensemble(
    *,
    clips: Annotated[int, typer.Option(min=2, help="Clips that ship with the bundle.")] = 8,
    reference: Annotated[int, typer.Option(min=2, help="Independent members that stand for endless ones.")] = 64,
    steps: Annotated[
        list[int] | None, typer.Option(min=1, help="Solver steps; may be given often.", show_default="1, 2, 4, 8")
    ] = None,
    evaluations: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Evaluations to spend; may be given often.", show_default="2, 4, 8, 16, 32"),
    ] = None,
    rounds: RoundsOption = 5,
    bundle: BundleOption = None,
    out: ReportOption = None,
    html: HtmlOption = None,
    markdown: MarkdownOption = None,
    json: JsonFlag = False,
) -> None:
    """Measure what quality costs: members x solver steps x noise plan, at equal numbers of evaluations."""
    from foreframe_server.cli.bench_quality import run_ensemble
    from foreframe_server.cli.bench_reports import Measured, bundle_weights, publish_report
    from foreframe_server.cli.overrides import read_private
    from foreframe_server.experiments.ensemble_costs import CostPlan
    from foreframe_server.experiments.noise import Scale

    settings = read_private(bundle)
    spend = tuple(evaluations or (2, 4, 8, 16, 32))
    scale = Scale(reference_members=reference, steps=tuple(steps or (1, 2, 4, 8)), evaluations=spend)
    report = run_ensemble(settings, CostPlan(clips, scale, rounds))
    publish_report(report, Outputs(out, html, markdown, json), Measured(bundle_weights(settings)))


def bench_quality_latency(
    *,
    clips: Annotated[int, typer.Option(min=2, help="Clips that ship with the bundle.")] = 8,
    members: Annotated[
        list[int] | None,
        typer.Option(min=1, max=32, help="Ensemble sizes; may be given often.", show_default="1, 2, 4, 8, 16"),
    ] = None,
    steps: Annotated[
        list[int] | None, typer.Option(min=1, help="Solver steps; may be given often.", show_default="1, 2, 4")
    ] = None,
    rounds: RoundsOption = 2,
    url: UrlOption = None,
    bundle: BundleOption = None,
    out: ReportOption = None,
    html: HtmlOption = None,
    markdown: MarkdownOption = None,
    json: JsonFlag = False,
) -> None:
    """Measure PSNR, SSIM and spread against milliseconds over HTTP, for every ensemble size and number of steps."""
    with needs_client():
        from foreframe_server.cli.bench_http import Target, read_measured
        from foreframe_server.cli.bench_quality import run_quality_latency
        from foreframe_server.cli.bench_reports import publish_report
        from foreframe_server.load.quality import QualityPlan

    target = Target(url, bundle, max_lag_ms=10.0)
    plan = QualityPlan(tuple(members or (1, 2, 4, 8, 16)), tuple(steps or (1, 2, 4)), clips, rounds)
    report = run_quality_latency(target, plan)
    publish_report(report, Outputs(out, html, markdown, json), read_measured(target))
