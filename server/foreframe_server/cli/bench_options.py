"""Options of benches: where a report goes, and what many of them ask. Imports typer alone, as `commands` does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

_OUT, _HTML, _MARKDOWN = ".json", ".html", ".md"


def _check_endings(parameter: typer.CallbackParam, path: Path | None) -> Path | None:
    ending = {"out": _OUT, "html": _HTML, "markdown": _MARKDOWN}[str(parameter.name)]
    if path is not None and path.suffix != ending:
        raise typer.BadParameter(f"ends in {ending}")
    return path


ReportOption = Annotated[
    Path | None, typer.Option("--out", help="File (.json) to write.", show_default=False, callback=_check_endings)
]
HtmlOption = Annotated[
    Path | None,
    typer.Option(help="File (.html) to write, with its plots in it.", show_default=False, callback=_check_endings),
]
MarkdownOption = Annotated[
    Path | None, typer.Option(help="File (.md) to write.", show_default=False, callback=_check_endings)
]
RepeatsOption = Annotated[int, typer.Option(min=1, help="How often each side is timed.")]
RoundsOption = Annotated[int, typer.Option(min=1, help="How often each thing is timed.")]
MembersOption = Annotated[int, typer.Option(min=1, max=32, help="Members of an ensemble.")]
StepsOption = Annotated[int | None, typer.Option(min=1, help="Solver steps.", show_default="the model's")]
SloOption = Annotated[float | None, typer.Option(min=1, help="What counts as goodput, ms.", show_default="any answer")]
LagOption = Annotated[float, typer.Option(min=0.1, help="How late, in ms, 99 % of the questions may go out.")]
StrategyOption = Annotated[Literal["sample", "posterior_mean"], typer.Option(help="How to predict.")]
LAG_MS = 10.0
"""How late questions may go out by default."""
PATIENCE_S = 10.0
"""How long a bench waits for a server that is still starting."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """The files to write, and whether standard output gets one JSON object."""

    out: Path | None = None
    html: Path | None = None
    markdown: Path | None = None
    is_json: bool = False
