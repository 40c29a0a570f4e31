"""How results that hold arrays are printed: in one line, each array as its dtype and shape."""

from __future__ import annotations

from dataclasses import fields
from typing import Mapping

import numpy as np


class Short:
    """A dataclass with a short `repr`: arrays by dtype and shape, and without what is None or empty."""

    def __repr__(self) -> str:
        values = ((item.name, getattr(self, item.name)) for item in fields(self))  # type: ignore[arg-type]
        told = (f"{name}={_words(value)}" for name, value in values if not _is_nothing(value))
        return f"{type(self).__name__}({', '.join(told)})"


def _is_nothing(value: object) -> bool:
    return value is None or (isinstance(value, (tuple, Mapping)) and not value)


def _words(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_words(item)}" for key, item in value.items()) + "}"
    return repr(value)
