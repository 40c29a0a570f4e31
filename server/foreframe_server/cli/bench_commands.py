"""`foreframe bench` and its options. Imports typer alone, as `commands` does."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from foreframe_server.cli.bench_engine_commands import bench_engine, bench_roofline
from foreframe_server.cli.bench_http_commands import http
from foreframe_server.cli.bench_options import HtmlOption, MarkdownOption, Outputs, RepeatsOption, ReportOption
from foreframe_server.cli.bench_quality_commands import bench_ensemble, bench_quality_latency
from foreframe_server.cli.options import BundleOption, DataOption, JsonFlag

bench = typer.Typer(no_args_is_help=True, help="Time parts of the serving, always as ratios within one run.")
bench.add_typer(http, name="http")
bench.command("engine")(bench_engine)
bench.command("roofline")(bench_roofline)
bench.command("ensemble")(bench_ensemble)
bench.command("quality-latency")(bench_quality_latency)


@bench.command("compare")
def bench_compare(
    before: Annotated[Path, typer.Argument(help="Report (.json) of a bench.")],
    after: Annotated[Path, typer.Argument(help="Report of the same bench, later.")],
    *,
    tolerance: Annotated[float, typer.Option(min=0, help="How much worse still counts as the same.")] = 0.05,
    any_machine: Annotated[bool, typer.Option("--any-machine", help="Compare reports of two machines too.")] = False,
    json: JsonFlag = False,
) -> None:
    """Compare two reports of one bench: ratios with intervals. Exit code 1: something is worse; 2: not comparable."""
    from foreframe_server.cli.bench_compare import print_comparison, run_compare

    comparison = run_compare(before, after, tolerance=tolerance, has_any_machine=any_machine)
    print_comparison(comparison, is_json=json)
    if comparison.regressions:
        raise typer.Exit(1)


@bench.command("scores")
def bench_scores(
    *,
    candidates: Annotated[int, typer.Option(min=2, help="Candidate futures.")] = 32,
    repeats: RepeatsOption = 3,
    http: Annotated[bool, typer.Option("--http/--no-http", help="Also compare requests to a server.")] = True,
    data: DataOption = None,
    bundle: BundleOption = None,
    out: ReportOption = None,
    html: HtmlOption = None,
    markdown: MarkdownOption = None,
    json: JsonFlag = False,
) -> None:
    """Compare candidates that share one history with as many requests that each read their own."""
    from foreframe_server.cli.bench_reports import publish_record
    from foreframe_server.cli.bench_scores import run_scores
    from foreframe_server.cli.overrides import read_private

    settings = read_private(bundle)
    record = run_scores(settings, data, candidates, repeats, has_http=http)
    plan = {"candidates": candidates, "repeats": repeats, "http": http}
    publish_record(record, plan, Outputs(out, html, markdown, json), settings)


@bench.command("savings")
def bench_savings(
    *,
    rounds: RepeatsOption = 5,
    batch: Annotated[int, typer.Option(min=1, help="Members of a forward.")] = 8,
    out: ReportOption = None,
    html: HtmlOption = None,
    markdown: MarkdownOption = None,
    json: JsonFlag = False,
) -> None:
    """Time every exact saving of the large model on a small one of its kind, with random weights on one thread."""
    from foreframe_server.cli.bench_reports import publish_record
    from foreframe_server.cli.bench_savings import run_savings

    plan = {"rounds": rounds, "batch": batch}
    publish_record(run_savings(rounds, batch), plan, Outputs(out, html, markdown, json), None)


@bench.command("wire")
def bench_wire(
    *,
    frames: Annotated[int, typer.Option(min=2, help="Context frames of a request.")] = 17,
    size: Annotated[int, typer.Option(min=16, help="Pixels of a frame's side, a multiple of 16.")] = 512,
    rounds: RepeatsOption = 20,
    cache: Annotated[Literal["use", "bypass"], typer.Option(help="Whether requests look in the result cache.")] = "use",
    out: ReportOption = None,
    html: HtmlOption = None,
    markdown: MarkdownOption = None,
    json: JsonFlag = False,
) -> None:
    """Compare the ways to send a request's frames, over HTTP to a model that takes next to no time."""
    from foreframe_server.cli.bench_reports import publish_record
    from foreframe_server.cli.bench_wire import WirePlan, run_wire
    from foreframe_server.cli.overrides import read_private

    if size % 16:
        raise typer.BadParameter("is no multiple of 16", param_hint="--size")
    record = run_wire(read_private(None), WirePlan(frames, size, rounds, cache))
    plan = {"frames": frames, "size": size, "rounds": rounds, "cache": cache}
    publish_record(record, plan, Outputs(out, html, markdown, json), None)


@bench.command("sessions")
def bench_sessions(
    *,
    steps: Annotated[int, typer.Option(min=20, help="Steps of the long session.")] = 100,
    rounds: RepeatsOption = 20,
    forks: Annotated[int, typer.Option(min=1, help="Forks of the long session.")] = 50,
    data: DataOption = None,
    bundle: BundleOption = None,
    out: ReportOption = None,
    html: HtmlOption = None,
    markdown: MarkdownOption = None,
    json: JsonFlag = False,
) -> None:
    """Compare a session's steps with predictions of the same content; time and weigh long sessions and forks."""
    from foreframe_server.cli.bench_reports import publish_record
    from foreframe_server.cli.bench_sessions import SessionPlan, run_sessions
    from foreframe_server.cli.overrides import read_private

    settings = read_private(bundle)
    record = run_sessions(settings, data, SessionPlan(steps, rounds, forks))
    plan = {"steps": steps, "rounds": rounds, "forks": forks}
    publish_record(record, plan, Outputs(out, html, markdown, json), settings)


@bench.command("history")
def bench_history(
    *,
    repeats: RepeatsOption = 9,
    data: DataOption = None,
    bundle: BundleOption = None,
    out: ReportOption = None,
    html: HtmlOption = None,
    markdown: MarkdownOption = None,
    json: JsonFlag = False,
) -> None:
    """Time a new grid behind ever longer histories, from kept keys and values and by reading all again."""
    from foreframe_server.cli.bench_history import run_history
    from foreframe_server.cli.bench_reports import publish_record
    from foreframe_server.cli.overrides import read_private

    settings = read_private(bundle)
    record = run_history(settings, data, repeats)
    publish_record(record, {"repeats": repeats}, Outputs(out, html, markdown, json), settings)


@bench.command("ray")
def bench_ray(
    *,
    duration_s: Annotated[float, typer.Option(min=1, help="Seconds of load on one replica, and on two.")] = 10.0,
    out: ReportOption = None,
    html: HtmlOption = None,
    markdown: MarkdownOption = None,
    json: JsonFlag = False,
) -> None:
    """Compare two replicas on Ray Serve with one, where forwards sleep; starts a cluster of this machine alone."""
    from foreframe_server.cli.bench_ray import run_ray
    from foreframe_server.cli.bench_reports import Measured, publish_report

    publish_report(run_ray(duration_s), Outputs(out, html, markdown, json), Measured(None))
