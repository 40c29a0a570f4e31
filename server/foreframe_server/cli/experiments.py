"""What an experiment found, as JSON, as a chart and as lines for a person."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import typer

from foreframe_server.cli.console import format_json, print_json, print_note, print_pretty, table_of
from foreframe_server.cli.faults import needs
from foreframe_server.plots import Chart, plot_curves
from foreframe_server.reports.lines import flat_lines


@dataclass(frozen=True, slots=True)
class Finding:
    """A report as JSON and the chart that shows it."""

    record: Mapping[str, object]
    chart: Chart


def check_out(out: Path | None) -> None:
    """Refuse before the work what could not be written after it. Raises Fault without matplotlib."""
    if out is not None:
        check_json_name(out)
        with _needs_matplotlib():
            import matplotlib as mpl  # noqa: F401


def publish(finding: Finding, out: Path | None, *, is_json: bool) -> None:
    """Print what was found, and with `out` write it and its chart. Raises Fault without matplotlib."""
    if out is not None:
        check_json_name(out)
        picture = out.with_suffix(".png")
        with _needs_matplotlib():
            plot_curves(finding.chart, picture)
        print_note(f"wrote {picture}")
    print_record(finding.record, out, is_json=is_json)


def _needs_matplotlib() -> AbstractContextManager[None]:
    return needs("pip install 'foreframe[models]'")


def print_record(record: Mapping[str, object], out: Path | None, *, is_json: bool) -> None:
    """Print a record as JSON or as a table, and with `out` write it."""
    if out is not None:
        check_json_name(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(format_json(record) + "\n", encoding="utf-8")
        print_note(f"wrote {out}")
    if is_json:
        print_json(record)
    else:
        print_pretty(table_of(dict(flat_lines(record)), str(record.get("experiment", ""))))


def check_json_name(out: Path) -> None:
    """Refuse another ending than .json, which the chart's name is made of."""
    if out.suffix != ".json":
        raise typer.BadParameter("ends in .json", param_hint="--out")
