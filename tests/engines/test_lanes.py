import os
import sys
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from foreframe_engines import ModelFault
from foreframe_engines.lanes import Lanes


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    lanes = Lanes(2, (1, 2, 4))
    yield lanes
    lanes.close()


def test_rows_come_back_in_the_order_of_the_items(lanes: Lanes) -> None:
    assert lanes.run(range(11), lambda group: [item * 10 for item in group]) == [item * 10 for item in range(11)]
    assert lanes.run(range(11), list, key=lambda item: item % 3) == list(range(11))


def test_a_forward_takes_no_more_than_the_largest_size(lanes: Lanes) -> None:
    sizes = lanes.run(range(11), lambda group: [len(group)] * len(group))
    assert sizes == [4] * 8 + [3] * 3


def test_items_of_unequal_keys_never_share_a_forward(lanes: Lanes) -> None:
    groups: list[set[int]] = lanes.run(range(9), lambda group: [set(group)] * len(group), key=lambda item: item % 2)
    assert {tuple(sorted(group)) for group in groups} == {(0, 2, 4, 6), (8,), (1, 3, 5, 7)}


def test_forwards_run_side_by_side(lanes: Lanes) -> None:
    barrier = threading.Barrier(2, timeout=10)

    def meet(group: Sequence[int]) -> list[int]:
        barrier.wait()
        return list(group)

    assert lanes.run(range(8), meet) == list(range(8))


def test_a_forward_that_fails_reaches_the_caller(lanes: Lanes) -> None:
    def fail(group: Sequence[int]) -> list[int]:
        raise ModelFault("it broke")

    with pytest.raises(ModelFault, match="it broke"):
        lanes.run([1], fail)


def test_a_forward_that_loses_a_row_is_noticed(lanes: Lanes) -> None:
    with pytest.raises(ValueError, match="shorter"):
        lanes.run([1, 2], lambda group: list(group)[1:])


def test_no_items_need_no_forward(lanes: Lanes) -> None:
    assert lanes.run([], list) == []


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (2, 2), (3, 4), (4, 4)])
def test_arrays_are_filled_up_with_zeros(lanes: Lanes, rows: int, size: int) -> None:
    padded = lanes.pad(np.ones((rows, 2), np.float32))
    assert padded.shape == (size, 2)
    assert padded.dtype == np.float32
    assert padded.sum() == 2 * rows
    assert padded[:rows].all()


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux")
def test_lanes_give_way_to_threads_that_only_pass_work_on(lanes: Lanes) -> None:
    def niceness(rows: Sequence[int]) -> list[int]:
        return [os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) for _ in rows]

    (own,) = niceness([0])
    assert min(lanes.run(range(4), niceness)) == max(own, 10)
