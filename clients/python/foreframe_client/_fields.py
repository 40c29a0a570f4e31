"""Typed reading of a decoded reply: a missing or mistyped field is a ProtocolError that names it. Knows no reply."""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional

import numpy as np

from foreframe_client._errors import ProtocolError


class Fields:
    """One map of a reply; `where` is its JSON pointer."""

    def __init__(self, value: object, where: str = "") -> None:
        if not isinstance(value, Mapping):
            raise ProtocolError(f"the reply's {where or 'body'} is not a map")
        self.document: Dict[str, object] = {str(name): item for name, item in value.items()}
        self.where = where

    def has(self, name: str) -> bool:
        """Say whether a field is there and not null."""
        return self.document.get(name) is not None

    def text(self, name: str) -> str:
        """Read a string."""
        value = self.document.get(name)
        if not isinstance(value, str):
            raise self._wrong(name, "a string")
        return value

    def integer(self, name: str) -> int:
        """Read a whole number."""
        value = self.document.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(name, "a whole number")
        return value

    def number(self, name: str) -> float:
        """Read a number."""
        value = self.document.get(name)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self._wrong(name, "a number")
        return float(value)

    def flag(self, name: str) -> bool:
        """Read true or false."""
        value = self.document.get(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def array(self, name: str, dtype: str, ndim: int) -> np.ndarray:
        """Read an array of exactly this dtype and number of axes, in the machine's byte order."""
        value = self.document.get(name)
        if not isinstance(value, np.ndarray) or value.dtype.name != dtype or value.ndim != ndim:
            raise self._wrong(name, f"a {dtype} array with {ndim} axes")
        return value.astype(dtype)

    def items(self, name: str) -> List[object]:
        """Read a list."""
        value = self.document.get(name)
        if not isinstance(value, list):
            raise self._wrong(name, "a list")
        return value

    def texts(self, name: str) -> List[str]:
        """Read a list of strings."""
        value = self.items(name)
        if not all(isinstance(item, str) for item in value):
            raise self._wrong(name, "a list of strings")
        return [str(item) for item in value]

    def optional_integer(self, name: str) -> Optional[int]:
        """Read a whole number that may be missing or null."""
        return self.integer(name) if self.has(name) else None

    def optional_number(self, name: str) -> Optional[float]:
        """Read a number that may be missing or null."""
        return self.number(name) if self.has(name) else None

    def numbers(self, name: str) -> List[float]:
        """Read a list of numbers."""
        value = self.items(name)
        if not all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in value):
            raise self._wrong(name, "a list of numbers")
        return [float(item) for item in value if isinstance(item, (int, float))]

    def maps(self, name: str) -> List[Fields]:
        """Read a list of maps."""
        return [Fields(item, f"{self.where}/{name}/{index}") for index, item in enumerate(self.items(name))]

    def map(self, name: str) -> Fields:
        """Read a map."""
        return Fields(self.document.get(name), f"{self.where}/{name}")

    def optional_map(self, name: str) -> Optional[Fields]:
        """Read a map that may be missing or null."""
        return self.map(name) if self.has(name) else None

    def optional_maps(self, name: str) -> List[Fields]:
        """Read a list of maps that may be missing or null, which is the empty list."""
        return self.maps(name) if self.has(name) else []

    def integer_lists(self, name: str) -> List[List[int]]:
        """Read a list of lists of whole numbers."""
        found = [item for item in self.items(name) if isinstance(item, list)]
        if len(found) != len(self.items(name)) or not all(type(number) is int for item in found for number in item):
            raise self._wrong(name, "a list of lists of whole numbers")
        return found

    def _wrong(self, name: str, expected: str) -> ProtocolError:
        return ProtocolError(f"the reply's {self.where}/{name} is not {expected}")
