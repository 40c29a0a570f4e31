"""`foreframe bench engine` and `bench roofline`, and their options. Imports typer alone, as `commands` does."""

from typing import Annotated, Literal

import typer

from foreframe_server.cli.bench_options import HtmlOption, MarkdownOption, Outputs, ReportOption, RoundsOption
from foreframe_server.cli.options import BundleOption, JsonFlag


def bench_engine(
    *,
    backend: Annotated[
        str | None, typer.Option(help="Names with commas between them.", show_default="the usual ones that are here")
    ] = None,
    members: Annotated[
        int | None, typer.Option(min=1, max=256, help="Members of the large step.", show_default="the largest batch")
    ] = None,
    rounds: RoundsOption = 5,
    bundle: BundleOption = None,
    out: ReportOption = None,
    html: HtmlOption = None,
    markdown: MarkdownOption = None,
    json: JsonFlag = False,
) -> None:
    """Time every stage of a prediction on each backend, in turns, with how far their answers are apart."""
    from foreframe_server.cli.bench_engine import EngineAsk, read_backends, run_engine
    from foreframe_server.cli.bench_reports import Measured, bundle_weights, publish_report
    from foreframe_server.cli.overrides import read_private

    settings = read_private(bundle)
    report = run_engine(settings, EngineAsk(read_backends(backend), members, rounds))
    publish_report(report, Outputs(out, html, markdown, json), Measured(bundle_weights(settings)))


def bench_roofline(
    *,
    device: Annotated[str, typer.Option(help="A device as torch names it, such as cuda:0.")] = "cpu",
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="What the products are computed in.")] = "fp32",
    rounds: RoundsOption = 5,
    bundle: BundleOption = None,
    out: ReportOption = None,
    html: HtmlOption = None,
    markdown: MarkdownOption = None,
    json: JsonFlag = False,
) -> None:
    """Measure the fastest products, attention, convolutions and copies here, and how near each stage on torch comes."""
    from foreframe_server.cli.bench_reports import Measured, bundle_weights, publish_report
    from foreframe_server.cli.bench_roofline import RooflineAsk, run_roofline
    from foreframe_server.cli.overrides import read_private

    settings = read_private(bundle)
    report = run_roofline(settings, RooflineAsk(device, precision, rounds))
    publish_report(report, Outputs(out, html, markdown, json), Measured(bundle_weights(settings)))
