"""`python -m peers`: install, start, check, measure and end one server after another, then write one table.

Exit codes: 0 all was measured, 2 something was invalid and no number is printed.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from peers.catalogue import ROOT, Peer, catalogue
from peers.comparison import Comparison, make_plan
from peers.errors import Invalid
from peers.facts import machine_facts
from peers.install import install
from peers.ledger import Ledger
from peers.report import write_markdown, write_record
from peers.servers import split_cores


def main(words: Sequence[str] | None = None, peers: Sequence[Peer] | None = None) -> int:
    """Run what is asked for. Returns the exit code."""
    known = catalogue() if peers is None else list(peers)
    asked = _parser([peer.name for peer in known]).parse_args(words)
    chosen = [peer for peer in known if peer.name in asked.only] if asked.only else _default(known)
    try:
        for peer in chosen:
            install(peer)
        if asked.install:
            return 0
        ledger = Ledger(asked.folder)
        comparison = Comparison(ledger, *split_cores(sorted(os.sched_getaffinity(0))), _note)
        _settle_plan(ledger, comparison, asked)
        failed = _run(comparison, chosen, asked)
    except Invalid as error:
        return _refuse([str(error)])
    if failed:
        return _refuse(failed)
    _publish(ledger, known, comparison, asked)
    return 0


def _parser(names: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m peers", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"these alone: {', '.join(names)}")
    parser.add_argument("--again", action="store_true", help="measure what has a result too")
    parser.add_argument("--fresh", action="store_true", help="forget all results, and plan anew for this machine")
    parser.add_argument("--seconds", type=float, default=40.0, help="of the mixed trace; the rest follows from it")
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


def _run(comparison: Comparison, chosen: Sequence[Peer], asked: argparse.Namespace) -> list[str]:
    """Measure one server after another; return why some could not be."""
    failed = []
    done = {} if asked.again else comparison.ledger.results()
    for peer in chosen:
        if peer.name in done:
            continue
        comparison.ledger.drop(peer.name)
        try:
            comparison.ledger.put(peer.name, asyncio.run(comparison.measure(peer)))
        except Invalid as error:
            failed.append(f"{peer.name}: {error}")
            _note(failed[-1])
    return failed


def _publish(ledger: Ledger, known: Sequence[Peer], comparison: Comparison, asked: argparse.Namespace) -> None:
    facts = machine_facts(comparison.server_cores, comparison.asker_cores)
    plan: Mapping[str, object] = comparison.plan.record()
    record = write_record(ledger.results(), known, {**facts, "plan": plan})
    tables = write_markdown(record) + "\n"
    if asked.out:
        asked.out.write_text(json.dumps(record, indent=2) + "\n")
    if asked.markdown:
        asked.markdown.write_text(tables)
    sys.stdout.write(tables)


def _refuse(reasons: Sequence[str]) -> int:
    for reason in reasons:
        sys.stderr.write(f"invalid: {reason}\n")
    return 2


def _note(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
