"""Members that are whole and wait for their turn to be decoded. Pure: it knows no device and no clock.

Controllers' members go first of all. Bulk members let controllers' steps pass, but only so many times in a row.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from foreframe_server.jobs import Member, is_bulk
from foreframe_server.tickets import Ticket


@dataclass(frozen=True, slots=True, eq=False)
class Decoding:
    """Members of one job, the next ones in order, that are decoded in one turn."""

    ticket: Ticket
    members: tuple[Member, ...]


class Decodings:
    """The queue of decodings. `max_passes`: how many forwards with controllers a bulk decoding lets pass."""

    def __init__(self, max_passes: int = 4) -> None:
        self._max_passes = max_passes
        self._num_passes = 0
        self._controllers: deque[Decoding] = deque()
        self._bulk: deque[Decoding] = deque()

    def __bool__(self) -> bool:
        return bool(self._controllers or self._bulk)

    def put(self, ticket: Ticket, members: Sequence[Member], turn_members: int) -> None:
        """Let members wait, in turns of at most so many."""
        queue = self._bulk if is_bulk(ticket.job) else self._controllers
        for start in range(0, len(members), turn_members):
            queue.append(Decoding(ticket, tuple(members[start : start + turn_members])))

    def holds(self, ticket: Ticket) -> bool:
        """Whether members of a job still wait."""
        return any(each.ticket is ticket for each in (*self._controllers, *self._bulk))

    def drop(self, ticket: Ticket) -> None:
        """Forget a job's members."""
        self._controllers = deque(each for each in self._controllers if each.ticket is not ticket)
        self._bulk = deque(each for each in self._bulk if each.ticket is not ticket)

    def take(self, *, is_controller_waiting: bool) -> Decoding | None:
        """Take what goes before the next forward; None when that forward goes first, or when nothing waits."""
        if self._controllers:
            return self._controllers.popleft()
        if not self._bulk:
            return None
        if is_controller_waiting and self._num_passes < self._max_passes:
            self._num_passes += 1
            return None
        self._num_passes = 0
        return self._bulk.popleft()
