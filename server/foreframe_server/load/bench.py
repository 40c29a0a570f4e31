"""What every preset does: ask about things never asked before, and keep book of its own punctuality."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from statistics import median

from foreframe_server.load.door import Door, UnfitServer
from foreframe_server.load.generator import Prepare, play, saturate
from foreframe_server.load.questions import MAX_CONTENTS
from foreframe_server.load.records import Record
from foreframe_server.load.summary import Schedule, check_schedule
from foreframe_server.load.traces import Arrival, Ask

Note = Callable[[str], None]
_WARM_UPS = 2


class Bench:
    """One run against one server. `note` is told what is going on."""

    def __init__(self, door: Door, *, max_lag_ms: float, note: Note) -> None:
        self.door = door
        self.note = note
        self._max_lag_ms = max_lag_ms
        self._next_content = 0
        self._fillers = count(MAX_CONTENTS // 2)
        self._paced: list[Record] = []

    @property
    def schedule(self) -> Schedule | None:
        """How punctual every paced question was, None before the first one."""
        return check_schedule(self._paced, self._max_lag_ms) if self._paced else None

    async def play(
        self, trace: Sequence[Arrival], *, max_in_flight: int | None = None, is_paced: bool = True
    ) -> list[Record]:
        """Ask a trace's questions about new contents. is_paced: whether its times are to be kept, unlike a burst's."""
        return await self.replay(self._renew(trace), self.door.prepare, max_in_flight=max_in_flight, is_paced=is_paced)

    async def replay(
        self, trace: Sequence[Arrival], prepare: Prepare, *, max_in_flight: int | None = None, is_paced: bool = True
    ) -> list[Record]:
        """Ask a trace's questions as they are, which may have been asked before, and as `prepare` writes them."""
        records = await play(trace, prepare, max_in_flight=max_in_flight)
        if is_paced:
            self._paced.extend(records)
        return records

    async def saturate(self, ask: Ask, *, askers: int, duration_s: float) -> list[Record]:
        """Let some askers never pause until the time is up. How many questions that takes moves no later content."""
        return await saturate(self._new_questions(ask), self.door.prepare, askers=askers, duration_s=duration_s)

    async def measure_rate(self, ask: Ask, *, askers: int, duration_s: float) -> float:
        """Return answers per second while some askers never pause, after a warm-up.

        Raises UnfitServer when nothing is answered.
        """
        await self.warm_up(ask)
        records = await self.saturate(ask, askers=askers, duration_s=duration_s)
        return len(_answered(records)) / max(record.done_s for record in records)

    async def measure_alone(self, ask: Ask, times: int) -> float:
        """Return the median seconds of a question with nothing beside it, after a warm-up.

        Raises UnfitServer when nothing is answered.
        """
        await self.warm_up(ask)
        records = [await self._ask_one(Arrival(0.0, ask, index)) for index in range(times)]
        return median(record.latency_ms / 1000 for record in _answered(records))

    async def warm_up(self, ask: Ask) -> None:
        """Ask the same kind of question a few times and forget the answers."""
        for _ in range(_WARM_UPS):
            await self._ask_one(Arrival(0.0, replace(ask, deadline_ms=None, stream_id=None), 0))

    def new_content(self) -> int:
        """Return the number of something that nobody asked about yet."""
        self._next_content += 1
        return self._next_content - 1

    def new_contents(self, count: int) -> list[int]:
        """Return numbers of so many things that nobody asked about yet."""
        return [self.new_content() for _ in range(count)]

    async def _ask_one(self, arrival: Arrival) -> Record:
        (record,) = await self.play([arrival], is_paced=False)
        return record

    def _new_questions(self, ask: Ask) -> Iterator[Arrival]:
        while True:
            yield Arrival(0.0, ask, next(self._fillers))

    def _renew(self, trace: Sequence[Arrival]) -> list[Arrival]:
        first = self._next_content
        self._next_content += 1 + max((arrival.content for arrival in trace), default=0)
        return [replace(arrival, content=first + arrival.content) for arrival in trace]


def _answered(records: Sequence[Record]) -> list[Record]:
    answered = [record for record in records if record.reply.is_ok]
    if not answered:
        codes = ", ".join(sorted({record.reply.code for record in records}))
        raise UnfitServer(f"none of {len(records)} questions were answered: {codes}")
    return answered
