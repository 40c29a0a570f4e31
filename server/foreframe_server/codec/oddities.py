"""What looks odd about states that can be served all the same. Knows a schema's statistics and no request."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float32, Float64, Int64

from foreframe_engines import StateSchema
from foreframe_server.schemas import Warned
from foreframe_server.state_layout import AS_THE_SCHEMA, StateLayout
from foreframe_server.units import conversion, kindred_units

MAX_SIGMA = 6.0
_MAX_REPORTED = 8
_MIN_STD = 1e-6
_RANGE_MARGIN = 0.05
_NEAR, _FAR = 4.0, 8.0
_MIN_SMALL = 3
_USUAL_ANGLE = 1.0
_DOUBTED = frozenset({"rad", "deg", "m", "cm", "mm", "1", "%"})


def find_outliers(
    states: Float32[np.ndarray, "n d"],
    schema: StateSchema,
    pointers: Sequence[str],
    layouts: Sequence[StateLayout] = (),
) -> list[Warned]:
    """Warn of each dimension that leaves the training data by more than MAX_SIGMA deviations, at most 8, worst first.

    pointers: where each row came from. layouts: how each was written, where not as the schema has it.
    """
    sigmas = np.abs(states.astype(np.float64) - schema.mean) / np.maximum(schema.std, _MIN_STD)
    if not (sigmas > MAX_SIGMA).any():
        return []
    worst_rows = sigmas.argmax(axis=0)
    worst = sigmas.max(axis=0)
    columns = [int(column) for column in np.argsort(-worst)[:_MAX_REPORTED] if worst[column] > MAX_SIGMA]
    return [
        Warned(
            code="state_out_of_range",
            pointer=_pointer(pointers, layouts, int(worst_rows[column]), column),
            message=f"{schema.names[column]} is {worst[column]:.1f} sigma from its mean in the training data",
            sigma=round(float(worst[column]), 3),
        )
        for column in columns
    ]


def _pointer(pointers: Sequence[str], layouts: Sequence[StateLayout], row: int, dim: int) -> str:
    layout = layouts[row] if layouts else AS_THE_SCHEMA
    return f"{pointers[row]}/{layout.column(dim)}"


def find_outside(
    states: Float32[np.ndarray, "n d"], schema: StateSchema, pointer: str, layout: StateLayout
) -> list[Warned]:
    """Warn of each dimension without statistics that leaves its range by more than 5 % of it, at most 8."""
    with np.errstate(invalid="ignore"):
        margin = (schema.high - schema.low) * _RANGE_MARGIN
        is_outside = (states < schema.low - margin) | (states > schema.high + margin)
    is_judged = ~np.isfinite(schema.std) & np.isfinite(margin)
    wrong = [int(dim) for dim in np.flatnonzero(is_outside.any(axis=0) & is_judged)[:_MAX_REPORTED]]
    return [
        Warned(
            code="state_out_of_range",
            pointer=f"{pointer}/{int(is_outside[:, dim].argmax())}/{layout.column(dim)}",
            message=f"{schema.names[dim]} lies outside {schema.low[dim]:g}..{schema.high[dim]:g} {schema.units[dim]}",
        )
        for dim in wrong
    ]


def find_flat(states: Float32[np.ndarray, "n d"], pointer: str) -> list[Warned]:
    """Warn when every row is the same: often a buffer that was never filled."""
    if len(states) < 2 or not (states == states[0]).all():
        return []
    return [Warned(code="state_flat", pointer=pointer, message="every row of the states is the same")]


def find_unit_doubts(states: Float32[np.ndarray, "n d"], schema: StateSchema, pointer: str) -> list[Warned]:
    """Warn of units whose numbers have, all together, another size than usual, as if they were in another unit.

    Degrees for radians are 57 times too large; radians for degrees are suspiciously flat. One warning a unit.
    """
    warnings = []
    for known in _known_units(schema):
        words = _Sizes.of(states, known).doubt()
        if words is not None:
            warnings.append(Warned(code="units_suspicious", pointer=pointer, message=words))
    return warnings


def _usual_sizes(schema: StateSchema) -> Float64[np.ndarray, " d"]:
    """Return the root mean square of each dimension: of the data, else of its range, else of any robot's angles."""
    low, high = schema.low.astype(np.float64), schema.high.astype(np.float64)
    with np.errstate(invalid="ignore"):
        of_data = np.hypot(schema.mean.astype(np.float64), schema.std)
        of_range = np.sqrt((low**2 + low * high + high**2) / 3)
    angles = [conversion("rad", unit) if unit in ("rad", "deg") else None for unit in schema.units]
    of_angles = np.array([math.nan if factor is None else factor * _USUAL_ANGLE for factor in angles])
    sizes = np.where(np.isfinite(of_range), of_range, of_angles)
    return np.where(np.isfinite(of_data), of_data, sizes)


@dataclass(frozen=True, slots=True, eq=False)
class _KnownUnit:
    """The dimensions of one unit that have a usual size, and how large they usually are together."""

    unit: str
    dims: Int64[np.ndarray, " d"]
    usual: float


@lru_cache(maxsize=64)
def _known_units(schema: StateSchema) -> tuple[_KnownUnit, ...]:
    usual = _usual_sizes(schema)
    units = []
    for unit in sorted(_DOUBTED.intersection(schema.units)):
        dims = np.flatnonzero([name == unit and math.isfinite(usual[dim]) for dim, name in enumerate(schema.units)])
        expected = float(np.sqrt(np.mean(usual[dims] ** 2))) if len(dims) else 0.0
        units.append(_KnownUnit(unit, dims, expected))
    return tuple(units)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """The numbers of one unit: how many a row has, how large they are, and how large they usually are."""

    unit: str
    count: int
    size: float
    largest: float
    usual: float

    @classmethod
    def of(cls, states: Float32[np.ndarray, "n d"], known: _KnownUnit) -> "_Sizes":
        """Measure the numbers of one unit; those without a usual size count for nothing."""
        numbers = states[:, known.dims].astype(np.float64).ravel()
        if not numbers.size:
            return cls(known.unit, 0, 0.0, 0.0, 0.0)
        size = math.sqrt(numbers.dot(numbers) / numbers.size)
        largest = max(float(numbers.max()), -float(numbers.min()))
        return cls(known.unit, len(known.dims), size, largest, known.usual)

    def doubt(self) -> str | None:
        """Say which unit the numbers seem to be in, where their size fits another one far better than their own."""
        if not self.size or not self.usual or 1 / _FAR <= self.size / self.usual <= _FAR:
            return None
        fits = {other: self._misfit(other) for other in kindred_units(self.unit)[1:]}
        best = min(fits, key=lambda other: fits[other])
        if fits[best] > _NEAR or self._is_possible():
            return None
        ratio = self.size / self.usual
        words = f"{ratio:.0f} times larger" if ratio > 1 else f"{1 / ratio:.0f} times smaller"
        return f"the {self.count} numbers in {self.unit} are {words} than usual: they look like {best}"

    def _misfit(self, other: str) -> float:
        """By how much the numbers, taken for ones in another unit, miss the usual size: 1 is not at all."""
        ratio = self.size / self.usual * (conversion(other, self.unit) or math.inf)
        return max(ratio, 1 / ratio)

    def _is_possible(self) -> bool:
        """Whether the numbers may well be what they are said to be: within a turn, or few of them near zero."""
        if self.size > self.usual:
            return self.unit == "rad" and self.largest <= 2 * math.pi
        return self.count < _MIN_SMALL
