"""`foreframe capacity` and its options. Imports typer alone, as `commands` does."""

from pathlib import Path
from typing import Annotated

import typer

from foreframe_server.cli.faults import needs_client
from foreframe_server.cli.options import BundleOption, JsonFlag, SeedOption


def capacity(
    costs: Annotated[Path, typer.Argument(help="Report of `bench http foresight`, or a file of costs.")],
    *,
    robots: Annotated[list[int] | None, typer.Option(min=1, help="Robots; may be given often.")] = None,
    rate: Annotated[list[float] | None, typer.Option(min=0.01, help="Questions a second of each.")] = None,
    deadline_ms: Annotated[
        int | None, typer.Option(min=5, max=600_000, help="Deadline in ms.", show_default="one period")
    ] = None,
    members: Annotated[int, typer.Option(min=1, max=32, help="Members asked for.")] = 4,
    min_members: Annotated[float, typer.Option(min=0, help="Mean members that count as served.")] = 1.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Solver steps.", show_default="the model's")] = None,
    speedup: Annotated[float, typer.Option(min=0.001, help="How much faster the device is than measured.")] = 1.0,
    seconds: Annotated[float, typer.Option(min=1, help="Simulated seconds.")] = 20.0,
    seed: SeedOption = 0,
    bundle: BundleOption = None,
    out: Annotated[Path | None, typer.Option(help="File (.json) to write, and a chart.", show_default=False)] = None,
    json: JsonFlag = False,
) -> None:
    """Say how many devices fleets need, by the scheduler itself on a simulated clock and measured costs."""
    with needs_client():
        from foreframe_server.cli.capacity import Fleets, run_capacity
        from foreframe_server.cli.experiments import check_out
        from foreframe_server.load.traces import Ask

    check_out(out)
    ask = Ask(members=members, steps=steps, deadline_ms=deadline_ms)
    counts, rates = tuple(robots or (1, 10, 100, 1000)), tuple(rate or (2.0,))
    fleets = Fleets(counts, rates, ask, min_members, speedup, seconds, seed)
    run_capacity(costs, bundle, fleets, out, is_json=json)
