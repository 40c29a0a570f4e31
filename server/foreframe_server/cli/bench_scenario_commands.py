"""`foreframe bench http single-stream`, `server` and `offline`. Imports typer alone, as `commands` does."""

from typing import Annotated

import typer

from foreframe_server.cli.bench_options import (
    LAG_MS,
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
from foreframe_server.cli.faults import needs_client
from foreframe_server.cli.options import BundleOption, JsonFlag, SeedOption, UrlOption

DistinctOption = Annotated[
    int | None, typer.Option(min=1, help="How many different questions there are.", show_default="all are")
]
ExamOption = Annotated[int, typer.Option(min=1, help="Clips whose answers are compared with the reference's.")]
ParityOption = Annotated[float, typer.Option(min=1, help="PSNR against the reference below which an answer is wrong.")]


def bench_single_stream(
    *,
    questions: Annotated[int, typer.Option(min=8, help="Questions of each side of the audit.")] = 64,
    members: MembersOption = 8,
    steps: StepsOption = None,
    strategy: StrategyOption = "sample",
    distinct: DistinctOption = None,
    exam: ExamOption = 8,
    min_parity_db: ParityOption = 40.0,
    seed: SeedOption = 0,
    url: UrlOption = None,
    bundle: BundleOption = None,
    out: ReportOption = None,
    html: HtmlOption = None,
    markdown: MarkdownOption = None,
    json: JsonFlag = False,
) -> None:
    """Ask one question after another, as one robot would: the tail, answers checked, and a caching audit."""
    with needs_client():
        from foreframe_server.cli.bench_http import Target, publish
        from foreframe_server.cli.bench_scenarios import run_scenario
        from foreframe_server.load.scenarios import ExamPlan, ScenarioPlan
        from foreframe_server.load.traces import Ask

    ask = Ask(members=members, steps=steps, strategy=strategy)
    plan = ScenarioPlan("single-stream", ask, questions, ExamPlan(exam, min_parity_db), distinct=distinct, seed=seed)
    target = Target(url, bundle, LAG_MS, seed)
    publish(target, run_scenario(target, plan), plan, Outputs(out, html, markdown, json))


def bench_server(
    *,
    rate: Annotated[
        float | None, typer.Option(min=0.01, help="Questions a second.", show_default="half of what it can do")
    ] = None,
    questions: Annotated[int, typer.Option(min=8, help="Questions of each side of the audit.")] = 128,
    slo_ms: SloOption = None,
    members: MembersOption = 8,
    steps: StepsOption = None,
    strategy: StrategyOption = "sample",
    distinct: DistinctOption = None,
    exam: ExamOption = 8,
    min_parity_db: ParityOption = 40.0,
    seed: SeedOption = 0,
    url: UrlOption = None,
    bundle: BundleOption = None,
    max_lag_ms: LagOption = LAG_MS,
    out: ReportOption = None,
    html: HtmlOption = None,
    markdown: MarkdownOption = None,
    json: JsonFlag = False,
) -> None:
    """Ask at random times (Poisson): p99 against --slo-ms, answers checked, and a caching audit."""
    with needs_client():
        from foreframe_server.cli.bench_http import Target, publish
        from foreframe_server.cli.bench_scenarios import run_scenario
        from foreframe_server.load.scenarios import ExamPlan, ScenarioPlan
        from foreframe_server.load.traces import Ask

    ask = Ask(members=members, steps=steps, strategy=strategy)
    grading = ExamPlan(exam, min_parity_db)
    plan = ScenarioPlan("server", ask, questions, grading, distinct, rate_hz=rate, slo_ms=slo_ms, seed=seed)
    target = Target(url, bundle, max_lag_ms, seed)
    publish(target, run_scenario(target, plan), plan, Outputs(out, html, markdown, json))


def bench_offline(
    *,
    questions: Annotated[int, typer.Option(min=8, help="Questions of each side of the audit.")] = 128,
    in_flight: Annotated[int, typer.Option(min=1, help="Questions at the server at any time.")] = 16,
    members: MembersOption = 8,
    steps: StepsOption = None,
    strategy: StrategyOption = "sample",
    distinct: DistinctOption = None,
    exam: ExamOption = 8,
    min_parity_db: ParityOption = 40.0,
    seed: SeedOption = 0,
    url: UrlOption = None,
    bundle: BundleOption = None,
    out: ReportOption = None,
    html: HtmlOption = None,
    markdown: MarkdownOption = None,
    json: JsonFlag = False,
) -> None:
    """Give all questions at once, as bulk work: answers a second, answers checked, and a caching audit."""
    with needs_client():
        from foreframe_server.cli.bench_http import Target, publish
        from foreframe_server.cli.bench_scenarios import run_scenario
        from foreframe_server.load.scenarios import ExamPlan, ScenarioPlan
        from foreframe_server.load.traces import Ask

    ask = Ask(members=members, steps=steps, strategy=strategy, priority="bulk")
    grading = ExamPlan(exam, min_parity_db)
    plan = ScenarioPlan("offline", ask, questions, grading, distinct, max_in_flight=in_flight, seed=seed)
    target = Target(url, bundle, LAG_MS, seed)
    publish(target, run_scenario(target, plan), plan, Outputs(out, html, markdown, json))
