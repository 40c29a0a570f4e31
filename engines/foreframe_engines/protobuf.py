"""Protocol buffers as they lie in bytes: fields by number. Nothing is allocated by what a length claims."""

from collections.abc import Iterator

_VARINT, _BYTES, _FIXED = 0, 2, {1: 8, 5: 4}
_LONG = 0x80
"""Bytes from here on are not a number's last."""
_MAX_SHIFT = 63

Value = int | bytes


class Damaged(Exception):
    """The bytes are no message."""


def read_fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """Yield every field's number and value: varints as integers, anything else as the bytes it lies in.

    Raises Damaged for a length beyond the end, a number that never ends, and groups, which nothing writes any more.
    """
    place, end = 0, len(data)
    while place < end:
        key = data[place]
        place += 1
        if key >= _LONG:
            key, place = _read_varint(data, place - 1)
        kind = key & 7
        if kind in (_BYTES, _VARINT):
            if place < end and data[place] < _LONG:  # nearly always, and there are tens of thousands
                value, place = data[place], place + 1
            else:
                value, place = _read_varint(data, place)
            if kind == _VARINT:
                yield key >> 3, value
                continue
        elif kind in _FIXED:
            value = _FIXED[kind]
        else:
            raise Damaged
        start, place = place, place + value
        if place > end:
            raise Damaged
        yield key >> 3, data[start:place]


def read_integers(value: Value) -> list[int]:
    """Read one integer, or several packed ones. Raises Damaged."""
    if isinstance(value, int):
        return [value]
    place, found = 0, []
    while place < len(value):
        number, place = _read_varint(value, place)
        found.append(number)
    return found


def read_text(value: Value) -> str:
    """Read a text. Raises Damaged when it is none."""
    try:
        return read_message(value).decode()
    except UnicodeDecodeError as error:
        raise Damaged from error


def read_message(value: Value) -> bytes:
    """Return what holds bytes. Raises Damaged for an integer."""
    if isinstance(value, int):
        raise Damaged
    return value


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(data) and shift <= _MAX_SHIFT:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < _LONG:
            return value & 0xFFFF_FFFF_FFFF_FFFF, place
        shift += 7
    raise Damaged
