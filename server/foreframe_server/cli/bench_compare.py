"""`foreframe bench compare`: two reports read, compared and shown."""

import json
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from foreframe_server.cli.console import print_json, print_note, print_pretty
from foreframe_server.cli.faults import InvalidRun
from foreframe_server.reports.comparison import Compared, Comparison, Incomparable, Verdict, compare_reports
from foreframe_server.reports.samples import UnreadableReport

_COLOURS = {Verdict.BETTER: "green", Verdict.WORSE: "bold red", Verdict.SAME: "default", Verdict.UNKNOWN: "dim"}


def run_compare(before: Path, after: Path, *, tolerance: float, has_any_machine: bool) -> Comparison:
    """Compare two files. Raises InvalidRun when they cannot be compared."""
    first, second = _read(before), _read(after)
    try:
        return compare_reports(first, second, tolerance=tolerance, has_any_machine=has_any_machine)
    except (Incomparable, UnreadableReport) as error:
        raise InvalidRun(f"{before.name} and {after.name} cannot be compared: {error}") from error


def print_comparison(comparison: Comparison, *, is_json: bool) -> None:
    """Print it as JSON or as a table."""
    if not comparison.is_same_weights:
        print_note("the weights differ")
    if is_json:
        print_json(comparison.record())
    else:
        print_pretty(_table(comparison))


def _read(path: Path) -> dict[str, object]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRun(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidRun(f"{path} is no JSON: {error}") from error
    if not isinstance(report, dict):
        raise InvalidRun(f"{path} is no report of a bench")
    return report


def _table(comparison: Comparison) -> Table:
    title = f"{comparison.experiment}: the second over the first"
    table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("measure")
    for name in ("better", "first", "second", "ratio", "95 %", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for each in comparison.measures:
        table.add_row(*_cells(each))
    return table


def _cells(each: Compared) -> list[str]:
    ratio, ends = "-", "-"
    if each.ratio is not None:
        ratio, ends = f"{each.ratio.mean:.3f}", f"{each.ratio.low:.3f} .. {each.ratio.high:.3f}"
    unit = f" {each.unit}" if each.unit else ""
    verdict = f"[{_COLOURS[each.verdict]}]{each.verdict}[/]{'' if each.is_paired else ' (unpaired)'}"
    name = f"{each.name}, {each.statistic}"
    return [name, each.better, f"{each.before:.4g}{unit}", f"{each.after:.4g}{unit}", ratio, ends, verdict]
