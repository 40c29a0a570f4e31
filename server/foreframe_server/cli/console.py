"""What goes where: results to standard output, progress to standard error."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

_T = TypeVar("_T")


def format_json(record: object) -> str:
    """Write one JSON object. Raises ValueError for numbers that are not finite."""
    return json.dumps(record, indent=2, allow_nan=False)


def print_json(record: object) -> None:
    """Print one JSON object on standard output."""
    typer.echo(format_json(record))


def print_pretty(content: RenderableType) -> None:
    """Print a table or a line on standard output."""
    Console(highlight=False).print(content)


def print_note(line: str) -> None:
    """Print a line about the work on standard error."""
    typer.echo(line, err=True)


def table_of(rows: Mapping[str, object], title: str) -> Table:
    """Lay named values out for a person; what is None is left out."""
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in rows.items():
        if value is not None:
            table.add_row(name.replace("_", " "), str(value))
    return table


def open_progress(*, is_shown: bool = True) -> Progress:
    """Open a progress bar on standard error, to be used as a context."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=Console(stderr=True),
        disable=not is_shown,
    )


def track(items: Iterable[_T], description: str, total: int) -> Iterator[_T]:
    """Pass items on and show how many have been done."""
    with open_progress() as progress:
        task = progress.add_task(description, total=total, note="")
        for item in items:
            yield item
            progress.advance(task)
