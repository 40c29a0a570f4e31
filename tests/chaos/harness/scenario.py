"""A scenario is data: a server, a load, what happens when, and what must hold at the end. This runs one."""

import asyncio
import contextlib
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.ledger import Entry, Ledger, Outcome, judge, percentile, recovery_s
from harness.load import Asker, Load
from harness.proxy import Proxy
from harness.servers import Redis, Server, ServerSpec, running

Action = Callable[..., Awaitable[None]]


@dataclass(frozen=True)
class Event:
    """Something done to the parts at a second of the load."""

    at_s: float
    action: Action
    terms: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A measure and where it must lie."""

    measure: str
    at_most: float | None = None
    at_least: float | None = None

    def is_met(self, measures: Mapping[str, float]) -> bool:
        """Tell whether it holds; what was not measured does not."""
        value = measures.get(self.measure)
        if value is None:
            return False
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)

    @property
    def limit(self) -> str:
        limits = (("≤", self.at_most), ("≥", self.at_least))
        return ", ".join(f"{sign} {value:g}" for sign, value in limits if value is not None)


@dataclass(frozen=True)
class Scenario:
    """One trial. rows: of the list of threats. rounds: how often it runs; counts add up, of the rest the worst stands.

    limit_s: for one round, after which it has failed.
    """

    name: str
    title: str
    server: ServerSpec
    checks: tuple[Check, ...]
    load: Load | None = None
    events: tuple[Event, ...] = ()
    rows: tuple[int, ...] = ()
    rounds: int = 1
    limit_s: float = 120.0
    has_proxy: bool = False


@dataclass
class Stage:
    """The parts of a running round. facts: what actions measured."""

    server: Server
    redis: Redis | None
    proxy: Proxy | None
    asker: Asker
    rng: random.Random
    folder: Path
    started_s: float = field(default_factory=time.monotonic)
    struck_s: list[float] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)

    @property
    def ledger(self) -> Ledger:
        return self.asker.ledger

    def strike(self) -> None:
        """Remember that something was harmed now."""
        self.struck_s.append(time.monotonic())

    def add(self, fact: str, value: float = 1.0) -> None:
        """Add to a fact that is a count."""
        self.facts[fact] = self.facts.get(fact, 0.0) + value

    def worsen(self, fact: str, value: float) -> None:
        """Keep the largest of a fact's values."""
        self.facts[fact] = max(self.facts.get(fact, value), value)

    def aside(self) -> Asker:
        """Make an asker with a ledger of its own."""
        return Asker(self.server.address, Ledger())


@dataclass(frozen=True)
class Result:
    """What a scenario measured, and which checks hold."""

    scenario: Scenario
    seed: int
    seconds: float
    measures: dict[str, float]
    codes: dict[str, int] = field(default_factory=dict)
    error: str = ""

    @property
    def is_met(self) -> bool:
        return not self.error and all(check.is_met(self.measures) for check in self.scenario.checks)

    def record(self) -> dict[str, object]:
        """Return it as one JSON object."""
        checks = [
            {"measure": check.measure, "value": self.measures.get(check.measure), "limit": check.limit,
             "is_met": check.is_met(self.measures)}
            for check in self.scenario.checks
        ]  # fmt: skip
        return {
            "scenario": self.scenario.name, "title": self.scenario.title, "rows": list(self.scenario.rows),
            "seed": self.seed, "seconds": round(self.seconds, 1), "load_average": round(os.getloadavg()[0], 2),
            "is_met": self.is_met, "error": self.error, "checks": checks, "codes": self.codes,
            "measures": {name: round(value, 3) for name, value in sorted(self.measures.items())},
        }  # fmt: skip


SUMMED = frozenset({*(outcome.value for outcome in Outcome), "asked", "strikes", "violations", "rounds"})


def run(scenario: Scenario, seed: int = 0) -> Result:
    """Run every round of a scenario; an error of a round ends it and is part of the result."""
    began_s = time.monotonic()
    measures: dict[str, float] = {}
    codes: dict[str, int] = {}
    error = ""
    for number in range(scenario.rounds):
        try:
            found, seen = asyncio.run(_run_round(scenario, seed + number))
        except Exception as failure:  # noqa: BLE001 - whatever breaks a round is a result of it
            error = f"round {number}: {type(failure).__name__}: {_tell(failure)}"
            break
        measures = _merge(scenario, measures, found)
        codes = {code: codes.get(code, 0) + seen.get(code, 0) for code in codes | seen}
    return Result(scenario, seed, time.monotonic() - began_s, measures, codes, error)


def _tell(failure: BaseException) -> str:
    if isinstance(failure, BaseExceptionGroup):
        return "; ".join(f"{type(each).__name__}: {_tell(each)}" for each in failure.exceptions)
    return str(failure)


