import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from foreframe_engines import BundleError
from foreframe_engines.tensor_file import MAX_HEADER_BYTES, MAX_TENSORS, check_tensors


def pack(header: object, data: bytes = b"") -> memoryview:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return memoryview(len(text).to_bytes(8, "little") + text + data)


def place(start: int, end: int, shape: Any = None, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


def test_what_the_library_writes_is_read_with_its_places() -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array(True),
        "none": np.zeros((0, 4), np.int64),
    }
    content = memoryview(save(arrays, {"base": "abc"}))
    found = check_tensors(content, "w")
    assert found.metadata == {"base": "abc"}
    assert found.tensors["a"].dtype == "F32"
    for name, values in arrays.items():
        tensor = found.tensors[name]
        assert tensor.shape == values.shape
        assert content[tensor.start : tensor.end] == values.tobytes()


HOSTILE = {
    "short": (memoryview(b"\1\0\0"), "not a whole"),
    "length beyond the end": (memoryview((2**60).to_bytes(8, "little") + b"{}"), "not a whole"),
    "no JSON": (pack(b"{"), "not readable JSON"),
    "no text": (pack(b"\xff\xfe"), "not UTF-8"),
    "a list": (pack([]), "no object"),
    "a name twice": (pack(b'{"a": 1, "a": 2}'), "stands twice"),
    "metadata no texts": (pack({"__metadata__": {"a": 1}}), "other things than texts"),
    "unknown type": (pack({"a": place(0, 1, dtype="PICKLE")}, b"x"), "'PICKLE' is not a type"),
    "unknown key": (pack({"a": place(0, 1) | {"code": "x"}}, b"x"), "'code' is unknown"),
    "negative": (pack({"a": place(0, 1, [-1, -1])}, b"x"), "not negative"),
    "a truth as length": (pack({"a": place(0, 1, [True])}, b"x"), "not negative"),
    "product of 2**64": (pack({"a": place(0, 0, [2**32, 2**32])}), "do not hold U8"),
    "three offsets": (pack({"a": place(0, 1) | {"data_offsets": [0, 1, 2]}}, b"x"), "do not hold"),
    "backwards": (pack({"a": place(1, 0, [1])}, b"x"), "do not hold"),
    "overlap": (pack({"a": place(0, 2), "b": place(1, 3)}, b"xyz"), "'b' begins at"),
    "gap": (pack({"a": place(0, 1), "b": place(2, 3)}, b"xyz"), "'b' begins at"),
    "gap before": (pack({"a": place(1, 2)}, b"xy"), "'a' begins at"),
    "bytes behind": (pack({"a": place(0, 1)}, b"xyz"), "its tensors end at"),
    "beyond the end": (pack({"a": place(0, 9)}, b"x"), "its tensors end at"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_header_that_lies_is_refused(name: str) -> None:
    content, words = HOSTILE[name]
    with pytest.raises(BundleError, match=words):
        check_tensors(content, "w")


def test_a_header_that_is_too_large_is_not_parsed() -> None:
    with pytest.raises(BundleError, match=f"more than {MAX_HEADER_BYTES} bytes"):
        check_tensors(pack(b" " * (MAX_HEADER_BYTES + 1)), "w")


def test_too_many_tensors_are_refused() -> None:
    header = {str(number): place(0, 0) for number in range(MAX_TENSORS + 1)}
    with pytest.raises(BundleError, match=f"{MAX_TENSORS + 1} tensors"):
        check_tensors(pack(header), "w")


WHOLE = save({"a": np.arange(6, dtype=np.float32), "b": np.zeros((2, 2), np.uint8)})


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
def test_any_other_byte_gives_a_refusal_or_places_inside_the_file(at: int, byte: int) -> None:
    content = bytearray(WHOLE)
    content[at] = byte
    try:
        found = check_tensors(memoryview(content), "w")
    except BundleError:
        return
    assert all(8 <= tensor.start <= tensor.end <= len(content) for tensor in found.tensors.values())
