"""A server behind its port, over real HTTP. Compares every answer with the right one; knows nothing of when to ask."""

import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import httpx
from peers.errors import Invalid
from peers.truths import MAX_DIFFERENCE, Truths, difference
from peers.wires import Answer, Sent, Wire

from foreframe_server.load.generator import Send
from foreframe_server.load.records import OK, UNREACHABLE, Record, Reply
from foreframe_server.load.traces import Arrival, Ask

_TIMEOUT_S = 120.0
_FIRST_NEWS = "event: estimate"


@dataclass(frozen=True, slots=True, eq=False)
class Timed:
    """An answer and the seconds until its last byte was there."""

    answer: Answer
    elapsed_s: float


@dataclass(eq=False)
class Door:
    """One server's answers. compared, largest_difference: of what was held against the truth; wrong: what differed."""

    client: httpx.AsyncClient
    wire: Wire
    truths: Truths
    steps: int
    compared: int = 0
    largest_difference: int = 0
    wrong: list[str] = field(default_factory=list)
    unread: dict[int, httpx.Response] = field(default_factory=dict)

    def prepare(self, arrival: Arrival) -> Send:
        """Write a question; what comes back sends it. Its answer is read by `settle`, when no clock runs."""
        return partial(self._send, arrival.content, self._write(arrival.ask, arrival.content))

    def settle(self, records: Sequence[Record]) -> list[Record]:
        """Read and compare the answers of records. Raises Invalid for a wrong one, and where the server was away."""
        lost = sum(record.reply.code == UNREACHABLE for record in records)
        if lost:
            raise Invalid(f"the server was unreachable for {lost} of {len(records)} questions")
        settled = [self._settle(record) for record in records]
        self.require_right()
        return settled

    async def ask(self, ask: Ask, content: int) -> Timed:
        """Ask one question. Raises Invalid for a refusal or a wrong answer."""
        sent = self._write(ask, content)
        started_s = time.perf_counter()
        response = await self._post(sent)
        elapsed_s = time.perf_counter() - started_s
        if response.status_code != 200:
            raise Invalid(f"the server answered {response.status_code}: {response.text[:200]}")
        answer = self.wire.read(response.content, response.headers)
        self._compare(ask, content, answer)
        self.require_right()
        return Timed(answer, elapsed_s)

    async def measure_first_news(self, ask: Ask, content: int) -> float:
        """Return the seconds to the first answer that can be used, of a server that tells its progress."""
        sent = self._write(ask, content)
        started_s = time.perf_counter()
        headers = {**sent.headers, "accept": "text/event-stream"}
        async with self.client.stream("POST", sent.path, content=sent.body, headers=headers) as response:
            elapsed_s = None
            async for line in response.aiter_lines():
                if elapsed_s is None and line == _FIRST_NEWS:
                    elapsed_s = time.perf_counter() - started_s
        if elapsed_s is None:
            raise Invalid("no estimate was told")
        return elapsed_s

    def require_right(self) -> None:
        """Raise Invalid when any answer so far was wrong."""
        if self.wrong:
            raise Invalid(f"{len(self.wrong)} answers differ from the right ones; the first: {self.wrong[0]}")

    def _write(self, ask: Ask, content: int) -> Sent:
        return self.wire.write(self.truths.request(content, ask.members), ask)

    async def _post(self, sent: Sent) -> httpx.Response:
        return await self.client.post(sent.path, content=sent.body, headers=dict(sent.headers))

    async def _send(self, content: int, sent: Sent) -> Reply:
        try:
            response = await self._post(sent)
        except httpx.HTTPError:
            return Reply(UNREACHABLE)
        if response.status_code != 200:
            return Reply(_code(response))
        self.unread[content] = response
        return Reply(OK)

    def _settle(self, record: Record) -> Record:
        if not record.reply.is_ok:
            return record
        arrival = record.arrival
        response = self.unread.pop(arrival.content)
        answer = self.wire.read(response.content, response.headers)
        self._compare(arrival.ask, arrival.content, answer)
        members = arrival.ask.members if answer.members is None else answer.members
        return replace(record, reply=replace(record.reply, members=members, is_degraded=answer.is_degraded))

    def _compare(self, ask: Ask, content: int, answer: Answer) -> None:
        """Hold an answer against the mean of as many members; one of a shorter schedule has no equal here."""
        if answer.is_from_cache:
            self.wrong.append(f"content {content} came from a cache")
        members = ask.members if answer.members is None else answer.members
        if ask.strategy != "sample" or members == 0 or answer.steps not in (None, self.steps):
            return
        found = difference(answer.frames, self.truths.mean(content, members))
        self.compared += 1
        self.largest_difference = max(self.largest_difference, found)
        if found > MAX_DIFFERENCE:
            self.wrong.append(f"content {content} with {members} members is {found} grey levels off")


@contextlib.asynccontextmanager
async def open_door(port: int, wire: Wire, truths: Truths, steps: int) -> AsyncIterator[Door]:
    """Connect to a port of 127.0.0.1 for as long as the block runs, with as many connections as are wanted."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    address = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=address, timeout=_TIMEOUT_S, limits=limits, trust_env=False) as client:
        yield Door(client, wire, truths, steps)


def _code(response: httpx.Response) -> str:
    """Return a refusal's own code, else its status."""
    try:
        return str(response.json()["code"])
    except (ValueError, KeyError, TypeError):
        return f"status_{response.status_code}"
