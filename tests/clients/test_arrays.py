from __future__ import annotations

import numpy as np
import pytest

from foreframe_client._arrays import pack_array, unpack_arrays
from foreframe_client._msgpack import decode, encode


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(3,), (2, 4, 5, 3), (0, 3)])
def test_arrays_survive_the_wire(dtype, shape):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    back = unpack_arrays(decode(encode({"a": [pack_array(array)]})))["a"][0]
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_views_with_strides_are_sent_in_order():
    array = np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::-1].T
    np.testing.assert_array_equal(unpack_arrays(decode(encode(pack_array(array)))), array)


def test_contiguous_arrays_are_not_copied_before_they_are_sent():
    array = np.zeros((8, 8), np.uint8)
    assert np.shares_memory(np.frombuffer(pack_array(array)["data"], np.uint8), array)


def test_keys_may_be_bytes_as_openpi_writes_them():
    fields = {b"__ndarray__": True, b"data": b"\x01\x02", b"dtype": "|u1", b"shape": [2]}
    assert unpack_arrays(decode(encode({"x": fields})))["x"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "|O"},
        {"dtype": "O"},
        {"dtype": "V4"},
        {"dtype": "<U4"},
        {"dtype": "no such"},
        {"dtype": [["a", "<f4"]]},
        {"shape": [3]},
        {"shape": [-1]},
        {"shape": [True, 2]},
        {"shape": [2**62, 4]},
        {"shape": "2"},
        {"data": b"\x00"},
        {"data": "\x00\x01"},
        {"data": None},
    ],
)
def test_maps_that_are_no_array_of_numbers_are_refused(change):
    fields = {**pack_array(np.array([1, 2], np.uint8)), **change}
    with pytest.raises(ValueError, match="array"):
        unpack_arrays(decode(encode(fields)))
