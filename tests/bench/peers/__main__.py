"""`python -m peers`: install, start, check, measure and end one server after another, then write one table.

Exit codes: 0 what can run here was measured, 2 something was invalid, or nothing could run, and no number is printed.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from peers.catalogue import ROOT, Peer, catalogue
from peers.comparison import Comparison, make_plan
from peers.errors import Invalid, NotMeasured
from peers.facts import machine_facts, origin
from peers.install import install
from peers.ledger import Ledger
from peers.passes import Pass, list_passes
from peers.report import write_record
from peers.servers import split_cores
from peers.tables import write_markdown


def main(words: Sequence[str] | None = None, peers: Sequence[Peer] | None = None) -> int:
    """Run what is asked for. Returns the exit code."""
    known = catalogue() if peers is None else list(peers)
    asked = _parser([peer.name for peer in known]).parse_args(words)
    chosen = [peer for peer in known if peer.name in asked.only] if asked.only else _default(known)
    missing = _install(chosen)
    if asked.install:
        return _refuse(missing.values()) if missing else 0
    ledger = Ledger(asked.folder, origin())
    comparison = Comparison(ledger, *split_cores(sorted(os.sched_getaffinity(0))), _note)
    try:
        _settle_plan(ledger, comparison, asked)
    except Invalid as error:
        return _refuse([str(error)])
    passes = list_passes([peer for peer in chosen if peer.name not in missing])
    failed = _run(comparison, passes, asked, missing)
    if failed or not ledger.results():
        return _refuse([*failed, *missing.values()])
    _publish(ledger, list_passes(known), comparison, missing, asked)
    return 0


def _parser(names: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m peers", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"these alone: {', '.join(names)}")
    parser.add_argument("--again", action="store_true", help="measure what has a result too")
    parser.add_argument("--fresh", action="store_true", help="forget all results, and plan anew for this machine")
    parser.add_argument("--seconds", type=float, default=20.0, help="of the mixed trace at each load; the rest follows")
    parser.add_argument("--deadline-ms", type=int, default=500, help="of robots' questions")
    parser.add_argument("--max-lag-ms", type=float, default=20.0, help="how late the 99th of 100 questions may be sent")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "peers", help="where results wait for the rest")
    parser.add_argument("--out", type=Path, help="file for the JSON report")
    parser.add_argument("--markdown", type=Path, help="file for the tables; they are printed too")
    parser.add_argument("--install", action="store_true", help="make the environments and stop")
    return parser


def _default(known: Sequence[Peer]) -> list[Peer]:
    return [peer for peer in known if not peer.is_appendix]


def _settle_plan(ledger: Ledger, comparison: Comparison, asked: argparse.Namespace) -> None:
    """Go on by the plan of the results that are there, unless another is asked for."""
    wanted = {"seconds": asked.seconds, "deadline_ms": asked.deadline_ms, "max_lag_ms": asked.max_lag_ms}
    plan = ledger.plan()
    if asked.fresh or plan is None or any(getattr(plan, name) != value for name, value in wanted.items()):
        _note("how long the engine takes here")
        plan = make_plan(comparison.server_cores, wanted)
        ledger.begin(plan)
    comparison.follow(plan)


def _install(chosen: Sequence[Peer]) -> dict[str, str]:
    """Make environments; return why some could not be made, by server."""
    missing = {}
    for peer in chosen:
        try:
            install(peer)
        except NotMeasured as error:
            missing[peer.name] = str(error)
            _note(missing[peer.name])
    return missing


def _run(
    comparison: Comparison, passes: Sequence[Pass], asked: argparse.Namespace, missing: dict[str, str]
) -> list[str]:
    """Measure one server after another; return what was invalid, and add to missing what does not run here."""
    failed = []
    done = {} if asked.again else comparison.ledger.results()
    for each in passes:
        if each.name in done or each.peer.name in missing:
            continue
        comparison.ledger.drop(each.name)
        try:
            comparison.ledger.put(each.name, asyncio.run(comparison.measure(each)))
        except NotMeasured as error:
            missing[each.name] = f"{each.name}: {error}"
            _note(missing[each.name])
        except Invalid as error:
            failed.append(f"{each.name}: {error}")
            _note(failed[-1])
    return failed


def _publish(
    ledger: Ledger, known: Sequence[Pass], comparison: Comparison, missing: Mapping[str, str], asked: argparse.Namespace
) -> None:
    facts = machine_facts(comparison.server_cores, comparison.asker_cores)
    record = write_record(ledger.results(), known, missing, {**facts, "plan": comparison.plan.record()})
    tables = write_markdown(record) + "\n"
    if asked.out:
        asked.out.write_text(json.dumps(record, indent=2) + "\n")
    if asked.markdown:
        asked.markdown.write_text(tables)
    sys.stdout.write(tables)


def _refuse(reasons: Iterable[str]) -> int:
    for reason in reasons:
        sys.stderr.write(f"invalid: {reason}\n")
    return 2


def _note(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    # So that a driver that is ended ends its server too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
