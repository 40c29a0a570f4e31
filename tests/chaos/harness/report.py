"""Results as lines for machines, a table for people, and the page that holds the table. Knows no server."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

REPORT = "chaos"
_HEAD = """# Reliability

`make chaos` starts real servers, harms them and everything around them, and writes this page. The engine behind them
is an oracle: an answer is a hash of all that was asked, so whoever asks computes the right bytes, and an answer that
was mixed up anywhere is counted as wrong, not only one that failed. A ledger demands exactly one outcome of every call.
Each scenario is a few lines of data in [the catalogue](../tests/chaos/harness/catalogue.py); `make test` runs a short
form of each. The numbers are those of [the last full run](results/chaos.json), with load average beside it, on a shared
four-core machine: times are limits for such machines and no product figures.
"""
_TAIL = """
`row` numbers the threat in the project's list. A measure is the worst of all rounds, counts are their sum. Times named
`added` are above what the same run had before anything was harmed, or above bare timers beside it. The last lines are
planted faults: they hold when the harness finds them.
"""
WORDS = {
    "violations": "broken rules of the ledger",
    "wrong": "wrong answers",
    "lost": "calls without an outcome",
    "failed": "failures",
    "expired": "passed deadlines",
    "uncounted": "calls that the server's counters tell differently",
    "asked": "calls",
    "strikes": "strikes",
    "recovery_s": "from a strike until calls take as long as usual, s",
    "worker_back_s": "until as many processes as before, s",
    "replaced_s": "until replaced, s",
    "deaths": "deaths of workers",
}


def read_lines(path: Path) -> dict[str, dict]:
    """Return the last record of every scenario in a file of lines."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {record["scenario"]: record for record in records}


def write_page(records: Mapping[str, Mapping], docs: Path) -> None:
    """Write the report and the page that quotes it."""
    report = {"experiment": "make chaos", "scenarios": records, "summary": summarise(records)}
    (docs / "results" / f"{REPORT}.json").write_text(json.dumps(report, indent=1) + "\n")
    (docs / "reliability.md").write_text(make_page(report))


def summarise(records: Mapping[str, Mapping]) -> dict[str, float]:
    """Add up what was asked and what went wrong, planted faults left out."""
    real = [record["measures"] for name, record in records.items() if not name.startswith("control_")]
    sums = {name: sum(measures.get(name, 0) for measures in real) for name in ("asked", "wrong", "ok")}
    held = sum(record["is_met"] for record in records.values())
    seconds = round(sum(record["seconds"] for record in records.values()))
    return {**sums, "scenarios": len(records), "held": held, "seconds": seconds}


def make_page(report: Mapping) -> str:
    """Write the page; every number names its place in the report."""
    claimed = {name: _claim(value, f"summary.{name}") for name, value in report["summary"].items()}
    told = (
        f"\n{claimed['asked']} calls, {claimed['wrong']} of them answered wrong; {claimed['held']} of "
        f"{claimed['scenarios']} scenarios held, in {claimed['seconds']} s.\n\n"
    )
    rows = [line for name, record in report["scenarios"].items() for line in _rows(name, record)]
    table = (
        "| scenario | row | measure | wanted | measured |\n| --- | --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"
    )
    return _HEAD + told + table + _TAIL


def _rows(name: str, record: Mapping) -> list[str]:
    lines = []
    for place, check in enumerate(record["checks"]):
        first = place == 0
        title = record["title"] if first else ""
        numbers = ", ".join(map(str, record["rows"])) if first else ""
        value = (
            "not measured"
            if check["value"] is None
            else _claim(check["value"], f"scenarios.{name}.checks.{place}.value")
        )
        missed = "" if check["is_met"] else " **missed**"
        measure = WORDS.get(check["measure"], check["measure"].replace("_", " "))
        lines.append(f"| {title} | {numbers} | {measure} | {check['limit']} | {value}{missed} |")
    return lines


def _claim(value: float, path: str) -> str:
    decimals = 0 if float(value).is_integer() else 3
    return f"{value:.{decimals}f} <!-- {REPORT}:{path} -->"


def table(records: Sequence[Mapping]) -> str:
    """Write results for a terminal, one line a check."""
    lines = []
    for record in records:
        verdict = "held" if record["is_met"] else "MISSED"
        lines.append(f"{record['scenario']:<18} {verdict:<7} {record['seconds']:>6.1f} s  {record['error']}")
        for check in record["checks"]:
            value = "not measured" if check["value"] is None else f"{check['value']:.3f}".rstrip("0").rstrip(".")
            mark = " " if check["is_met"] else "!"
            lines.append(f"  {mark} {check['measure']:<24} {value:>14}  {check['limit']}")
    return "\n".join(lines)
