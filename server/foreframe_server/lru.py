"""A mapping that forgets what was used longest ago, bounded by bytes. It knows nothing of what it keeps.

One thread or one event loop owns it: it holds no lock.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class _Kept(Generic[V]):
    value: V
    num_bytes: int


class LruBytes(Generic[V]):
    """Keeps values by a digest, at most `max_bytes` of them."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._kept: OrderedDict[bytes, _Kept[V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, digest: bytes) -> V | None:
        """Return a value and mark it as used, or None."""
        kept = self._kept.get(digest)
        if kept is None:
            return None
        self._kept.move_to_end(digest)
        return kept.value

    def put(self, digest: bytes, value: V, num_bytes: int) -> int:
        """Keep a value and return how many others were forgotten for it; one larger than the bound is not kept."""
        self.pop(digest)
        if num_bytes > self.max_bytes:
            return 0
        self._kept[digest] = _Kept(value, num_bytes)
        self.num_bytes += num_bytes
        return self._forget_oldest()

    def pop(self, digest: bytes) -> None:
        """Forget a value, if it is kept."""
        kept = self._kept.pop(digest, None)
        if kept is not None:
            self.num_bytes -= kept.num_bytes

    def _forget_oldest(self) -> int:
        num_forgotten = 0
        while self.num_bytes > self.max_bytes:
            self.pop(next(iter(self._kept)))
            num_forgotten += 1
        return num_forgotten
