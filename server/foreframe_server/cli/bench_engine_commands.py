"""`foreframe bench engine` and `bench roofline`, and their options. Imports typer alone, as `commands` does."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from foreframe_server.cli.options import BundleOption, JsonFlag

OutOption = Annotated[Path | None, typer.Option(help="File (.json) to write.", show_default=False)]
RoundsOption = Annotated[int, typer.Option(min=1, help="How often each thing is timed.")]


def bench_engine(
    *,
    backend: Annotated[
        str | None, typer.Option(help="Names with commas between them.", show_default="the usual ones that are here")
    ] = None,
    members: Annotated[int, typer.Option(min=1, max=256, help="Members of the large step.")] = 8,
    rounds: RoundsOption = 5,
    bundle: BundleOption = None,
    out: OutOption = None,
    json: JsonFlag = False,
) -> None:
    """Time every stage of a prediction on each backend, in turns, with how far their answers are apart."""
    from foreframe_server.cli.bench_engine import EngineAsk, read_backends, run_engine
    from foreframe_server.cli.experiments import check_json_name, print_record
    from foreframe_server.cli.overrides import read_private

    if out is not None:
        check_json_name(out)
    ask = EngineAsk(read_backends(backend), members, rounds)
    print_record(run_engine(read_private(bundle), ask), out, is_json=json)


def bench_roofline(
    *,
    device: Annotated[str, typer.Option(help="A device as torch names it, such as cuda:0.")] = "cpu",
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="What the products are computed in.")] = "fp32",
    rounds: RoundsOption = 5,
    bundle: BundleOption = None,
    out: OutOption = None,
    json: JsonFlag = False,
) -> None:
    """Measure the fastest products, attention, convolutions and copies here, and how near a step on torch comes."""
    from foreframe_server.cli.bench_roofline import RooflineAsk, run_roofline
    from foreframe_server.cli.experiments import check_json_name, print_record
    from foreframe_server.cli.overrides import read_private

    if out is not None:
        check_json_name(out)
    print_record(run_roofline(read_private(bundle), RooflineAsk(device, precision, rounds)), out, is_json=json)
