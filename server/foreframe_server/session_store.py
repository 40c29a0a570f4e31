"""Which sessions are held, until when, and how much memory they hold together. It knows no device and no wire.

What sessions share is counted once. One event loop owns it: it holds no lock of its own, and one for each session.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from foreframe_server.errors import Gone, Reason, TooExpensive
from foreframe_server.metrics import Metrics
from foreframe_server.sessions import Piece, Session, UnknownSession

_MAX_ENDED = 4096


class Ending(StrEnum):
    """Why a session is not held any more."""

    DELETED = "deleted"
    EXPIRED = "expired"
    EVICTED = "evicted"


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How much sessions may hold, in bytes. history_bytes: predictions of one session kept to roll back to."""

    ttl_s: float = 600.0
    max_sessions: int = 1024
    max_bytes: int = 512 * 2**20
    max_session_bytes: int = 256 * 2**20
    history_bytes: int = 16 * 2**20
    max_step_rows: int = 256


@dataclass(slots=True, eq=False)
class _Held:
    session: Session
    pieces: tuple[Piece, ...]
    expires_s: float
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True)
class _Ended:
    tenant: str
    ending: Ending


class SessionStore:
    """Holds sessions for so long after their last use; when memory is short the one used longest ago goes first."""

    def __init__(self, limits: SessionLimits, metrics: Metrics, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.num_bytes = 0
        self._metrics = metrics
        self._clock = clock
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._ended: OrderedDict[str, _Ended] = OrderedDict()
        self._shares: Counter[Piece] = Counter()

    def __len__(self) -> int:
        return len(self._held)

    def put(self, session: Session) -> None:
        """Hold a new session. Raises TooExpensive when it is larger than one may be."""
        self._check_size(session)
        self.forget_expired()
        pieces = tuple(session.pieces)
        self._add(pieces)
        self._held[session.session_id] = _Held(session, pieces, self._expiry(session))
        self._ended.pop(session.session_id, None)
        self._make_room(session.session_id)

    def replace(self, session: Session) -> None:
        """Hold what became of a session. Raises TooExpensive when it grew too large, Gone when it ended meanwhile."""
        self._check_size(session)
        held = self._held.get(session.session_id)
        if held is None:
            raise self._missing(session.session_id, session.tenant)
        pieces = tuple(session.pieces)
        self._add(pieces)
        self._drop(held.pieces)
        held.session, held.pieces, held.expires_s = session, pieces, self._expiry(session)
        self._held.move_to_end(session.session_id)
        self._make_room(session.session_id)

    def get(self, session_id: str, tenant: str) -> Session:
        """Return a session and let it live on.

        Raises UnknownSession when the caller has none of this id, Gone when the caller's has ended.
        """
        return self._find(session_id, tenant).session

    def turn(self, session_id: str, tenant: str) -> asyncio.Lock:
        """Return what orders the changes of a session. Raises as `get`."""
        return self._find(session_id, tenant).turn

    def peek(self, session_id: str) -> Session | None:
        """Return a session without letting it live on, or None."""
        held = self._held.get(session_id)
        return None if held is None else held.session

    def was_deleted(self, session_id: str) -> bool:
        """Whether its own caller ended it."""
        ended = self._ended.get(session_id)
        return ended is not None and ended.ending is Ending.DELETED

    def delete(self, session_id: str, tenant: str) -> None:
        """End a session. Raises as `get`."""
        self._find(session_id, tenant)
        self._end(session_id, Ending.DELETED)

    def expires_in_s(self, session: Session) -> float:
        """Say how long a session lives on without being used."""
        held = self._held.get(session.session_id)
        return 0.0 if held is None else max(0.0, held.expires_s - self._clock())

    def forget_expired(self) -> None:
        """End every session that was not used for its time."""
        now_s = self._clock()
        for session_id in [name for name, held in self._held.items() if held.expires_s <= now_s]:
            self._end(session_id, Ending.EXPIRED)

    def _find(self, session_id: str, tenant: str) -> _Held:
        held = self._held.get(session_id)
        if held is not None and held.expires_s <= self._clock():
            self._end(session_id, Ending.EXPIRED)
            held = None
        if held is None or held.session.tenant != tenant:
            raise self._missing(session_id, tenant)
        held.expires_s = self._expiry(held.session)
        self._held.move_to_end(session_id)
        return held

    def _missing(self, session_id: str, tenant: str) -> UnknownSession | Gone:
        ended = self._ended.get(session_id)
        if ended is None or ended.tenant != tenant:
            reason = Reason("/session_id", "names no session")
            return UnknownSession("There is no session of this id.", reasons=[reason])
        reason = Reason("/session_id", f"names a session that was {ended.ending}")
        return Gone("The session is not held any more.", reasons=[reason])

    def _expiry(self, session: Session) -> float:
        return self._clock() + session.ttl_s

    def _check_size(self, session: Session) -> None:
        limit = min(self.limits.max_session_bytes, self.limits.max_bytes)
        if session.num_bytes > limit:
            reason = Reason("", "needs more memory than a session may hold", f"at most {limit} bytes")
            raise TooExpensive("The session would be too large.", reasons=[reason])

    def _make_room(self, newest_id: str) -> None:
        while self.num_bytes > self.limits.max_bytes or len(self._held) > self.limits.max_sessions:
            oldest_id = next(iter(self._held))
            if oldest_id == newest_id:
                return
            self._end(oldest_id, Ending.EVICTED)

    def _end(self, session_id: str, ending: Ending) -> None:
        held = self._held.pop(session_id)
        self._drop(held.pieces)
        self._ended[session_id] = _Ended(held.session.tenant, ending)
        if len(self._ended) > _MAX_ENDED:
            self._ended.popitem(last=False)
        self._metrics.count_session(ending.value)

    def _add(self, pieces: tuple[Piece, ...]) -> None:
        for piece in pieces:
            self._shares[piece] += 1
            if self._shares[piece] == 1:
                self.num_bytes += piece.num_bytes

    def _drop(self, pieces: tuple[Piece, ...]) -> None:
        for piece in pieces:
            self._shares[piece] -= 1
            if not self._shares[piece]:
                del self._shares[piece]
                self.num_bytes -= piece.num_bytes
