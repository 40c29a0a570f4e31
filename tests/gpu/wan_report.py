"""The report of the full-size measurement for a person: what was reached, then every stage's numbers."""

from collections.abc import Iterator, Mapping

_BARS = (("fraction of the floor", 0.75), ("times diffusers eager", 1.4))
_MAX_DIFFERENCE = 1e-4
_DIFFERENCE = "diffusers against ours, single precision, largest difference"


def to_markdown(report: Mapping[str, object]) -> str:
    """Write a report as Markdown."""
    stages = _mapping(report["stages"])
    facts = ", ".join(f"{name} {value}" for name, value in report.items() if name != "stages" and value is not None)
    parts = ["# The 5B's sizes with random weights", facts, "## What was to be reached", *_table(say_bars(stages))]
    for name, stage in stages.items():
        record = _mapping(stage)
        parts += [f"## {name}", f"{record['status']}; {record['seconds']} s", *_table(_flatten(record.get("found")))]
    return "\n\n".join(_joined(parts)) + "\n"


def say_bars(stages: Mapping[str, object]) -> dict[str, object]:
    """Hold what was measured against what is to be reached; None where it was not measured."""
    difference = _found(stages, "parity").get(_DIFFERENCE)
    bars: dict[str, object] = {f"forward as diffusers', largest difference at most {_MAX_DIFFERENCE:g}": difference}
    for size, ways in _found(stages, "step").items():
        ours = {name: row for name, row in _mapping(ways).items() if "diffusers" not in name and _mapping(row)}
        for what, least in _BARS:
            values = {name: _mapping(row).get(what) for name, row in ours.items()}
            known = {name: value for name, value in values.items() if isinstance(value, int | float)}
            best = max(known, key=lambda name: known[name], default="not measured")
            bars[f"{size}: {what}, at least {least}"] = f"{known.get(best, '')} {best}".strip()
    return bars


def _found(stages: Mapping[str, object], stage: str) -> Mapping[str, object]:
    return _mapping(_mapping(stages.get(stage)).get("found"))


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _flatten(value: object, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, inner in _mapping(value).items():
        path = f"{prefix}, {name}" if prefix else name
        flat |= _flatten(inner, path) if isinstance(inner, Mapping) else {path: inner}
    return flat


def _table(rows: Mapping[str, object]) -> Iterator[str]:
    if rows:
        yield "\n".join(["| what | found |", "| --- | --- |", *(f"| {name} | {_say(rows[name])} |" for name in rows)])


def _say(value: object) -> str:
    if value is None:
        return "not measured"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _joined(parts: list[str]) -> Iterator[str]:
    return (part for part in parts if part)
