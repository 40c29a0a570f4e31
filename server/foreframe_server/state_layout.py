"""How the states of a request are written: which column and unit each number of the schema stands in. Knows no wire."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64


@dataclass(frozen=True, slots=True)
class StateLayout:
    """Each tuple is empty, for rows as the schema has them, or has one entry a dimension of the schema.

    columns: where in a sent row the number stands. units: what it was sent in; factors: what turns that into the
    schema's unit.
    """

    columns: tuple[int, ...] = ()
    units: tuple[str, ...] = ()
    factors: tuple[float, ...] = ()

    def column(self, dimension: int) -> int:
        """Return where in a sent row a number of the schema stands."""
        return self.columns[dimension] if self.columns else dimension

    def dimension(self, column: int) -> int:
        """Return which number of the schema stands in a column of a sent row."""
        return self.columns.index(column) if self.columns else column

    def arrange(self, rows: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
        """Return sent rows in the schema's order and units; float64 where units were converted."""
        arranged = rows[..., list(self.columns)] if self.columns else rows
        return self._convert(arranged) if self.factors else arranged

    def _convert(self, rows: Float[np.ndarray, "*n d"]) -> Float64[np.ndarray, "*n d"]:
        with np.errstate(over="ignore", invalid="ignore"):
            return rows.astype(np.float64) * np.array(self.factors)

    def conversions(self, units: tuple[str, ...]) -> Counter[tuple[str, str]]:
        """Count the numbers that go from one unit to another; `units` are the schema's."""
        pairs = zip(self.units, units, strict=False)
        return Counter(pair for pair in pairs if pair[0] != pair[1])


AS_THE_SCHEMA = StateLayout()
"""Rows in the schema's own order and units."""
