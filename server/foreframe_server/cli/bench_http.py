"""`foreframe bench http`: load on a server that is there, or on one started for it, over real HTTP."""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from rich.box import SIMPLE_HEAD
from rich.table import Table

from foreframe_server.cli.bench_http_engine import running_engine
from foreframe_server.cli.bench_options import PATIENCE_S, Outputs
from foreframe_server.cli.bench_reports import Measured, bundle_weights, publish_report
from foreframe_server.cli.bench_sheets import write_sheets
from foreframe_server.cli.console import print_note, print_pretty, table_of
from foreframe_server.cli.faults import Fault, InvalidRun
from foreframe_server.cli.overrides import read_private
from foreframe_server.load.bench import Bench
from foreframe_server.load.caching import CachePlan, measure_cache, measure_sharing
from foreframe_server.load.door import UnfitServer, open_door, wait_until_ready
from foreframe_server.load.exam import Grades, Sheet, examine
from foreframe_server.load.findings import Bar, Findings, Part, join_findings, typical_findings
from foreframe_server.load.processes import NotStarted, RedisProcess, running_child, running_redis
from foreframe_server.load.redis_faults import FaultPlan, measure_redis_fault
from foreframe_server.load.summary import Percentiles
from foreframe_server.load.throughput import ThroughputPlan, measure_throughput
from foreframe_server.load.traces import Ask
from foreframe_server.reports.header import Weights
from foreframe_server.reports.lines import flat_lines

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Measure: TypeAlias = Callable[[Bench], Awaitable[Findings]]
_FAULTS = {"killed": RedisProcess.kill, "stopped": RedisProcess.hang}
_COLUMNS = ("ok", "shed", "fail", "p50", "p95", "p99", "misses", "good/s", "members", "rows")
_WHOLE_MS = 100
_EXAM_CLIPS = 2


@dataclass(frozen=True, slots=True)
class Target:
    """Which server: one at an address, or without one a new process with a bundle, None for the built-in model.

    max_lag_ms: how late 99 % of the questions may go out before the run is called off schedule. seed: of what is asked.
    patience_s: how long to wait for a server at the address.
    """

    url: str | None
    bundle: Path | None
    max_lag_ms: float
    seed: int = 0
    patience_s: float = PATIENCE_S

    @contextlib.contextmanager
    def open(self, settings: Mapping[str, str] | None = None) -> Iterator[str]:
        """Give the address of the server, started for as long as the block runs when there is none. Raises Fault."""
        with told():
            if self.url is not None:
                wait_until_ready(self.url, self.patience_s)
                yield self.url
                return
            print_note("starting a server ...")
            with running_child(self.bundle, settings) as address:
                yield address


def run_preset(target: Target, measure: Measure, rounds: int = 1) -> Findings:
    """Let a preset measure a server, several times over if asked. Raises Fault."""
    with target.open() as address:
        return _run_rounds(target, address, measure, rounds)


def run_checked(target: Target, ask: Ask, measure: Measure, rounds: int = 1) -> Findings:
    """Check a few answers of a server to such questions, and let a preset measure it. Raises BundleError or Fault."""
    with target.open() as address:
        exam = _examine(target, address, ask)
        found = _run_rounds(target, address, measure, rounds)
    return replace(found, facts={**found.facts, "exam": exam})


def _run_rounds(target: Target, address: str, measure: Measure, rounds: int) -> Findings:
    return typical_findings([asyncio.run(_measure(target, address, measure)) for _ in range(rounds)])


def _examine(target: Target, address: str, ask: Ask) -> Mapping[str, object] | None:
    """Compare answers with the bundle's, None where a server elsewhere serves another model. Raises UnfitServer."""
    (served, _), own = asyncio.run(_read_served(address)), bundle_weights(read_private(target.bundle))
    if served != replace(own, digest=None):
        theirs, ours = (f"{weights.model} {weights.revision}" for weights in (served, own))
        print_note(f"answers are not checked: the server has {theirs}, the bundle is {ours}")
        return None
    sheets = write_sheets(target.bundle, ask, _EXAM_CLIPS)
    return asyncio.run(_grade(address, ask, sheets)).facts()


async def _grade(address: str, ask: Ask, sheets: Sequence[Sheet]) -> Grades:
    async with open_door(address) as door:
        return await examine(door, ask, sheets)


def run_throughput(target: Target, plan: ThroughputPlan) -> Findings:
    """Compare a server with the engine that it serves. Raises BundleError or Fault."""
    with running_engine(read_private(target.bundle), plan.ask) as loop:
        return run_checked(target, plan.ask, lambda bench: measure_throughput(bench, plan, loop))


def run_cache(target: Target, plan: CachePlan) -> Findings:
    """Measure one server's cache, and that of two that share a Redis unless a server was named. Raises Fault."""
    alone = run_checked(target, plan.ask, lambda bench: measure_cache(bench, plan))
    if target.url is not None:
        return alone
    with told(), running_redis() as redis, contextlib.ExitStack() as servers:
        settings = _shared_cache(redis)
        addresses = [servers.enter_context(target.open(settings)) for _ in range(2)]
        shared = asyncio.run(_measure_shared(target, addresses, plan))
    return join_findings("cache", [alone, shared])


