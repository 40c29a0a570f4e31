"""`foreframe bench http` and its options. Imports typer alone, as `commands` does."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from foreframe_server.cli.bench_options import (
    LAG_MS,
    PATIENCE_S,
    HtmlOption,
    LagOption,
    MarkdownOption,
    MembersOption,
    Outputs,
    ReportOption,
    SloOption,
    StepsOption,
    StrategyOption,
)
from foreframe_server.cli.bench_scenario_commands import bench_offline, bench_server, bench_single_stream
from foreframe_server.cli.faults import needs_client
from foreframe_server.cli.options import BundleOption, JsonFlag, SeedOption, UrlOption

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from foreframe_server.cli.bench_http import Target
    from foreframe_server.load.findings import Findings

SecondsOption = Annotated[float, typer.Option(min=0.1, help="Seconds of load.")]
LoadOption = Annotated[float, typer.Option(min=0.01, max=0.99, help="Share of the measured capacity.")]
RobotsOption = Annotated[
    list[int] | None, typer.Option(min=1, help="How many robots; may be given often.", show_default="1, 2, 4, 8")
]
DeadlineOption = Annotated[int | None, typer.Option(min=5, max=600_000, help="Deadline in ms.", show_default="none")]
OnDeadline = Literal["degrade", "partial", "fail"]
RoundsOption = Annotated[int, typer.Option(min=1, help="Rounds; a measure is the median of theirs.")]

http = typer.Typer(
    no_args_is_help=True,
    help=f"Put load on a server, at --url, where up to {PATIENCE_S:g} s are waited for it, or started for the run. "
    "Exit code 2 and no number when questions went out late, nobody answered them, or answers were wrong.",
)


http.command("single-stream")(bench_single_stream)
http.command("server")(bench_server)
http.command("offline")(bench_offline)


@http.command("robots")
def bench_robots(
    *,
    robots: RobotsOption = None,
    rate: Annotated[float, typer.Option(min=0.1, help="Questions a second of each.")] = 2.0,
    members: MembersOption = 20,
    steps: StepsOption = None,
    deadline_ms: Annotated[
        int | None, typer.Option(min=5, max=600_000, help="Deadline in ms.", show_default="one period")
    ] = None,
    seconds: SecondsOption = 20.0,
    seed: SeedOption = 0,
    url: UrlOption = None,
    bundle: BundleOption = None,
    max_lag_ms: LagOption = LAG_MS,
    out: ReportOption = None,
    html: HtmlOption = None,
    markdown: MarkdownOption = None,
    json: JsonFlag = False,
) -> None:
    """Let more and more robots ask at a control rate: the newest question wins, ensembles shrink to be in time."""
    with needs_client():
        from foreframe_server.cli.bench_http import Target, run_checked
        from foreframe_server.load.fleet import FleetPlan, measure_fleet
        from foreframe_server.load.traces import Ask

    ask = Ask(members=members, steps=steps, deadline_ms=deadline_ms)
    plan = FleetPlan(ask, tuple(robots or (1, 2, 4, 8)), rate, seconds, seed)
    target = Target(url, bundle, max_lag_ms, seed)
    findings = run_checked(target, plan.ask, lambda bench: measure_fleet(bench, plan))
    _publish(target, findings, plan, Outputs(out, html, markdown, json))


@http.command("foresight")
def bench_foresight(
    *,
    robots: RobotsOption = None,
    rate: Annotated[float, typer.Option(min=0.1, help="Questions a second of each.")] = 2.0,
    members: MembersOption = 20,
    steps: StepsOption = None,
    seconds: SecondsOption = 20.0,
    seed: SeedOption = 0,
    url: UrlOption = None,
    bundle: BundleOption = None,
    max_lag_ms: LagOption = LAG_MS,
    out: ReportOption = None,
    html: HtmlOption = None,
    markdown: MarkdownOption = None,
    json: JsonFlag = False,
) -> None:
    """Let robots ask a server and the simulation behind `foreframe capacity`, and compare; the report has the costs."""
    with needs_client():
        from foreframe_engines import Bundle, builtin_bundle
        from foreframe_server.capacity.calibration import measure_foresight
        from foreframe_server.capacity.simulation import Rules
        from foreframe_server.cli.bench_http import Target, run_checked
        from foreframe_server.load.fleet import FleetPlan
        from foreframe_server.load.traces import Ask

    plan = FleetPlan(Ask(members=members, steps=steps), tuple(robots or (1, 2, 4, 8)), rate, seconds, seed)
    contract = Bundle.open(bundle or builtin_bundle()).contract
    rules = Rules(contract.horizon)
    target = Target(url, bundle, max_lag_ms, seed)
    findings = run_checked(target, plan.ask, lambda bench: measure_foresight(bench, plan, contract, rules))
    _publish(target, findings, plan, Outputs(out, html, markdown, json))


@http.command("overload")
def bench_overload(
    *,
    factor: Annotated[float, typer.Option(min=1, help="Overload, in measured capacities.")] = 5.0,
    seconds: SecondsOption = 20.0,
    normal_seconds: Annotated[float, typer.Option(min=3, help="Seconds of normal load before and after.")] = 12.0,
    load: LoadOption = 0.5,
    members: MembersOption = 1,
    steps: StepsOption = None,
    deadline_ms: Annotated[int, typer.Option(min=5, max=600_000, help="Deadline in ms: the objective.")] = 1000,
    on_deadline: Annotated[OnDeadline, typer.Option(help="What the server does at a deadline.")] = "fail",
    seed: SeedOption = 0,
    url: UrlOption = None,
    bundle: BundleOption = None,
    max_lag_ms: LagOption = LAG_MS,
    out: ReportOption = None,
    html: HtmlOption = None,
    markdown: MarkdownOption = None,
    json: JsonFlag = False,
) -> None:
    """Offer several times the capacity for a while, then normal load again."""
    with needs_client():
        from foreframe_server.cli.bench_http import Target, run_checked
        from foreframe_server.load.overload import OverloadPlan, measure_overload
        from foreframe_server.load.traces import Ask

    ask = Ask(members=members, steps=steps, deadline_ms=deadline_ms, on_deadline=on_deadline)
    plan = OverloadPlan(ask, factor, seconds, load, normal_seconds, seed=seed)
    target = Target(url, bundle, max_lag_ms, seed)
    findings = run_checked(target, plan.ask, lambda bench: measure_overload(bench, plan))
    _publish(target, findings, plan, Outputs(out, html, markdown, json))


@http.command("mix")
def bench_mix(
    *,
    members: MembersOption = 2,
    bulk_members: Annotated[int, typer.Option(min=1, max=32, help="Members of a planner's bulk job.")] = 32,
    steps: StepsOption = None,
    load: Annotated[float, typer.Option(min=0.01, max=0.99, help="Share of capacity for controllers.")] = 0.3,
    bulk_load: Annotated[float, typer.Option(min=0.01, max=0.99, help="Share of capacity for planners.")] = 0.5,
    seconds: SecondsOption = 40.0,
    rounds: RoundsOption = 1,
    seed: SeedOption = 0,
    url: UrlOption = None,
    bundle: BundleOption = None,
    max_lag_ms: LagOption = LAG_MS,
    out: ReportOption = None,
    html: HtmlOption = None,
    markdown: MarkdownOption = None,
    json: JsonFlag = False,
) -> None:
    """Mix small questions with bulk jobs, and compare with running one job to its end at a time."""
    with needs_client():
        from foreframe_server.cli.bench_http import Target, run_checked
        from foreframe_server.load.mixing import MixPlan, measure_mix
        from foreframe_server.load.traces import Ask

    controller, planner = Ask(members=members, steps=steps), Ask(members=bulk_members, steps=steps, priority="bulk")
    plan = MixPlan(controller, planner, load, bulk_load, seconds, seed=seed)
    target = Target(url, bundle, max_lag_ms, seed)
    findings = run_checked(target, controller, lambda bench: measure_mix(bench, plan), rounds)
    _publish(target, findings, plan, Outputs(out, html, markdown, json))


@http.command("cache")
def bench_cache(
    *,
    members: MembersOption = 20,
    known: Annotated[int, typer.Option(min=1, max=32, help="Members that were asked for before.")] = 12,
    steps: StepsOption = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often a top-up is timed.")] = 3,
    hits: Annotated[int, typer.Option(min=1, help="How many exact hits are timed.")] = 100,
    identical: Annotated[int, typer.Option(min=2, help="How many equal questions are asked at once.")] = 200,
    url: UrlOption = None,
    bundle: BundleOption = None,
    out: ReportOption = None,
    html: HtmlOption = None,
    markdown: MarkdownOption = None,
    json: JsonFlag = False,
) -> None:
    """Ask for what is known, partly known, or being computed; without --url also of two servers with one Redis."""
    with needs_client():
        from foreframe_server.cli.bench_http import Target, run_cache
        from foreframe_server.load.caching import CachePlan
        from foreframe_server.load.traces import Ask

    if known >= members:
        raise typer.BadParameter("is less than --members", param_hint="--known")
    plan = CachePlan(Ask(members=members, steps=steps), known, repeats, hits, identical)
    target = Target(url, bundle, LAG_MS)
    _publish(target, run_cache(target, plan), plan, Outputs(out, html, markdown, json))


@http.command("redis-fault")
def bench_redis_fault(
    *,
    seconds: Annotated[float, typer.Option(min=2, help="Seconds of load before, and after, the fault.")] = 10.0,
    load: LoadOption = 0.4,
    members: MembersOption = 1,
    steps: StepsOption = None,
    strategy: StrategyOption = "posterior_mean",
    bundle: BundleOption = None,
    max_lag_ms: LagOption = LAG_MS,
    out: ReportOption = None,
    html: HtmlOption = None,
    markdown: MarkdownOption = None,
    json: JsonFlag = False,
) -> None:
    """Kill, and in another run stop, a Redis of its own while a server that uses it is under load."""
    with needs_client():
        from foreframe_server.cli.bench_http import Target, run_redis_fault
        from foreframe_server.load.redis_faults import FaultPlan
        from foreframe_server.load.traces import Ask

    plan = FaultPlan(Ask(members=members, steps=steps, strategy=strategy), load, seconds, seconds)
    target = Target(None, bundle, max_lag_ms)
    _publish(target, run_redis_fault(target, plan), plan, Outputs(out, html, markdown, json))


@http.command("poisson")
def bench_poisson(
    *,
    load: LoadOption = 0.7,
    members: MembersOption = 2,
    steps: StepsOption = None,
    strategy: StrategyOption = "sample",
    slo_ms: SloOption = None,
    seconds: SecondsOption = 60.0,
    rounds: RoundsOption = 1,
    seed: SeedOption = 0,
    url: UrlOption = None,
    bundle: BundleOption = None,
    max_lag_ms: LagOption = LAG_MS,
    out: ReportOption = None,
    html: HtmlOption = None,
    markdown: MarkdownOption = None,
    json: JsonFlag = False,
) -> None:
    """Ask at random times and compare the tail with the best that a queue can do at this load (M/D/1)."""
    with needs_client():
        from foreframe_server.cli.bench_http import Target, run_checked
        from foreframe_server.load.steady import PoissonPlan, measure_poisson
        from foreframe_server.load.traces import Ask

    plan = PoissonPlan(Ask(members=members, steps=steps, strategy=strategy), load, seconds, slo_ms, seed=seed)
    target = Target(url, bundle, max_lag_ms, seed)
    findings = run_checked(target, plan.ask, lambda bench: measure_poisson(bench, plan), rounds)
    _publish(target, findings, plan, Outputs(out, html, markdown, json))


@http.command("throughput")
def bench_throughput(
    *,
    members: MembersOption = 8,
    steps: StepsOption = None,
    askers: Annotated[int, typer.Option(min=1, help="Questions in flight at any time.")] = 3,
    seconds: SecondsOption = 8.0,
    turns: Annotated[int, typer.Option(min=1, help="Turns of the server, and of the engine.")] = 2,
    bundle: BundleOption = None,
    out: ReportOption = None,
    html: HtmlOption = None,
    markdown: MarkdownOption = None,
    json: JsonFlag = False,
) -> None:
    """Keep a server busy and compare it with the same engine in a plain loop in this process."""
    with needs_client():
        from foreframe_server.cli.bench_http import Target, run_throughput
        from foreframe_server.load.throughput import ThroughputPlan
        from foreframe_server.load.traces import Ask

    plan = ThroughputPlan(Ask(members=members, steps=steps), askers, seconds, turns)
    target = Target(None, bundle, LAG_MS)
    _publish(target, run_throughput(target, plan), plan, Outputs(out, html, markdown, json))


@http.command("constant")
def bench_constant(
    *,
    rate: Annotated[float, typer.Option(min=0.01, help="Questions a second.")],
    members: MembersOption = 2,
    steps: StepsOption = None,
    strategy: StrategyOption = "sample",
    deadline_ms: DeadlineOption = None,
    on_deadline: Annotated[OnDeadline, typer.Option(help="What the server does at a deadline.")] = "degrade",
    slo_ms: SloOption = None,
    seconds: SecondsOption = 30.0,
    url: UrlOption = None,
    bundle: BundleOption = None,
    max_lag_ms: LagOption = LAG_MS,
    out: ReportOption = None,
    html: HtmlOption = None,
    markdown: MarkdownOption = None,
    json: JsonFlag = False,
) -> None:
    """Ask at an even rate."""
    with needs_client():
        from foreframe_server.cli.bench_http import Target, run_checked
        from foreframe_server.load.steady import ConstantPlan, measure_constant
        from foreframe_server.load.traces import Ask

    ask = Ask(members, steps, strategy, deadline_ms, on_deadline)
    plan = ConstantPlan(ask, rate, seconds, slo_ms or deadline_ms)
    target = Target(url, bundle, max_lag_ms)
    findings = run_checked(target, plan.ask, lambda bench: measure_constant(bench, plan))
    _publish(target, findings, plan, Outputs(out, html, markdown, json))


def _publish(target: "Target", findings: "Findings", plan: "DataclassInstance", outputs: Outputs) -> None:
    from foreframe_server.cli.bench_http import publish

    publish(target, findings, plan, outputs)
