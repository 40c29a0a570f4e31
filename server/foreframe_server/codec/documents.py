"""Bytes to one plain document and back: maps with text keys, lists, numbers, text, bytes and arrays.

A document is bounded before it is built, so that no body can hold the interpreter for long: few values, few keys a map,
little depth. Bulk data is one string or one array. Knows no field.
"""

import json
import math
from collections.abc import Sequence
from typing import NoReturn

import msgpack

from foreframe_server.codec.arrays import (
    NDARRAY_KEY,
    NPGENERIC_KEY,
    DocumentError,
    array_of_map,
    map_for_json,
    map_for_msgpack,
    scalar_of_map,
)
from foreframe_server.codec.media import Media
from foreframe_server.errors import InvalidRequest, Reason

MAX_KEYS = 64
MAX_DEPTH = 8
_MAX_LIST = 16_384
_MAX_DIGITS = 20
_CHUNK = 1 << 16

Document = dict[str, object]


def read_document(body: bytes | memoryview, media: Media, *, max_values: int) -> Document:
    """Read a body into a document whose outermost value is a map.

    Numbers may be NaN or infinite: whoever reads the field refuses them with its pointer. Raises InvalidRequest.
    """
    try:
        document = _read_json(bytes(body), max_values) if media is Media.JSON else _read_msgpack(body, max_values)
        _check_tree(document)
    except DocumentError as error:
        refuse_document(str(error))
    except (ValueError, RecursionError, OverflowError, msgpack.UnpackException):
        refuse_document(f"the body is not one whole {media} document")
    if not isinstance(document, dict):
        refuse_document("the body's outermost value must be an object")
    return document


def write_document(document: Document, media: Media) -> bytes:
    """Write a reply's document. Raises ValueError for numbers that are not finite."""
    if media is Media.MSGPACK:
        return msgpack.packb(document, default=map_for_msgpack)
    return json.dumps(document, default=map_for_json, allow_nan=False, separators=(",", ":")).encode("ascii")


def refuse_document(message: str, expected: str | None = None) -> NoReturn:
    """Refuse a whole body. Raises InvalidRequest."""
    detail = message[0].upper() + message[1:] + "."
    raise InvalidRequest(detail, reasons=[Reason("", message, expected)]) from None


def _read_json(body: bytes, max_values: int) -> object:
    # The parser holds the interpreter's lock from start to end, so what makes it slow is counted before it runs.
    for mark in (b",", b"\\", b"["):
        if _holds_more(body, mark, max_values):
            raise DocumentError(f"the body holds more than {max_values} values; send arrays as application/msgpack")
    return _JSON_DECODER.decode(body.decode())


def _holds_more(body: bytes, mark: bytes, limit: int) -> bool:
    count = 0
    for start in range(0, len(body), _CHUNK):
        count += body.count(mark, start, start + _CHUNK)
        if count > limit:
            return True
    return False


def _unique_keys(pairs: Sequence[tuple[str, object]]) -> Document:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise DocumentError("an object has a key twice")
    if len(pairs) > MAX_KEYS:
        raise DocumentError(f"an object has more than {MAX_KEYS} keys")
    return document


def _short_integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise DocumentError(f"a whole number has more than {_MAX_DIGITS} digits")
    return int(text)


_JSON_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_int=_short_integer, parse_constant=lambda _: math.nan
)


class _MsgpackBudget:
    """Counts what the unpacker has built, and turns its maps into documents and arrays."""

    def __init__(self, max_values: int) -> None:
        self._left = max_values

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise DocumentError("the body holds too many values; send numbers as arrays")

    def build_list(self, items: list[object]) -> list[object]:
        """Count a finished list."""
        self._spend(len(items) + 1)
        return items

    def build_map(self, pairs: Sequence[tuple[object, object]]) -> object:
        """Turn a finished map into a document, an array or a plain number."""
        self._spend(len(pairs) + 1)
        document = _unique_keys([(_text_key(key), value) for key, value in pairs])
        if NDARRAY_KEY in document:
            return array_of_map(document)
        return scalar_of_map(document) if NPGENERIC_KEY in document else document


def _text_key(key: object) -> str:
    if isinstance(key, bytes):
        return key.decode()
    if not isinstance(key, str):
        raise DocumentError("a map's keys must be text")
    return key


def _read_msgpack(body: bytes | memoryview, max_values: int) -> object:
    budget = _MsgpackBudget(max_values)
    return msgpack.unpackb(
        body,
        raw=False,
        strict_map_key=False,
        list_hook=budget.build_list,
        object_pairs_hook=budget.build_map,
        max_array_len=_MAX_LIST,
        max_map_len=MAX_KEYS,
        max_ext_len=0,
    )


def _check_tree(root: object) -> None:
    """Refuse deep documents and text that is no Unicode. A loop, so that depth costs no stack."""
    layer: list[object] = [root]
    for _ in range(MAX_DEPTH + 1):
        for value in layer:
            _check_text(value)
        layer = [child for value in layer for child in _children(value)]
        if not layer:
            return
    raise DocumentError(f"the body is nested deeper than {MAX_DEPTH}")


def _children(value: object) -> Sequence[object]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list) else ()


def _check_text(value: object) -> None:
    if isinstance(value, str) and not value.isascii():
        value.encode()  # a lone surrogate is a ValueError
