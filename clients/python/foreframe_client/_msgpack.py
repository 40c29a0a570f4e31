"""The part of MessagePack that the wire uses: nil, bool, int, float, str, bin, array, map. Knows no arrays.

Strict: extension types, trailing bytes, unfinished values, invalid text, repeated or odd keys and deep nesting refuse.
Source: the MessagePack specification, https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

import struct
from typing import Callable, Dict, List, Mapping, Tuple, Union

Key = Union[str, bytes]
MAX_DEPTH = 32

_Buffer = Union[bytes, bytearray, memoryview]


def encode(value: object) -> bytes:
    """Encode a tree of None, bool, int, float, str, bytes-like, list or tuple, and maps with str or bytes keys.

    Raises TypeError for anything else, and ValueError for an int beyond 64 bits or a tree deeper than 32.
    """
    chunks: List[_Buffer] = []
    _put(value, chunks, 0)
    return b"".join(chunks)


def _put(value: object, out: List[_Buffer], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"values are nested deeper than {MAX_DEPTH}")
    if value is None or isinstance(value, bool):
        out.append({None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value])
    elif isinstance(value, int):
        out.append(_int(value))
    elif isinstance(value, float):
        out.append(b"\xcb" + struct.pack(">d", value))
    elif isinstance(value, str):
        text = value.encode()
        out += (_head(len(text), (0xA0, 32), (0xD9, 0xDA, 0xDB)), text)
    elif isinstance(value, (bytes, bytearray, memoryview)):
        view = memoryview(value).cast("B")
        out += (_head(len(view), (0, 0), (0xC4, 0xC5, 0xC6)), view)
    elif isinstance(value, (list, tuple)):
        out.append(_head(len(value), (0x90, 16), (None, 0xDC, 0xDD)))
        for item in value:
            _put(item, out, depth + 1)
    elif isinstance(value, Mapping):
        _put_map(value, out, depth)
    else:
        raise TypeError(f"{type(value).__name__} cannot be sent")


def _put_map(value: Mapping[object, object], out: List[_Buffer], depth: int) -> None:
    out.append(_head(len(value), (0x80, 16), (None, 0xDE, 0xDF)))
    for key, item in value.items():
        if not isinstance(key, (str, bytes)):
            raise TypeError(f"a key must be text, not {type(key).__name__}")
        _put(key, out, depth + 1)
        _put(item, out, depth + 1)


def _int(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack(">b", value)
    formats = ((0xCC, ">B"), (0xCD, ">H"), (0xCE, ">I"), (0xCF, ">Q"))
    if value < 0:
        formats = ((0xD0, ">b"), (0xD1, ">h"), (0xD2, ">i"), (0xD3, ">q"))
    for tag, code in formats:
        bits = 8 * struct.calcsize(code) - (value < 0)
        if -(1 << bits) <= value < (1 << bits):
            return bytes([tag]) + struct.pack(code, value)
    raise ValueError("an integer is beyond 64 bits")


def _head(length: int, fixed: Tuple[int, int], tags: Tuple[Union[int, None], int, int]) -> bytes:
    """Return the shortest header: `fixed` is (tag, limit), `tags` are those with 1, 2 and 4 bytes of length."""
    if length < fixed[1]:
        return bytes([fixed[0] | length])
    for tag, code, limit in ((tags[0], ">B", 1 << 8), (tags[1], ">H", 1 << 16), (tags[2], ">I", 1 << 32)):
        if tag is not None and length < limit:
            return bytes([tag]) + struct.pack(code, length)
    raise ValueError("a value is too long to send")


def decode(data: _Buffer) -> object:
    """Decode one value; bin values are views into `data`. Raises ValueError when `data` is not exactly one value."""
    reader = _Reader(memoryview(data).cast("B"))
    value = reader.value(0)
    if reader.position != len(reader.data):
        raise ValueError("bytes follow the value")
    return value


class _Reader:
    """Reads values one after another from a buffer."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.position = 0

    def value(self, depth: int) -> object:
        """Read the next value."""
        if depth > MAX_DEPTH:
            raise ValueError(f"values are nested deeper than {MAX_DEPTH}")
        tag = self._take(1)[0]
        if tag < 0x80 or tag >= 0xE0:
            return tag if tag < 0x80 else tag - 0x100
        if tag < 0xC0:
            return self._fixed(tag, depth)
        if tag in _CONSTANTS:
            return _CONSTANTS[tag]
        if tag in _NUMBERS:
            return self._number(_NUMBERS[tag])
        if tag in _SIZED:
            length_format, read = _SIZED[tag]
            return read(self, int(self._number(length_format)), depth)
        raise ValueError(f"type 0x{tag:02x} is not part of the wire")

    def _fixed(self, tag: int, depth: int) -> object:
        if tag < 0x90:
            return self.mapping(tag & 0x0F, depth)
        if tag < 0xA0:
            return self.array(tag & 0x0F, depth)
        return self.text(tag & 0x1F, depth)

    def _take(self, length: int) -> memoryview:
        end = self.position + length
        if end > len(self.data):
            raise ValueError("the value is cut short")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def _number(self, code: str) -> Union[int, float]:
        number: Union[int, float] = struct.unpack(code, self._take(struct.calcsize(code)))[0]
        return number

    def text(self, length: int, _depth: int) -> str:
        """Read `length` bytes of UTF-8."""
        return str(self._take(length), "utf-8")

    def binary(self, length: int, _depth: int) -> memoryview:
        """Read `length` bytes without a copy."""
        return self._take(length)

    def array(self, length: int, depth: int) -> List[object]:
        """Read `length` values."""
        return [self.value(depth + 1) for _ in range(length)]

    def mapping(self, length: int, depth: int) -> Dict[Key, object]:
        """Read `length` pairs."""
        pairs: Dict[Key, object] = {}
        for _ in range(length):
            key = self.value(depth + 1)
            key = bytes(key) if isinstance(key, memoryview) else key
            if not isinstance(key, (str, bytes)) or key in pairs:
                raise ValueError("a key is not text, or is repeated")
            pairs[key] = self.value(depth + 1)
        return pairs


_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_SIZED: Dict[int, Tuple[str, Callable[[_Reader, int, int], object]]] = {
    0xC4: (">B", _Reader.binary),
    0xC5: (">H", _Reader.binary),
    0xC6: (">I", _Reader.binary),
    0xD9: (">B", _Reader.text),
    0xDA: (">H", _Reader.text),
    0xDB: (">I", _Reader.text),
    0xDC: (">H", _Reader.array),
    0xDD: (">I", _Reader.array),
    0xDE: (">H", _Reader.mapping),
    0xDF: (">I", _Reader.mapping),
}
