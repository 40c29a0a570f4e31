"""Forwards of a few fixed sizes, run side by side on a few threads. Knows no graph.

Items are cut into forwards of at most the largest size; a forward's arrays are filled up with zeros to the next size.
"""

import os
import sys
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

_Item = TypeVar("_Item")
_Row = TypeVar("_Row")

# One row a forward, because larger batches are not bit-equal on ONNX Runtime's CPU provider: with AVX-512 every row of
# a 7-million-parameter video transformer differed by up to 5e-7 between batch 1 and 2, for one thread and for two,
# while rows alone were equal for 1, 2 and 4 threads, also when forwards overlapped. It costs nothing: on two
# threads a row took 14 ms in overlapping forwards, 15 ms in a batch of 16, and 16 to 22 ms when it was the only one.
CPU_BUCKETS = (1,)

_NICENESS = 10


class Lanes:
    """Threads that run forwards of the sizes in `buckets`, which ascend."""

    def __init__(self, num_lanes: int, buckets: tuple[int, ...]) -> None:
        self._pool = ThreadPoolExecutor(num_lanes, "foreframe-lane", initializer=_give_way)
        self._buckets = buckets

    def run(
        self,
        items: Sequence[_Item],
        forward: Callable[[Sequence[_Item]], Iterable[_Row]],
        *,
        key: Callable[[_Item], Hashable] = lambda _: None,
    ) -> list[_Row]:
        """Return the forwards' rows in the order of the items. Items of unequal keys never share a forward."""
        groups = self._group([key(item) for item in items])
        done = self._pool.map(forward, [[items[place] for place in group] for group in groups])
        rows = {
            place: row for group, part in zip(groups, done, strict=True) for place, row in zip(group, part, strict=True)
        }
        return [rows[place] for place in range(len(items))]

    def _group(self, keys: Sequence[Hashable]) -> list[list[int]]:
        places: dict[Hashable, list[int]] = {}
        for place, key in enumerate(keys):
            places.setdefault(key, []).append(place)
        largest = self._buckets[-1]
        return [equal[start : start + largest] for equal in places.values() for start in range(0, len(equal), largest)]

    def size(self, num_rows: int) -> int:
        """Return the size of the forward that takes so many rows."""
        return next(bucket for bucket in self._buckets if bucket >= num_rows)

    def pad(self, values: np.ndarray) -> np.ndarray:
        """Fill axis 0 up to a forward's size with rows of zeros, the same whatever the neighbours are."""
        missing = self.size(len(values)) - len(values)
        return np.concatenate([values, np.zeros((missing, *values.shape[1:]), values.dtype)]) if missing else values

    def close(self) -> None:
        """Let running forwards end, then free the threads."""
        self._pool.shutdown()


def _give_way() -> None:
    """Let threads that only pass work on go first where all cores are busy: a refusal must not wait for a forward."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(os.getpriority(os.PRIO_PROCESS, thread), _NICENESS))
