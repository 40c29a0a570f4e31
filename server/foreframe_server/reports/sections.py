"""A report's document laid out as titled tables: what the Markdown and the HTML both write."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from foreframe_server.reports.lines import APART, findings_lines, flat_lines


@dataclass(frozen=True, slots=True)
class Section:
    """A titled table. is_long: better folded away until it is asked for."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    is_long: bool = False


def lay_out(document: Mapping[str, object]) -> Iterator[Section]:
    """Put bars first, then what was found, what was asked, and where it was measured."""
    faults = document.get("faults")
    if isinstance(faults, list):
        yield Section("Why this run says nothing", ("fault",), [(str(fault),) for fault in faults])
    bars = document.get("bars")
    if isinstance(bars, list) and bars:
        yield Section("Bars", ("measure", "value", "to reach", ""), [_bar_row(bar) for bar in bars])
    tables = dict(_tables(document))
    yield from tables.values()
    found = [*findings_lines({key: value for key, value in document.items() if key not in tables})]
    if found:
        yield Section("Findings", ("measure", "value"), found, is_long=True)
    for title in ("plan", "header"):
        part = document.get(title)
        if isinstance(part, Mapping):
            lines = [*flat_lines(part), *_gpu_lines(part)]
            yield Section({"plan": "Asked for", "header": "Measured on"}[title], ("what", "value"), lines)


def _tables(document: Mapping[str, object]) -> Iterator[tuple[str, Section]]:
    """Find what is a table already: a list of flat records, or named ones."""
    for key, value in document.items():
        if key in APART:
            continue
        rows = [*value.values()] if isinstance(value, Mapping) else value
        if isinstance(rows, list) and rows and all(isinstance(row, Mapping) and row for row in rows):
            yield key, _record_table(key, list(value) if isinstance(value, Mapping) else None, rows)


def _record_table(title: str, names: Sequence[str] | None, rows: Sequence[Mapping[str, object]]) -> Section:
    flat = [dict(flat_lines(row)) for row in rows]
    columns = list(dict.fromkeys(column for row in flat for column in row))
    cells = [[row.get(column, "") for column in columns] for row in flat]
    if names is None:
        return Section(title, columns, cells)
    if len(columns) > len(names):  # few things with many measures read better on their side
        return Section(
            title,
            ["", *names],
            [[column, *each] for column, each in zip(columns, zip(*cells, strict=True), strict=True)],
        )
    return Section(title, ["", *columns], [[name, *each] for name, each in zip(names, cells, strict=True)])


def _bar_row(bar: Mapping[str, object]) -> tuple[str, str, str, str]:
    limits = [f"{sign} {bar[name]:g}" for sign, name in (("≤", "at_most"), ("≥", "at_least")) if bar[name] is not None]
    value = bar["value"]
    shown = "none" if value is None else f"{value:.4g}"
    return str(bar["measure"]), shown, ", ".join(limits), "met" if bar["is_met"] else "missed"


def _gpu_lines(header: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    machine = header.get("machine")
    gpus = machine.get("gpus", ()) if isinstance(machine, Mapping) else ()
    for place, gpu in enumerate(gpus):
        yield f"GPU {place}", ", ".join(f"{name} {value}" for name, value in gpu.items())
