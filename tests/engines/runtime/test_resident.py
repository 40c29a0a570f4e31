"""Rows of device batches, on a device that is this process's memory and counts what it is asked for."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from foreframe_engines.runtime.resident import DeviceBatch, DeviceRow, RowInputs, Traffic, fill


class Memory:
    """Values are arrays; `gathers` counts the copies that were made of rows."""

    def __init__(self, name: str = "toy") -> None:
        self.name, self.traffic = name, Traffic()
        self.gathers = self.downloads = 0

    def view(self, value: np.ndarray, offset: int, shape: tuple[int, ...]) -> np.ndarray:
        return value.reshape(-1)[offset : offset + math.prod(shape)].reshape(shape)

    def gather(self, rows: Sequence[np.ndarray | DeviceRow], size: int) -> np.ndarray:
        self.gathers += 1
        values = np.empty((size, *rows[0].shape), rows[0].dtype)
        fill(values, rows)
        return values

    def download(self, value: np.ndarray) -> np.ndarray:
        self.downloads += 1
        return value.copy()

    def is_finite(self, value: np.ndarray) -> bool | None:
        return None


@pytest.fixture
def memory() -> Memory:
    return Memory()


VALUES = np.arange(4 * 2 * 3, dtype=np.float32).reshape(4, 2, 3)


def batch_of(memory: Memory, values: np.ndarray = VALUES) -> DeviceBatch:
    return DeviceBatch(values, values.shape, values.dtype, memory)


def test_a_row_serves_as_an_array_and_costs_one_copy_a_batch(memory: Memory) -> None:
    rows = batch_of(memory).rows(3)
    assert (rows[1].shape, rows[1].ndim, rows[1].size, rows[1].nbytes, len(rows[1])) == ((2, 3), 2, 6, 24, 2)
    np.testing.assert_array_equal(np.stack(rows), VALUES[:3])
    np.testing.assert_array_equal(rows[2][1:], VALUES[2, 1:])
    np.testing.assert_array_equal(np.concatenate([rows[0], rows[2]]), np.concatenate([VALUES[0], VALUES[2]]))
    assert rows[1].tobytes() == VALUES[1].tobytes()
    assert np.asarray(rows[1], np.float64).dtype == np.float64
    assert memory.downloads == 1


def test_a_copy_on_the_host_is_nobodys_to_change(memory: Memory) -> None:
    (row,) = batch_of(memory).rows(1)
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(row)[0] = 0
    np.array(row)[0] = 0
    np.testing.assert_array_equal(row, VALUES[0])


def test_parts_of_a_row_stay_on_the_device(memory: Memory) -> None:
    row = batch_of(memory).rows(4)[2]
    for part, expected in ((row[1], VALUES[2, 1]), (row[-1], VALUES[2, -1]), (row[None], VALUES[2][None])):
        assert isinstance(part, DeviceRow)
        np.testing.assert_array_equal(part.value, expected)
    assert memory.downloads == 0
    with pytest.raises(IndexError):
        row[2]


def test_rows_that_lie_together_are_read_where_they_are(memory: Memory) -> None:
    inputs, rows = RowInputs(memory), batch_of(memory).rows(4)
    for start, stop, size in ((0, 4, 4), (0, 3, 4), (1, 3, 2), (1, 2, 1)):
        value = inputs.bring("x", rows[start:stop], size, is_lasting=False)
        assert np.shares_memory(value, VALUES)
        np.testing.assert_array_equal(value, VALUES[start : start + size])
    assert memory.gathers == 0


def test_parts_that_follow_each_other_across_rows_are_read_where_they_are(memory: Memory) -> None:
    rows = batch_of(memory).rows(4)
    frames = [row[index] for row in rows[1:3] for index in range(2)]
    value = RowInputs(memory).bring("x", frames, 4, is_lasting=False)
    np.testing.assert_array_equal(value, VALUES[1:3].reshape(4, 3))
    assert memory.gathers == 0


def test_everything_else_is_brought_together_with_zeros_behind_it(memory: Memory) -> None:
    inputs, rows = RowInputs(memory), batch_of(memory).rows(4)
    other = batch_of(Memory("elsewhere"), VALUES + 100).rows(4)
    again = batch_of(memory).rows(4)
    companies = [
        [rows[1], rows[0]],
        [rows[0], rows[2]],
        [rows[0], again[1]],
        [rows[0], VALUES[1]],
        [VALUES[0], rows[1]],
        other[:2],
        rows[2:],  # with room for two where four are wanted
    ]
    for company in companies:
        value = inputs.bring("x", company, 4, is_lasting=False)
        np.testing.assert_array_equal(value[:2], np.stack(company))
        assert not value[2:].any()
    assert memory.gathers == len(companies)


def test_lasting_rows_are_brought_once_until_others_come(memory: Memory) -> None:
    inputs, table, other = RowInputs(memory), VALUES.copy(), VALUES.copy()
    for rows in ([table[0]] * 2, [table[0]] * 2, [other[0]] * 2, [table[0]] * 2, [table[0], table[1]]):
        np.testing.assert_array_equal(inputs.bring("x", rows, 2, is_lasting=True), np.stack(rows))
    assert memory.gathers == 4
    inputs.bring("y", [table[0], table[1]], 2, is_lasting=True)
    inputs.bring("x", [table[0], table[1]], 4, is_lasting=True)
    inputs.bring("x", [table[0], table[1]], 2, is_lasting=True)
    assert memory.gathers == 6


def test_rows_that_change_are_not_taken_for_lasting_ones(memory: Memory) -> None:
    inputs, values = RowInputs(memory), VALUES.copy()
    inputs.bring("x", [values[0]], 1, is_lasting=False)
    values += 1
    np.testing.assert_array_equal(inputs.bring("x", [values[0]], 1, is_lasting=False), values[:1])


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_row_tells_of_its_own_numbers_alone(memory: Memory, poison: float) -> None:
    values = VALUES.copy()
    values[1, 0, 0] = poison
    assert [row.is_finite() for row in batch_of(memory, values).rows(3)] == [True, False, True]
    assert memory.downloads == 1
