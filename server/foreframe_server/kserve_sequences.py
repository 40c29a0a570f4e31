"""Which session each running sequence of the tensor door is. It knows ids, and nothing of what a session holds.

Only the event loop's thread may call.
"""

from collections import OrderedDict
from dataclasses import dataclass

SequenceId = int | str
MAX_SEQUENCES = 4096


@dataclass(frozen=True, slots=True)
class SequenceKey:
    """One client's name of a sequence; `tenant` tells clients apart."""

    tenant: str
    sequence_id: SequenceId


class SequenceBook:
    """Remembers sessions by their sequences, at most `max_sequences`: what was used longest ago is forgotten first."""

    def __init__(self, max_sequences: int = MAX_SEQUENCES) -> None:
        self._max_sequences = max_sequences
        self._sessions: OrderedDict[SequenceKey, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def find(self, key: SequenceKey) -> str | None:
        """Return the session of a sequence, None for one that does not run."""
        if key in self._sessions:
            self._sessions.move_to_end(key)
        return self._sessions.get(key)

    def begin(self, key: SequenceKey, session_id: str) -> str | None:
        """Remember a sequence's session; returns the one that it had before."""
        before = self._sessions.pop(key, None)
        self._sessions[key] = session_id
        if len(self._sessions) > self._max_sequences:
            self._sessions.popitem(last=False)
        return before

    def end(self, key: SequenceKey, session_id: str) -> None:
        """Forget a sequence, unless it has begun anew with another session."""
        if self._sessions.get(key) == session_id:
            del self._sessions[key]
