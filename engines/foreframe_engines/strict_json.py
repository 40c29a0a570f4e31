"""Strict reading of JSON records: exact keys, exact types, finite numbers, no key twice.

It knows nothing of what the records mean; every refusal is a BundleError that names the file and the key.
"""

import json
from collections.abc import Collection
from typing import NoReturn, TypeAlias

from foreframe_engines.errors import BundleError

Json: TypeAlias = dict[str, "Json"] | list["Json"] | str | int | float | bool | None

_LARGEST = 1e38
"""Beyond this a float32 is infinite."""


def parse_json(text: str, where: str) -> Json:
    """Parse one document. Raises BundleError for anything that is not strict JSON."""

    def refuse_constant(constant: str) -> NoReturn:
        raise BundleError(f"{where}: {constant} is not a number of JSON")

    def unique_keys(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        record = dict(pairs)
        if len(record) < len(pairs):
            raise BundleError(f"{where}: a key stands twice in one object")
        return record

    try:
        return json.loads(text, parse_constant=refuse_constant, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: not readable JSON: {error}") from error


class JsonRecord:
    """One JSON object with exactly the keys stated; each getter raises BundleError when the type is another.

    Optional keys may be absent; `has` tells.
    """

    def __init__(self, value: Json, where: str, keys: Collection[str], optional: Collection[str] = ()) -> None:
        if not isinstance(value, dict):
            raise BundleError(f"{where}: expected an object")
        if missing := [key for key in keys if key not in value]:
            raise BundleError(f"{where}: key {missing[0]!r} is missing")
        if unknown := [key for key in value if key not in keys and key not in optional]:
            raise BundleError(f"{where}: key {unknown[0]!r} is unknown")
        self._values = value
        self._where = where

    def at(self, key: str) -> str:
        """Name a key's place in its file."""
        return f"{self._where}: {key}"

    def has(self, key: str) -> bool:
        """Tell whether an optional key is there."""
        return key in self._values

    def value(self, key: str) -> Json:
        """Return a value of any type."""
        return self._values[key]

    def text(self, key: str) -> str:
        """Return a string that is not empty."""
        return _text(self._values[key], self.at(key))

    def count(self, key: str) -> int:
        """Return an integer of at least 1."""
        return _count(self._values[key], self.at(key))

    def number(self, key: str) -> float:
        """Return a finite number."""
        return _number(self._values[key], self.at(key))

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of strings, none empty."""
        return tuple(_text(item, self.at(key)) for item in self.items(key))

    def counts(self, key: str) -> tuple[int, ...]:
        """Return a list of integers of at least 1."""
        return tuple(_count(item, self.at(key)) for item in self.items(key))

    def numbers(self, key: str) -> tuple[float, ...]:
        """Return a list of finite numbers."""
        return tuple(_number(item, self.at(key)) for item in self.items(key))

    def items(self, key: str) -> list[Json]:
        """Return a list that is not empty."""
        value = self._values[key]
        if not isinstance(value, list) or not value:
            raise BundleError(f"{self.at(key)}: expected a list that is not empty")
        return value

    def record(self, key: str, keys: Collection[str], optional: Collection[str] = ()) -> "JsonRecord":
        """Return an object with exactly these keys, and perhaps optional ones."""
        return JsonRecord(self._values[key], self.at(key), keys, optional)

    def records(self, key: str, keys: Collection[str]) -> list["JsonRecord"]:
        """Return a list of objects with exactly these keys each."""
        return [JsonRecord(item, self.at(key), keys) for item in self.items(key)]


def _text(value: Json, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise BundleError(f"{where}: expected a string that is not empty")
    return value


def _count(value: Json, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BundleError(f"{where}: expected an integer of at least 1")
    return value


def _number(value: Json, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not -_LARGEST < value < _LARGEST:
        raise BundleError(f"{where}: expected a finite number")
    return float(value)
