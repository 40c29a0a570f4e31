"""Arrays as maps: `__ndarray__`, `data`, `dtype`, `shape`, as openpi writes them. Numbers only, never objects.

An array is a read-only view of the bytes that came; nothing is allocated for what a map claims.
"""

import base64
import math
from collections.abc import Mapping

import numpy as np

NDARRAY_KEY = "__ndarray__"
NPGENERIC_KEY = "__npgeneric__"
_DTYPES = {name: np.dtype(name) for name in ("|u1", "<f2", "<f4", "<f8", "<i4", "<i8")}
_DTYPES |= {dtype.name: dtype for dtype in _DTYPES.values()}
_MAX_AXES = 6


class DocumentError(ValueError):
    """A document breaks a rule of the wire; the message is for a person and repeats nothing of it."""


def array_of_map(fields: Mapping[str, object]) -> np.ndarray:
    """Return the array that a map stands for. Raises DocumentError when the map does not add up."""
    data, dtype, shape = fields.get("data"), _dtype(fields.get("dtype")), _shape(fields.get("shape"))
    if not isinstance(data, bytes | memoryview) or len(data) != math.prod(shape) * dtype.itemsize:
        raise DocumentError("an array's data is not as long as its dtype and shape say")
    return np.frombuffer(data, dtype).reshape(shape)


def scalar_of_map(fields: Mapping[str, object]) -> int | float | bool:
    """Return the number that a NumPy scalar's map stands for. Raises DocumentError when it holds none."""
    value = fields.get("data")
    if not isinstance(value, int | float):
        raise DocumentError("a scalar's data is not a number")
    return value


def _dtype(name: object) -> np.dtype[np.generic]:
    name = name.decode("ascii") if isinstance(name, bytes) else name
    if not isinstance(name, str) or name not in _DTYPES:
        raise DocumentError("an array's dtype is not one of the wire's")
    return _DTYPES[name]


def _shape(sizes: object) -> tuple[int, ...]:
    if not isinstance(sizes, list) or len(sizes) > _MAX_AXES:
        raise DocumentError("an array's shape is not a list of a few sizes")
    if not all(type(size) is int and 1 <= size < 2**31 for size in sizes):
        raise DocumentError("an array's shape must be whole numbers from 1")
    return tuple(sizes)


def map_for_msgpack(leaf: object) -> object:
    """Turn an array into openpi's map, whose keys are bytes. For `msgpack.packb(default=…)`."""
    array = _array(leaf)
    return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": list(array.shape)}


def map_for_json(leaf: object) -> object:
    """Turn bytes into base64, and an array into `dtype`, `shape`, `data`. For `json.dumps(default=…)`."""
    if isinstance(leaf, bytes):
        return base64.b64encode(leaf).decode("ascii")
    array = _array(leaf)
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": array.tobytes()}


def _array(leaf: object) -> np.ndarray:
    if not isinstance(leaf, np.ndarray):
        raise TypeError("a reply holds arrays, bytes and plain values only")
    return leaf