def _merge(scenario: Scenario, one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    wanted = {check.measure for check in scenario.checks if check.at_least is not None}

    def join(name: str) -> float:
        values = [found[name] for found in (one, other) if name in found]
        if name in SUMMED:
            return sum(values)
        return min(values) if name in wanted else max(values)

    return {name: join(name) for name in one | other}


async def _run_round(scenario: Scenario, seed: int) -> tuple[dict[str, float], dict[str, int]]:
    with tempfile.TemporaryDirectory(prefix="foreframe-chaos-") as name:
        async with asyncio.timeout(scenario.limit_s), _stage(scenario, seed, Path(name)) as stage:
            await _play(stage, scenario, seed)
            await asyncio.to_thread(stage.asker.verify)
            counted = await asyncio.to_thread(_compare_counters, stage)
            return {**measure(stage), **counted, **stage.facts}, stage.ledger.codes()


@contextlib.asynccontextmanager
async def _stage(scenario: Scenario, seed: int, folder: Path) -> AsyncIterator[Stage]:
    async with contextlib.AsyncExitStack() as stack:
        spec, proxy = scenario.server, None
        if scenario.has_proxy:
            proxy = await stack.enter_async_context(Proxy(str(folder / "redis.sock"), str(folder / "proxy.sock")))
            url = {"FOREFRAME_CACHE__REDIS_URL": proxy.url}
            spec = ServerSpec(**{**vars(spec), "environment": {**spec.environment, **url}})
        manager = running(spec, folder)
        server, redis = await asyncio.to_thread(manager.__enter__)
        stack.callback(manager.__exit__, None, None, None)
        is_kept_alive = scenario.load is None or scenario.load.is_kept_alive
        asker = await stack.enter_async_context(Asker(server.address, Ledger(), is_kept_alive=is_kept_alive))
        yield Stage(server, redis, proxy, asker, random.Random(seed), folder)


async def _play(stage: Stage, scenario: Scenario, seed: int) -> None:
    load = scenario.load
    questions = load.questions(seed, stream=seed) if load else []
    stage.started_s = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for event in scenario.events:
            group.create_task(_happen(stage, event))
        if load:
            watch = group.create_task(_heed(stage)) if load.heeds_readiness else None
            await stage.asker.play(questions, load.rate_hz)
            if watch:
                watch.cancel()


async def _happen(stage: Stage, event: Event) -> None:
    await asyncio.sleep(max(0.0, stage.started_s + event.at_s - time.monotonic()))
    await event.action(stage, **event.terms)


async def _heed(stage: Stage) -> None:
    """Send nothing more once the server says that it is not ready, as whatever balances load does."""
    while True:
        stage.asker.is_open = await asyncio.to_thread(stage.server.is_ready)
        await asyncio.sleep(0.1)


def _compare_counters(stage: Stage) -> dict[str, float]:
    """Count by how much the server's own counters differ from the ledger, where it lived all the time."""
    if len(stage.server.lives) > 1 or not stage.server.is_ready():
        return {}
    there = stage.server.replies()
    answered = stage.ledger.of(Outcome.OK, Outcome.WRONG)
    here = {**stage.ledger.codes(), "ok": len(answered)}
    return {"uncounted": sum(abs(there.get(code, 0) - here.get(code, 0)) for code in there | here)}


def measure(stage: Stage) -> dict[str, float]:
    """Count up a round's ledger, and compare the time after strikes with the time before the first."""
    entries, ledger = stage.ledger.entries, stage.ledger
    answered = ledger.of(Outcome.OK, Outcome.WRONG)
    found: dict[str, float | None] = {
        **ledger.counts(),
        "asked": len(entries),
        "violations": judge(ledger).num_violations,
        "strikes": len(stage.struck_s),
        "lag_p99_ms": percentile((1000 * (entry.sent_s - entry.due_s) for entry in entries), 0.99),
        "p50_ms": percentile((entry.latency_ms for entry in answered), 0.5),
        "p99_ms": percentile((entry.latency_ms for entry in answered), 0.99),
        **_around_strikes(entries, stage.struck_s),
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def _around_strikes(entries: list[Entry], struck_s: list[float]) -> dict[str, float | None]:
    if not struck_s or not entries:
        return {}
    first_s, last_s = struck_s[0], struck_s[-1]
    usual = [entry.latency_ms for entry in entries if entry.due_s < first_s]
    second = [entry.latency_ms for entry in entries if first_s <= entry.due_s < first_s + 1]
    later = [entry.latency_ms for entry in entries if entry.due_s >= last_s + 1]
    usual_ms = percentile(usual, 0.99)
    if usual_ms is None:
        return {}
    return {
        "usual_p99_ms": usual_ms,
        "first_second_added_ms": _above(percentile(second, 0.99), usual_ms),
        "later_added_ms": _above(percentile(later, 0.99), usual_ms),
        "recovery_s": recovery_s(entries, struck_s, usual_ms),
    }


def _above(value: float | None, usual: float) -> float | None:
    return None if value is None else value - usual
