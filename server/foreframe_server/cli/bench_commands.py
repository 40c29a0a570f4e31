"""`foreframe bench` and its options. Imports typer alone, as `commands` does."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from foreframe_server.cli.bench_engine_commands import bench_engine, bench_roofline
from foreframe_server.cli.bench_http_commands import http
from foreframe_server.cli.options import BundleOption, DataOption, JsonFlag

OutOption = Annotated[Path | None, typer.Option(help="File (.json) to write.", show_default=False)]
RepeatsOption = Annotated[int, typer.Option(min=1, help="How often each side is timed.")]

bench = typer.Typer(no_args_is_help=True, help="Time parts of the serving, always as ratios within one run.")
bench.add_typer(http, name="http")
bench.command("engine")(bench_engine)
bench.command("roofline")(bench_roofline)


@bench.command("scores")
def bench_scores(
    *,
    candidates: Annotated[int, typer.Option(min=2, help="Candidate futures.")] = 32,
    repeats: RepeatsOption = 3,
    http: Annotated[bool, typer.Option("--http/--no-http", help="Also compare requests to a server.")] = True,
    data: DataOption = None,
    bundle: BundleOption = None,
    out: OutOption = None,
    json: JsonFlag = False,
) -> None:
    """Compare candidates that share one history with as many requests that each read their own."""
    from foreframe_server.cli.bench_scores import run_scores
    from foreframe_server.cli.experiments import check_json_name, print_record
    from foreframe_server.cli.overrides import read_private

    if out is not None:
        check_json_name(out)
    record = run_scores(read_private(bundle), data, candidates, repeats, has_http=http)
    print_record(record, out, is_json=json)


@bench.command("savings")
def bench_savings(
    *,
    rounds: RepeatsOption = 5,
    batch: Annotated[int, typer.Option(min=1, help="Members of a forward.")] = 8,
    out: OutOption = None,
    json: JsonFlag = False,
) -> None:
    """Time every exact saving of the large model on a small one of its kind, with random weights on one thread."""
    from foreframe_server.cli.bench_savings import run_savings
    from foreframe_server.cli.experiments import check_json_name, print_record

    if out is not None:
        check_json_name(out)
    print_record(run_savings(rounds, batch), out, is_json=json)


@bench.command("wire")
def bench_wire(
    *,
    frames: Annotated[int, typer.Option(min=2, help="Context frames of a request.")] = 17,
    size: Annotated[int, typer.Option(min=16, help="Pixels of a frame's side, a multiple of 16.")] = 512,
    rounds: RepeatsOption = 20,
    cache: Annotated[Literal["use", "bypass"], typer.Option(help="Whether requests look in the result cache.")] = "use",
    out: OutOption = None,
    json: JsonFlag = False,
) -> None:
    """Compare the ways to send a request's frames, over HTTP to a model that takes next to no time."""
    from foreframe_server.cli.bench_wire import WirePlan, run_wire
    from foreframe_server.cli.experiments import check_json_name, print_record
    from foreframe_server.cli.overrides import read_private

    if out is not None:
        check_json_name(out)
    if size % 16:
        raise typer.BadParameter("is no multiple of 16", param_hint="--size")
    print_record(run_wire(read_private(None), WirePlan(frames, size, rounds, cache)), out, is_json=json)


@bench.command("sessions")
def bench_sessions(
    *,
    steps: Annotated[int, typer.Option(min=20, help="Steps of the long session.")] = 100,
    rounds: RepeatsOption = 20,
    forks: Annotated[int, typer.Option(min=1, help="Forks of the long session.")] = 50,
    data: DataOption = None,
    bundle: BundleOption = None,
    out: OutOption = None,
    json: JsonFlag = False,
) -> None:
    """Compare a session's steps with predictions of the same content; time and weigh long sessions and forks."""
    from foreframe_server.cli.bench_sessions import SessionPlan, run_sessions
    from foreframe_server.cli.experiments import check_json_name, print_record
    from foreframe_server.cli.overrides import read_private

    if out is not None:
        check_json_name(out)
    print_record(run_sessions(read_private(bundle), data, SessionPlan(steps, rounds, forks)), out, is_json=json)


@bench.command("history")
def bench_history(
    *,
    repeats: RepeatsOption = 9,
    data: DataOption = None,
    bundle: BundleOption = None,
    out: OutOption = None,
    json: JsonFlag = False,
) -> None:
    """Time a new grid behind ever longer histories, from kept keys and values and by reading all again."""
    from foreframe_server.cli.bench_history import run_history
    from foreframe_server.cli.experiments import check_json_name, print_record
    from foreframe_server.cli.overrides import read_private

    if out is not None:
        check_json_name(out)
    print_record(run_history(read_private(bundle), data, repeats), out, is_json=json)
