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
_COLUMNS = "| what is done | calls | harm | measured (wanted) |\n| --- | --- | --- | --- |"
_TAIL = """
Harm is a call that was answered wrong or twice or not at all, that failed, or, where a scenario says so, that passed
its deadline or is missing in the server's own counters. A measure is the worst of all rounds, counts are their sum.
Times named `added` are above what the same run had before anything was harmed, or above bare timers beside it. The last
lines are planted faults: they hold when the harness finds them.
"""
_HARMS = ("violations", "wrong", "lost", "failed", "expired", "uncounted")
"""What scenarios demand none of."""
WORDS = {
    "violations": "broke a rule",
    "wrong": "wrong",
    "lost": "without an outcome",
    "failed": "failed",
    "expired": "passed their deadline",
    "uncounted": "not in the server's counters",
    "asked": "calls",
    "strikes": "strikes",
    "recovery_s": "s until calls take as long as usual",
    "worker_back_s": "s until as many processes as before",
    "replaced_s": "s until replaced",
    "exit_s": "s until the exit",
    "rss_added_mb": "MB added",
    "rss_mb_per_1000": "MB a thousand calls",
    "shed_p99_ms": "p99 ms of a refusal",
    "refusal_p99_ms": "p99 ms of a refusal",
    "after_ratio": "latency afterwards against before",
    "after_ok": "answered afterwards",
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
    rows = [_row(name, record) for name, record in report["scenarios"].items()]
    return "\n".join([_HEAD + told + _COLUMNS, *rows]) + "\n" + _TAIL


def _row(name: str, record: Mapping) -> str:
    """Write a scenario as one line; what nearly all of them demand is a word, unless it is broken."""
    checks = list(enumerate(record["checks"]))
    harms = [(place, check) for place, check in checks if _is_harm(check)]
    named = [(place, check) for place, check in checks if not _is_harm(check)]
    broken = [_tell(name, place, check) for place, check in harms if not check["is_met"]]
    harm = "; ".join(broken) or ("none" if harms else "")
    asked = record["measures"].get("asked", 0)
    calls = _claim(asked, f"scenarios.{name}.measures.asked") if asked else ""
    return f"| {record['title']} | {calls} | {harm} | {'; '.join(_tell(name, *each) for each in named)} |"


def _is_harm(check: Mapping) -> bool:
    return check["measure"] in _HARMS and check["limit"] == "≤ 0"


def _tell(name: str, place: int, check: Mapping) -> str:
    value = check["value"]
    told = "not measured" if value is None else _claim(value, f"scenarios.{name}.checks.{place}.value")
    missed = "" if check["is_met"] else " **missed**"
    measure = WORDS.get(check["measure"], check["measure"].removeprefix("num_").replace("_", " "))
    return f"{measure} {told} ({check['limit']}){missed}"


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
