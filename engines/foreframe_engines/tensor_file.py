"""Safetensors files as bytes: a header that is checked before anything else reads the file. Knows no model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foreframe_engines.errors import BundleError
from foreframe_engines.strict_json import Json, JsonRecord, parse_json

MAX_HEADER_BYTES = 2**24
MAX_TENSORS = 100_000
_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_KEYS = ("dtype", "shape", "data_offsets")
_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where one tensor lies: bytes `start` to `end` of the file. dtype: as the format names it, such as BF16."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TensorFile:
    """What a safetensors file holds, by the tensors' names, and the free text of its header."""

    tensors: Mapping[str, TensorPlace]
    metadata: Mapping[str, str]


def check_tensors(content: memoryview, where: str) -> TensorFile:
    """Read the header of a safetensors file.

    Raises BundleError for a header that is too large or no strict JSON, and for tensors that overlap, leave gaps, or
    have other sizes than their shapes and types.
    """
    header_end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    if len(content) < _LENGTH_BYTES or header_end > len(content):
        raise BundleError(f"{where} is not a whole safetensors file")
    if header_end - _LENGTH_BYTES > MAX_HEADER_BYTES:
        raise BundleError(f"{where}: the header has more than {MAX_HEADER_BYTES} bytes")
    header = _parse_header(content[_LENGTH_BYTES:header_end], where)
    metadata = _read_metadata(header.pop(_METADATA, {}), where)
    if len(header) > MAX_TENSORS:
        raise BundleError(f"{where} holds {len(header)} tensors; at most {MAX_TENSORS} are read")
    tensors = {name: _read_place(entry, f"{where}: {name!r}", header_end) for name, entry in header.items()}
    _require_no_gaps(tensors, header_end, len(content), where)
    return TensorFile(tensors, metadata)


def _parse_header(data: memoryview, where: str) -> dict[str, Json]:
    try:
        header = parse_json(bytes(data).decode(), where)
    except UnicodeDecodeError as error:
        raise BundleError(f"{where}: the header is not UTF-8 text") from error
    if not isinstance(header, dict):
        raise BundleError(f"{where}: the header is no object")
    return header


def _read_metadata(value: Json, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise BundleError(f"{where}: {_METADATA} is no object")
    texts = {key: text for key, text in value.items() if isinstance(text, str)}
    if len(texts) < len(value):
        raise BundleError(f"{where}: {_METADATA} holds other things than texts")
    return texts


def _read_place(entry: Json, where: str, header_end: int) -> TensorPlace:
    record = JsonRecord(entry, where, _KEYS)
    dtype, shape, span = record.text("dtype"), _numbers(record, "shape"), _numbers(record, "data_offsets")
    if dtype not in _ITEM_BYTES:
        raise BundleError(f"{record.at('dtype')}: {dtype!r} is not a type that is read")
    if len(span) != 2 or span[1] - span[0] != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise BundleError(f"{record.at('data_offsets')}: {list(span)} do not hold {dtype} {list(shape)}")
    return TensorPlace(dtype, shape, header_end + span[0], header_end + span[1])


def _numbers(record: JsonRecord, key: str) -> tuple[int, ...]:
    value = record.value(key)
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise BundleError(f"{record.at(key)}: expected a list of numbers that are not negative")
    return tuple(item for item in value if isinstance(item, int))


def _require_no_gaps(tensors: Mapping[str, TensorPlace], start: int, end: int, where: str) -> None:
    places: Sequence[tuple[str, TensorPlace]] = sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end))
    for name, place in places:
        if place.start != start:
            raise BundleError(f"{where}: {name!r} begins at byte {place.start}, the one before it ends at {start}")
        start = place.end
    if start != end:
        raise BundleError(f"{where} has {end} bytes, its tensors end at {start}")
