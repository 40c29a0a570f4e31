"""`python -m harness [--short] [--only NAME ...] [--docs FOLDER]`: run scenarios, print a line and a table of each."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from harness.catalogue import catalogue
from harness.report import read_lines, table, write_page
from harness.scenario import Scenario, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m harness")
    parser.add_argument("--short", action="store_true", help="the short form, as the tests run it")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these scenarios alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", type=Path, help="file that results are added to, a line each")
    parser.add_argument("--docs", type=Path, help="folder for reliability.md and results/chaos.json, of all lines")
    asked = parser.parse_args()
    scenarios = catalogue(is_full=not asked.short)
    chosen = [scenario for scenario in scenarios if asked.only is None or scenario.name in asked.only]
    with tempfile.TemporaryDirectory() as folder:
        lines = asked.lines or Path(folder) / "lines"
        is_met = [_run(scenario, asked.seed, lines) for scenario in chosen]
        if asked.docs:
            known = read_lines(lines)
            write_page({each.name: known[each.name] for each in scenarios if each.name in known}, asked.docs)
    return 0 if all(is_met) else 1


def _run(scenario: Scenario, seed: int, lines: Path) -> bool:
    record = run(scenario, seed).record()
    with lines.open("a") as file:
        file.write(json.dumps(record) + "\n")
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()
    sys.stderr.write(table([record]) + "\n")
    return bool(record["is_met"])


if __name__ == "__main__":
    sys.exit(main())
