"""A record's numbers as named lines for a person; lists that are long, or of objects, stay in the JSON."""

from collections.abc import Iterator, Mapping, Sequence

_SHOWN_LIST = 8
APART = frozenset({"experiment", "header", "is_valid", "plan", "samples", "bars", "faults"})


def findings_lines(document: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Write what a report found, without what is laid out apart."""
    return flat_lines({key: value for key, value in document.items() if key not in APART})


def flat_lines(record: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Flatten a record: intervals in one line each; what is None is left out."""
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            interval = _interval(value)
            yield from [(name, interval)] if interval else flat_lines(value, f"{name}.")
        elif isinstance(value, list | tuple):
            yield name, _listed(value)
        elif value is not None and key != "experiment":
            yield name, f"{value:.6g}" if isinstance(value, float) else str(value)


def _interval(value: object) -> str | None:
    if isinstance(value, Mapping) and set(value) == {"mean", "low", "high"}:
        return f"{value['mean']:.4g}  ({value['low']:.4g} .. {value['high']:.4g})"
    return None


def _listed(values: Sequence[object]) -> str:
    if len(values) > _SHOWN_LIST or any(isinstance(value, Mapping) and not _interval(value) for value in values):
        return f"{len(values)} entries, in the JSON"
    return ", ".join(f"{value['mean']:.4g}" if isinstance(value, Mapping) else str(value) for value in values)
