"""Who is connected: how many of one address, how many in all, and who has to go for newcomers. Reads no bytes."""

import ipaddress
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

import structlog

from foreframe_server.errors import Overloaded, ServiceError
from foreframe_server.protocols.refusals import TooManyConnections

_RESTING_S = 1.0
"""How long who was served before stays, whoever comes."""

_log = structlog.get_logger("foreframe.requests")


class Visitor(Protocol):
    """One connection, as whoever limits them sees it."""

    @property
    def idle_since_s(self) -> float | None:
        """When it began to wait for a request, None while it has one."""

    @property
    def num_served(self) -> int:
        """How many of its requests were answered."""

    def check(self, now_s: float) -> None:
        """End it if it is too slow."""

    def leave(self) -> None:
        """End it at once."""


@dataclass(slots=True)
class _Place:
    address: str | None
    visitor: Visitor


class Visitors:
    """The connections of one listener, each known by its transport.

    free: addresses that may hold as many connections as they like, such as a proxy's; this machine's own may too.
    on_refusal: is told the code of what was said without the app.
    """

    def __init__(
        self,
        *,
        max_connections: int,
        max_per_address: int,
        free: Collection[str] = (),
        on_refusal: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._max_connections = max_connections
        self._max_per_address = max_per_address
        self._free = frozenset(free)
        self._on_refusal = on_refusal
        self._places: dict[object, _Place] = {}
        self._per_address: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._places)

    def enter(self, transport: object, visitor: Visitor, address: str | None, now_s: float) -> ServiceError | None:
        """Let a connection in, or say why not; who has waited longest for a request makes room.

        address: the client's, None for who must be on this machine. A transport that is in is only handed over.
        """
        if transport in self._places:
            self._places[transport].visitor = visitor
            return None
        limited = None if address is None or self._is_free(address) else address
        if limited is not None and self._per_address[limited] >= self._max_per_address:
            if not self._make_room(limited, now_s):
                return TooManyConnections(f"One address may hold {self._max_per_address} connections.")
        elif len(self._places) >= self._max_connections and not self._make_room(None, now_s):
            return Overloaded("The server holds as many connections as it may.", retry_after_ms=1000)
        self._places[transport] = _Place(limited, visitor)
        if limited is not None:
            self._per_address[limited] += 1
        return None

    def exit(self, transport: object) -> None:
        """Forget a connection; one that is not in is no fault."""
        place = self._places.pop(transport, None)
        if place is not None and place.address is not None:
            self._per_address[place.address] -= 1
            if self._per_address[place.address] == 0:
                del self._per_address[place.address]

    def note(self, code: str) -> None:
        """Count what was said without the app."""
        self._refusals[code] += 1
        self._on_refusal(code)

    def check(self, now_s: float) -> None:
        """End who is too slow, and log what was refused since the last time."""
        for place in list(self._places.values()):
            place.visitor.check(now_s)
        for code, count in self._refusals.items():
            _log.info("refused at the door", code=code, count=count)
        self._refusals.clear()

    def _is_free(self, address: str) -> bool:
        return address in self._free or ipaddress.ip_address(address.partition("%")[0]).is_loopback

    def _make_room(self, address: str | None, now_s: float) -> bool:
        """End the one that is missed least, strangers first. Returns whether there was one."""
        leaving = min(
            (
                (place.visitor.num_served > 0, place.visitor.idle_since_s, index, transport)
                for index, (transport, place) in enumerate(self._places.items())
                if (address is None or place.address == address) and _may_go(place.visitor, now_s)
            ),
            default=None,
        )
        if leaving is None:
            return False
        transport = leaving[-1]
        visitor = self._places[transport].visitor
        self.exit(transport)
        self.note("evicted")
        visitor.leave()
        return True


def _may_go(visitor: Visitor, now_s: float) -> bool:
    since_s = visitor.idle_since_s
    return since_s is not None and (visitor.num_served == 0 or now_s >= since_s + _RESTING_S)