def run_redis_fault(target: Target, plan: FaultPlan) -> Findings:
    """Break a Redis under load in each way, each time with a server and a Redis of its own. Raises Fault."""
    found, exam = [], None
    for name, strike in _FAULTS.items():
        with told(), running_redis() as redis, target.open(_shared_cache(redis)) as address:
            exam = _examine(target, address, plan.ask)
            found.append(asyncio.run(_measure(target, address, _fault_measure(plan, name, strike, redis))))
    joined = join_findings("redis-fault", found)
    return replace(joined, facts={**joined.facts, "exam": exam})


def publish(target: Target, findings: Findings, plan: "DataclassInstance", outputs: Outputs) -> None:
    """Publish what was found. Raises InvalidRun when the run says nothing about the server."""
    report = findings.report(asdict(plan), [target.seed])
    publish_report(report, outputs, read_measured(target), lambda: _print_tables(findings))


def read_measured(target: Target) -> Measured:
    """Name what was measured: the bundle's weights, or what a server elsewhere says of itself, which is no digest."""
    if target.url is None:
        return Measured(bundle_weights(read_private(target.bundle)))
    with told():
        weights, version = asyncio.run(_read_served(target.url))
    return Measured(weights, target.url, version)


async def _read_served(address: str) -> tuple[Weights, str | None]:
    """Read the model, and the version of the program."""
    async with open_door(address) as door:
        return Weights(door.sizes.model, door.sizes.revision, None), await door.read_version()


def _fault_measure(plan: FaultPlan, name: str, strike: Callable[[RedisProcess], None], redis: RedisProcess) -> Measure:
    return lambda bench: measure_redis_fault(bench, plan, name, lambda: strike(redis))


async def _measure(target: Target, address: str, measure: Measure) -> Findings:
    async with open_door(address, seed=target.seed) as door:
        return await measure(Bench(door, max_lag_ms=target.max_lag_ms, note=print_note))


async def _measure_shared(target: Target, addresses: list[str], plan: CachePlan) -> Findings:
    async with contextlib.AsyncExitStack() as doors:
        opened = [await doors.enter_async_context(open_door(address, seed=target.seed)) for address in addresses]
        benches = [Bench(door, max_lag_ms=target.max_lag_ms, note=print_note) for door in opened]
        return await measure_sharing(benches, plan)


def _shared_cache(redis: RedisProcess) -> dict[str, str]:
    return {"FOREFRAME_CACHE__REDIS_URL": redis.url, "FOREFRAME_CACHE__SECRET": secrets.token_hex(32)}


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Turn what is wrong with a server into a Fault, of a run that was begun into an InvalidRun."""
    try:
        yield
    except NotStarted as error:
        raise Fault(str(error)) from error
    except UnfitServer as error:
        raise InvalidRun(f"this run says nothing: {error}") from error


def _print_tables(findings: Findings) -> None:
    if findings.parts:
        print_pretty(_parts_table(findings))
    if findings.bars:
        print_pretty(_bars_table(findings))
    if findings.facts:
        print_pretty(table_of(dict(flat_lines(findings.facts)), "measured beside"))
    if findings.schedule is not None:
        print_pretty(f"sent {findings.schedule.sent}, at p99 {findings.schedule.lag_p99_ms:.1f} ms after due")


def _parts_table(findings: Findings) -> Table:
    title = f"bench http {findings.preset}: ms from when a question was due"
    table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("part", min_width=12)
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for part in findings.parts:
        table.add_row(part.name, *_cells(part))
    return table


def _cells(part: Part) -> list[str]:
    summary = part.summary
    times = [_ms(summary.latency_ms, name) for name in ("p50", "p95", "p99")]
    misses = f"{summary.deadline_miss_ratio:.1%}" if summary.with_deadline else "-"
    return [
        str(summary.ok),
        str(summary.shed),
        str(summary.failed + summary.superseded),
        *times,
        misses,
        f"{summary.goodput_per_s:.1f}",
        _number(summary.members),
        _number(summary.rows_per_step),
    ]


def _bars_table(findings: Findings) -> Table:
    table = Table(header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("measure")
    for name in ("value", "to reach", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for bar in findings.bars:
        table.add_row(bar.measure, _value(bar), bar.limit, "[green]met[/]" if bar.is_met else "[red]missed[/]")
    return table


def _value(bar: Bar) -> str:
    """Write the value, and of several rounds how far they lie apart."""
    value = "none" if bar.value is None else f"{bar.value:.4g}"
    known = [value for value in bar.rounds if value is not None]
    return f"{value} ({min(known):.4g}..{max(known):.4g})" if len(known) > 1 else value


def _ms(percentiles: Percentiles | None, name: str) -> str:
    if percentiles is None:
        return "-"
    value: float = getattr(percentiles, name)
    return f"{value:.0f}" if value >= _WHOLE_MS else f"{value:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
