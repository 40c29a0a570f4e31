"""Units of the numbers in a state: which measure the same thing, and by how much they differ. Knows no schema."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Quantity(StrEnum):
    """What a unit measures."""

    ANGLE = "angle"
    LENGTH = "length"
    SHARE = "share"
    SPEED = "speed"
    TURN_RATE = "turn rate"


@dataclass(frozen=True, slots=True)
class _Unit:
    """`scale` is the unit's size in the first unit of its quantity."""

    quantity: Quantity
    scale: float


_DEGREE = math.pi / 180
_UNITS: Mapping[str, _Unit] = {
    "rad": _Unit(Quantity.ANGLE, 1.0),
    "deg": _Unit(Quantity.ANGLE, _DEGREE),
    "m": _Unit(Quantity.LENGTH, 1.0),
    "cm": _Unit(Quantity.LENGTH, 0.01),
    "mm": _Unit(Quantity.LENGTH, 0.001),
    "1": _Unit(Quantity.SHARE, 1.0),
    "%": _Unit(Quantity.SHARE, 0.01),
    "m/s": _Unit(Quantity.SPEED, 1.0),
    "cm/s": _Unit(Quantity.SPEED, 0.01),
    "mm/s": _Unit(Quantity.SPEED, 0.001),
    "rad/s": _Unit(Quantity.TURN_RATE, 1.0),
    "deg/s": _Unit(Quantity.TURN_RATE, _DEGREE),
}


def conversion(source: str, target: str) -> float | None:
    """Return what a number in `source` is multiplied by to be one in `target`.

    None where they measure different things. A unit that is not known converts to itself only.
    """
    if source == target:
        return 1.0
    here, there = _UNITS.get(source), _UNITS.get(target)
    if here is None or there is None or here.quantity is not there.quantity:
        return None
    return here.scale / there.scale


def kindred_units(unit: str) -> tuple[str, ...]:
    """List the units that convert to this one, itself first."""
    known = _UNITS.get(unit)
    if known is None:
        return (unit,)
    return (unit, *(name for name, other in _UNITS.items() if name != unit and other.quantity is known.quantity))
