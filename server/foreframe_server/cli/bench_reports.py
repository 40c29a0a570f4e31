"""Every bench's report gets its header here, and goes where it was asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from foreframe_engines import Bundle
from foreframe_server.cli.bench_options import Outputs
from foreframe_server.cli.console import format_json, print_json, print_note, print_pretty
from foreframe_server.cli.facts import bundle_path
from foreframe_server.cli.faults import InvalidRun
from foreframe_server.reports.header import Header, Weights
from foreframe_server.reports.markdown import write_markdown
from foreframe_server.reports.page import write_page
from foreframe_server.reports.report import Report
from foreframe_server.reports.samples import read_samples
from foreframe_server.reports.sections import lay_out
from foreframe_server.settings import Settings


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured: a model, and the address and version of its server where that was not started for the run."""

    weights: Weights | None
    server: str | None = None
    server_version: str | None = None


def bundle_weights(settings: Settings) -> Weights:
    """Name the weights of the settings' bundle. Raises BundleError."""
    bundle = Bundle.open(bundle_path(settings))
    return Weights(bundle.contract.model, bundle.contract.revision, bundle.digest)


def publish_report(
    report: Report, outputs: Outputs, measured: Measured, show: Callable[[], None] | None = None
) -> None:
    """Write a report's files and print it, by `show` for a person. Raises InvalidRun, after that, for one with faults.

    What has faults shows no number anywhere.
    """
    header = Header.now(measured.weights, report.seeds, measured.server, measured.server_version)
    document = report.document(header)
    _write_files(document, report, outputs)
    if outputs.is_json:
        print_json(document)
    if not report.is_valid:
        raise InvalidRun(f"this run says nothing: {'; '.join(report.faults)}")
    if not outputs.is_json:
        (show or (lambda: _show(document)))()


def _write_files(document: Mapping[str, object], report: Report, outputs: Outputs) -> None:
    written: tuple[tuple[Path | None, Callable[[], str]], ...] = (
        (outputs.out, lambda: format_json(document) + "\n"),
        (outputs.html, lambda: write_page(document, report.charts)),
        (outputs.markdown, lambda: write_markdown(document)),
    )
    for path, write in written:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(write(), encoding="utf-8")
            print_note(f"wrote {path}")


def _show(document: Mapping[str, object]) -> None:
    """Print what was found; what was asked, and on what, is in the files."""
    findings = {key: value for key, value in document.items() if key not in {"plan", "header"}}
    for section in lay_out(findings):
        table = Table(title=section.title, title_justify="left", header_style="bold", box=SIMPLE_HEAD)
        for name in section.head:
            table.add_column(name)
        for cells in section.rows:
            table.add_row(*cells)
        print_pretty(table)


def publish_record(
    record: Mapping[str, object], plan: Mapping[str, object], outputs: Outputs, settings: Settings | None
) -> None:
    """Publish what a bench in this process found, of the settings' model, None for weights drawn at random."""
    report = Report(str(record["experiment"]), plan, record, read_samples(record))
    publish_report(report, outputs, Measured(None if settings is None else bundle_weights(settings)))
