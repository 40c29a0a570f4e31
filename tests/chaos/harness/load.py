"""Asks questions when they are due, keeps the ledger, and checks every answer once the load is over."""

import asyncio
import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

import httpx
from harness.ledger import Entry, Ledger, Outcome, outcome_of
from harness.questions import Question, mixed

_HEADERS = {"content-type": "application/msgpack", "accept": "application/msgpack, application/problem+json"}
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Load:
    """Mixed questions at a constant rate. heeds_readiness: none is sent while the server says that it is not ready."""

    rate_hz: float
    seconds: float
    terms: dict[str, object] = field(default_factory=lambda: {"deadline_ms": 5000})
    heeds_readiness: bool = False
    is_kept_alive: bool = True

    def questions(self, seed: int, stream: int) -> list[Question]:
        """Draw as many questions as the load has."""
        return mixed(round(self.rate_hz * self.seconds), seed=seed, stream=stream, **self.terms)


class Asker:
    """Sends questions to one address; what came back is checked by `verify`."""

    def __init__(self, address: str, ledger: Ledger, *, is_kept_alive: bool = True) -> None:
        self.ledger = ledger
        self.is_open = True
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None if is_kept_alive else 0)
        self.client = httpx.AsyncClient(base_url=address, timeout=_TIMEOUT_S, limits=limits, trust_env=False)
        self._answers: list[tuple[Entry, Question, bytes]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_) -> None:
        await self.client.aclose()

    async def ask(self, question: Question, due_s: float | None = None) -> Entry:
        """Send one question and write down what became of it."""
        sent_s = time.monotonic()
        entry = self.ledger.open(sent_s if due_s is None else due_s, sent_s, question.deadline_ms)
        try:
            response = await self.client.post(question.path, content=question.body, headers=_HEADERS)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            self._close(entry, Outcome.UNREACHABLE, type(error).__name__)
        except httpx.HTTPError as error:
            self._close(entry, Outcome.LOST, type(error).__name__)
        else:
            self._take(entry, question, response)
        return entry

    async def play(self, questions: Sequence[Question], rate_hz: float) -> list[Entry]:
        """Ask each question when it is due, whatever became of those before."""
        prepared = [question.body for question in questions]
        assert all(prepared)
        started_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            calls = []
            for number, question in enumerate(questions):
                due_s = started_s + number / rate_hz
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                if self.is_open:
                    calls.append(group.create_task(self.ask(question, due_s)))
        return [call.result() for call in calls]

    async def saturate(self, questions: Iterable[Question], askers: int, seconds: float | None = None) -> list[Entry]:
        """Let some askers never pause until all is asked or the time is up."""
        left, entries = iter(questions), []
        until_s = float("inf") if seconds is None else time.monotonic() + seconds

        async def keep_asking() -> None:
            for question in left:
                entries.append(await self.ask(question))
                if time.monotonic() > until_s:
                    return

        await asyncio.gather(*itertools.starmap(keep_asking, [()] * askers))
        return entries

    def verify(self) -> None:
        """Compare every answer so far with the right one."""
        for entry, question, reply in self._answers:
            fault = question.check(reply)
            if fault is not None:
                entry.outcome, entry.code = Outcome.WRONG, fault
        self._answers.clear()

    def _take(self, entry: Entry, question: Question, response: httpx.Response) -> None:
        if response.status_code == 200:
            self._close(entry, Outcome.OK)
            self._answers.append((entry, question, response.content))
            return
        try:
            code = str(response.json()["code"])
        except (ValueError, KeyError, TypeError):
            code = f"status_{response.status_code}"
        self._close(entry, outcome_of(response.status_code, code), code)

    def _close(self, entry: Entry, outcome: Outcome, code: str = "") -> None:
        self.ledger.close(entry, outcome, time.monotonic(), code)
