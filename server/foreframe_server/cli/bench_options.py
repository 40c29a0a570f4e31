"""Options of every bench: where its report goes. Imports typer alone, as `commands` does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

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


@dataclass(frozen=True, slots=True)
class Outputs:
    """The files to write, and whether standard output gets one JSON object."""

    out: Path | None = None
    html: Path | None = None
    markdown: Path | None = None
    is_json: bool = False
