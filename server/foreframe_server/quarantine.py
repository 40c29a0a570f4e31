"""Which requests engines died of: none costs more than two, and what cost two is refused for a while.

It knows digests, counts and clocks, and no engine and no queue. Threads of several devices share one.
"""

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from foreframe_engines import Query

MAX_DEATHS = 2


@dataclass(slots=True, eq=False)
class Deaths:
    """How often an engine died with a request's call, shared by all that the request runs, on whatever device.

    num_unbegun: how often in a row no engine was there to begin a call. is_proven: whether any step went well.
    """

    num: int = 0
    num_unbegun: int = 0
    num_running: int = 0
    is_proven: bool = False

    @property
    def has_room(self) -> bool:
        """Whether one more engine may take the risk."""
        if self.num:
            return self.num_running == 0
        return self.is_proven or self.num_running < MAX_DEATHS


@dataclass(slots=True)
class _Record:
    num_deaths: int
    until_s: float


class Quarantine:
    """Remembers for `block_s` seconds what engines died of, by digest."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, block_s: float = 60.0) -> None:
        self._clock = clock
        self._block_s = block_s
        self._border = threading.Condition()
        self._records: dict[bytes, _Record] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nothing is remembered, so that nobody needs to know digests."""
        return not self._records

    def num_deaths(self, digest: bytes) -> int:
        """How many engines died of what has this digest."""
        with self._border:
            self._forget_old()
            record = self._records.get(digest)
            return 0 if record is None else record.num_deaths

    def note(self, digest: bytes) -> None:
        """Remember that an engine died of what has this digest."""
        with self._border:
            self._forget_old()
            record = self._records.setdefault(digest, _Record(0, 0.0))
            record.num_deaths += 1
            record.until_s = self._clock() + self._block_s

    def acquit(self, digest: bytes) -> None:
        """Forget what has been run to its end since, unless it is blocked."""
        with self._border:
            record = self._records.get(digest)
            if record is not None and record.num_deaths < MAX_DEATHS:
                del self._records[digest]

    @contextlib.contextmanager
    def running(self, held: Iterable[Deaths]) -> Iterator[None]:
        """Wait until requests may run, and count them as running: those that cost an engine in one place only.

        Whoever is within must not enter again.
        """
        mine = {id(deaths): deaths for deaths in held}.values()
        with self._border:
            if not all(deaths.has_room for deaths in mine):
                self._border.wait_for(lambda: all(deaths.has_room for deaths in mine))
            for deaths in mine:
                deaths.num_running += 1
        try:
            yield
        finally:
            with self._border:
                for deaths in mine:
                    deaths.num_running -= 1
                self._border.notify_all()

    def _forget_old(self) -> None:
        now = self._clock()
        for digest in [digest for digest, record in self._records.items() if record.until_s <= now]:
            del self._records[digest]


def digest_arrays(label: str, arrays: Iterable[np.ndarray]) -> bytes:
    """Digest arrays with their shapes and dtypes."""
    digest = hashlib.sha256(label.encode())
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def digest_query(query: Query) -> bytes:
    """Digest what decides the work of a query's members, however many there are and whatever becomes of them."""
    return digest_arrays(f"{query.model} {query.sampling} {query.ensemble.noise} ", (query.context, query.states))
