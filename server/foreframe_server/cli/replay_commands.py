"""`foreframe replay` and its options. Imports typer alone: what the command needs is imported when it runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from foreframe_server.cli.options import CameraOption, JsonFlag, PadFlag, SeedOption


def replay(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="An episode (.npz), a data set, a LeRobot v3 data set, 1X raw shards, an MCAP file, "
            "a folder of frames and states.",
        ),
    ],
    *,
    url: Annotated[
        str, typer.Option("--url", "--to", help="Address of a running server, such as http://127.0.0.1:8000.")
    ],
    episode: Annotated[int | None, typer.Option(min=0, help="Which episode.", show_default="all")] = None,
    camera: CameraOption = None,
    pad: PadFlag = False,
    every: Annotated[int, typer.Option(min=1, help="Frames of the model from one question to the next.")] = 1,
    speed: Annotated[float, typer.Option(min=0.01, max=1000.0, help="2 plays twice as fast as it was recorded.")] = 1.0,
    as_recorded: Annotated[
        bool, typer.Option("--as-recorded", help="Ask what `serve --record` wrote down, at the times it was asked.")
    ] = False,
    strategy: Annotated[Literal["sample", "posterior_mean"], typer.Option(help="How to predict.")] = "posterior_mean",
    ensemble: Annotated[int, typer.Option(min=1, help="How many members to draw.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="Solver steps.", show_default="the model's")] = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the logs.", show_default="beside INPUT, as NAME.replayed.mcap")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Play a recording against a server at the rate it was made; write what it predicted beside what then came.

    A question that is not asked before the next one is due is skipped, as a robot would.
    """
    from foreframe_server.cli.faults import needs_data

    if strategy == "posterior_mean" and ensemble != 1:
        raise typer.BadParameter("the posterior mean is one evaluation; it has no ensemble", param_hint="--ensemble")
    with needs_data():
        from foreframe_server.cli.replay import Draw, Wish, replay_recording
    draw = None if as_recorded else Draw(strategy, ensemble, steps, seed)
    wish = Wish(source, episode, camera, every=every, speed=speed, draw=draw, is_padded=pad)
    replay_recording(wish, url, out, is_json=json)
