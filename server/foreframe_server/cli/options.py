"""Options that several commands share. Imports typer alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import typer

_T = TypeVar("_T")

MAX_SEED = 2**53 - 1

JsonFlag = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on standard output.")]
BundleOption = Annotated[
    Path | None, typer.Option(help="Folder of a model bundle; without it the built-in model.", show_default=False)
]
UrlOption = Annotated[
    str | None, typer.Option(help="Address of a running server, such as http://127.0.0.1:8000.", show_default=False)
]
ClipsOption = Annotated[
    int | None, typer.Option(min=2, help="How many clips.", show_default="100 of a data set, else all that ship")
]
SeedOption = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of every random choice.")]
DataOption = Annotated[
    Path | None, typer.Option(help="Data set of held-out episodes; without it the bundle's clips.", show_default=False)
]
OutOption = Annotated[
    Path | None, typer.Option(help="File (.json) to write; the chart goes beside it as .png.", show_default=False)
]
EpisodeOption = Annotated[int, typer.Option(min=0, help="Which episode of a data set.")]
CameraOption = Annotated[
    str | None, typer.Option(help="Which camera of a LeRobot data set or an MCAP file.", show_default="its only one")
]
PadFlag = Annotated[bool, typer.Option("--pad", help="Scale and pad frames of another size than the model's.")]
ContextGridsOption = Annotated[int, typer.Option(min=1, help="Grids of ids that are seen.")]
TargetGridsOption = Annotated[int, typer.Option(min=1, help="Grids of ids after them that are scored.")]


def require_option(name: str, value: _T | None) -> _T:
    """Return an option that this command cannot do without. Raises BadParameter when it was not given."""
    if value is None:
        raise typer.BadParameter("is missing", param_hint=name)
    return value


def refuse_options(config: str, options: Mapping[str, object]) -> None:
    """Refuse options that a configuration has no use for. Raises BadParameter for the first that was given."""
    for name, value in options.items():
        if value is not None:
            raise typer.BadParameter(f"means nothing to {config}", param_hint=name)


def refuse_before(subcommand: str, options: Mapping[str, object]) -> None:
    """Refuse options of a subcommand that stand before it. Raises BadParameter for the first that was given."""
    for name, value in options.items():
        if value is not None:
            raise typer.BadParameter(f"belongs after the subcommand {subcommand}", param_hint=name)
