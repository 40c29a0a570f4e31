"""Arrays as maps on the wire (openpi's `__ndarray__`, `data`, `dtype`, `shape`). Numbers only, never objects."""

from __future__ import annotations

import base64
import math
from typing import Dict, Mapping, Tuple

import numpy as np

_NUMBERS = ("uint8", "int32", "int64", "float16", "float32", "float64")
_DTYPES: Dict[str, np.dtype[np.generic]] = {
    name: dtype for dtype in map(np.dtype, _NUMBERS) for name in (dtype.name, dtype.str, dtype.newbyteorder("<").str)
}
"""Each by its name and as numpy writes it, little-endian."""
_JSON_KEYS = {"dtype", "shape", "data"}


def pack_array(array: np.ndarray) -> Dict[str, object]:
    """Return the map that stands for an array; its data is a view when the array is contiguous."""
    contiguous = np.ascontiguousarray(array)
    view = contiguous.data.cast("B") if contiguous.size else b""
    return {"__ndarray__": True, "data": view, "dtype": contiguous.dtype.str, "shape": list(array.shape)}


def unpack_arrays(value: object) -> object:
    """Replace every array map in a decoded tree by its array, and every key by text.

    The arrays are read-only views. Raises ValueError for a map that is no array of numbers.
    """
    if isinstance(value, list):
        return [unpack_arrays(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    named = {key.decode() if isinstance(key, bytes) else key: item for key, item in value.items()}
    if "__ndarray__" in named:
        return _array(named)
    return {key: unpack_arrays(item) for key, item in named.items()}


def array_of_json(fields: Dict[str, object]) -> object:
    """Return the array that a map of a JSON reply stands for (`dtype`, `shape`, base64 `data`), or the map as it is.

    For `json.loads(object_hook=...)`. The array is a read-only view. Raises ValueError for one that does not add up.
    """
    if fields.keys() != _JSON_KEYS or not isinstance(fields["shape"], list):
        return fields
    return _array({**fields, "data": memoryview(base64.b64decode(str(fields["data"]), validate=True))})


def _array(fields: Mapping[str, object]) -> np.ndarray:
    data, dtype, shape = fields.get("data"), _dtype(fields.get("dtype")), _shape(fields.get("shape"))
    if not isinstance(data, memoryview) or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError("an array's data is not as long as its shape says")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _dtype(name: object) -> np.dtype[np.generic]:
    dtype = _DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise ValueError("an array's dtype is not one of the wire's")
    return dtype


def _shape(sizes: object) -> Tuple[int, ...]:
    known = tuple(size for size in sizes if type(size) is int and size >= 0) if isinstance(sizes, list) else ()
    if not isinstance(sizes, list) or len(known) != len(sizes):
        raise ValueError("an array's shape must be whole numbers")
    return known
