"""Thousands of damaged requests on raw sockets, a connection each; what a reply may not be is counted and kept."""

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness.actions import place_of
from harness.scenario import Stage
from harness.servers import Footprint
from wire.corpus import open_corpus
from wire.mutations import Mutant, mutate
from wire.sockets import Reply, exchange
from wire.verdicts import judge

FINDINGS = Path(__file__).parent / "findings"
"""Requests that once showed a fault. Every run sends them first."""

_AT_ONCE = 64
_BLOCK = 500
"""After so many the corpus is made anew, for its sessions may be gone."""

FAULTS = ("hang", "server_error", "untyped", "large", "leak")


@dataclass
class Tally:
    """What became of the requests that were sent."""

    faults: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    found: list[tuple[Mutant, Reply]] = field(default_factory=list)

    def add(self, mutant: Mutant, reply: Reply) -> None:
        self.statuses[reply.status] += 1
        fault = judge(reply)
        if fault is not None:
            self.faults[fault] += 1
            self.found.append((mutant, reply))


async def fuzz(stage: Stage, *, count: int, keeps: bool = True) -> None:
    """Send what was found before, then damaged requests; a first fifth warms up and is not in the growth of memory.

    keeps: write requests that show a fault to the folder of findings.
    """
    _, port = place_of(stage)
    tally, workers = Tally(), stage.server.workers()
    await send_all(port, read_findings(), tally)
    await _fuzz(stage, count // 5, tally)
    before = Footprint.of(stage.server.tree())
    began_s = time.monotonic()
    await _fuzz(stage, count - count // 5, tally)
    seconds = time.monotonic() - began_s
    after = Footprint.of(stage.server.tree())
    if keeps:
        write_findings(tally)
    stage.facts |= {
        "sent": float(sum(tally.statuses.values())),
        **{f"num_{fault}": float(tally.faults[fault]) for fault in FAULTS},
        "sent_per_s": (count - count // 5) / seconds,
        "fuzz_s": seconds * count / (count - count // 5),
        "rss_growth": after.rss_bytes / before.rss_bytes - 1,
        "worker_deaths": float(stage.server.workers() != workers),
        "tracebacks": float(stage.server.log.read_text(errors="replace").count("Traceback")),
        "answered_ok": float(tally.statuses[200] + tally.statuses[101]),
        "is_ready": float(await asyncio.to_thread(stage.server.is_ready)),
        **{f"status_{status}": float(times) for status, times in sorted(tally.statuses.items())},
    }


async def _fuzz(stage: Stage, count: int, tally: Tally) -> None:
    _, port = place_of(stage)
    await send_all(port, _mutants(stage, count), tally)


def _mutants(stage: Stage, count: int) -> Iterator[Mutant]:
    """Draw so many; whoever sends them waits a moment whenever the corpus is made anew."""
    for number in range(count):
        if number % _BLOCK == 0:
            corpus = open_corpus(stage.server.address)
        yield mutate(stage.rng, corpus)


async def send_all(port: int, mutants: Iterable[Mutant], tally: Tally) -> None:
    """Send each on a connection of its own, some at once."""
    left = iter(mutants)

    async def keep_sending() -> None:
        for mutant in left:
            tally.add(mutant, await exchange(port, mutant.data, mutant.frames))

    await asyncio.gather(*(keep_sending() for _ in range(_AT_ONCE)))


def read_findings(folder: Path = FINDINGS) -> list[Mutant]:
    """Read what was found before, in the order of names."""
    return [_parse(path.stem, json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]


def _parse(name: str, record: dict[str, object]) -> Mutant:
    frames = tuple(each.encode("latin-1") for each in record["frames"])
    return Mutant(str(record["kind"]), name, str(record["data"]).encode("latin-1"), frames)


def write_findings(tally: Tally, folder: Path = FINDINGS) -> None:
    """Write each request that showed a fault, with what it showed."""
    for mutant, reply in tally.found:
        fault, digest = judge(reply), hashlib.sha256(mutant.data + b"".join(mutant.frames)).hexdigest()[:12]
        record = {
            "fault": fault, "kind": mutant.kind, "sample": mutant.sample, "status": reply.status,
            "data": mutant.data.decode("latin-1"), "frames": [each.decode("latin-1") for each in mutant.frames],
        }  # fmt: skip
        (folder / f"{fault}-{digest}.json").write_text(json.dumps(record, indent=1) + "\n")
