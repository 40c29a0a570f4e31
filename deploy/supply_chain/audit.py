"""Look up what is locked among known vulnerabilities, and let only dated exceptions pass.

Exit 0: everything was looked up and nothing is open. 1: a finding, or an exception whose time is over. 3: nothing could
be looked up, which is not the same as nothing being found.
"""

import argparse
import datetime as dt
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

EXCEPTIONS = Path(__file__).with_name("exceptions.toml")
_UNREACHABLE = 3


class AuditFailed(Exception):
    """pip-audit gave no report; the message is one line for a person."""


@dataclass(frozen=True, slots=True)
class AcceptedRisk:
    """One advisory that is accepted until a day."""

    id: str
    why: str
    until: dt.date


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an audit found: lines for a person, and what the process exits with."""

    lines: tuple[str, ...]
    code: int


def read_exceptions(path: Path = EXCEPTIONS) -> tuple[AcceptedRisk, ...]:
    """Read the accepted advisories. Raises ValueError for one that does not say why or until when."""
    entries = tomllib.loads(path.read_text(encoding="utf-8")).get("exception", [])
    return tuple(_read_exception(entry) for entry in entries)


def _read_exception(entry: Mapping[str, object]) -> AcceptedRisk:
    name, why, until = entry.get("id"), entry.get("why"), entry.get("until")
    if not (isinstance(name, str) and name and isinstance(why, str) and why.strip()):
        raise ValueError("an exception has an id and says why")
    if type(until) is not dt.date:
        raise ValueError(f"the exception {name} has no day, such as until = 2027-01-31")
    return AcceptedRisk(name, why, until)


def judge(report: Mapping[str, object], accepted: Sequence[AcceptedRisk], today: dt.date) -> Verdict:
    """Judge a report of pip-audit in its JSON form."""
    parts = report["dependencies"]
    if not isinstance(parts, list):
        raise AuditFailed("pip-audit's report has no dependencies")
    skipped = [f"{part['name']}: {part['skip_reason']}" for part in parts if "skip_reason" in part]
    lines = [f"accepted until {risk.until} no longer: {risk.id}" for risk in accepted if risk.until <= today]
    current = {risk.id for risk in accepted if risk.until > today}
    lines += [line for part in parts for line in _findings(part, current)]
    if lines:
        return Verdict((*lines, *skipped), 1)
    if skipped or not parts:
        return Verdict((*skipped, f"{len(parts) - len(skipped)} of {len(parts)} were looked up"), _UNREACHABLE)
    return Verdict((f"{len(parts)} looked up, nothing open",), 0)


def _findings(part: Mapping[str, object], accepted: set[str]) -> Iterator[str]:
    vulnerabilities = part.get("vulns", [])
    for found in vulnerabilities if isinstance(vulnerabilities, list) else []:
        if not accepted & {found["id"], *found.get("aliases", [])}:
            fixed = ", ".join(found.get("fix_versions", [])) or "no version yet"
            yield f"{part['name']} {part['version']}: {found['id']}, fixed in {fixed}"


def run_pip_audit(lock: Path) -> Mapping[str, object]:
    """Let pip-audit look up a lock, without installing anything of it. Raises AuditFailed."""
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--progress-spinner", "off"]
    done = subprocess.run(  # noqa: S603 - the arguments are ours
        [*command, "--format", "json", "--requirement", str(lock)], capture_output=True, text=True, check=False
    )
    try:
        report: Mapping[str, object] = json.loads(done.stdout)
    except json.JSONDecodeError:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise AuditFailed(f"pip-audit: {last}") from None
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit every lock that is named; the worst verdict counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("locks", nargs="+", type=Path)
    accepted, today = read_exceptions(), dt.datetime.now(tz=dt.UTC).date()
    codes = set()
    for lock in parser.parse_args(arguments).locks:
        try:
            verdict = judge(run_pip_audit(lock), accepted, today)
        except AuditFailed as error:
            verdict = Verdict((str(error),), _UNREACHABLE)
        sys.stdout.write("".join(f"{lock.name}: {line}\n" for line in verdict.lines))
        codes.add(verdict.code)
    return 1 if 1 in codes else max(codes)


if __name__ == "__main__":
    sys.exit(main())
