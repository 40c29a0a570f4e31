"""Joint states by name to rows of a model's state, in its order and units. Knows no ROS and no topics.

ROS gives radians and metres (REP 103); what the model's schema has in other units is converted here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from foreframe_ros2.errors import ConversionError
from foreframe_ros2.messages import JointState, seconds_of

if TYPE_CHECKING:
    from jaxtyping import Float32

_FIELDS = ("position", "velocity", "effort")
_FROM_SI: Mapping[str, float] = {
    "rad": 1.0, "deg": 180 / math.pi, "m": 1.0, "cm": 100.0, "mm": 1000.0, "1": 1.0, "%": 100.0, "rad/s": 1.0,
    "deg/s": 180 / math.pi, "m/s": 1.0, "cm/s": 100.0, "mm/s": 1000.0,
}  # fmt: skip


@dataclass(frozen=True)
class JointSource:
    """One number of a state comes from a field of a joint: times `factor` it is in the schema's unit."""

    joint: str
    field: str
    factor: float


@dataclass(frozen=True)
class StampedRow:
    """A state at a time, in seconds of the messages' clock."""

    time_s: float
    row: Float32[np.ndarray, " d"]


@dataclass(frozen=True)
class StateMap:
    """Where each number of a state comes from, in the schema's order: a joint, or a constant in the schema's unit."""

    sources: tuple[JointSource | float, ...]

    @property
    def joints(self) -> frozenset[tuple[str, str]]:
        """Every joint and field that is needed."""
        return frozenset((each.joint, each.field) for each in self.sources if isinstance(each, JointSource))

    def row(self, values: Mapping[tuple[str, str], float]) -> Float32[np.ndarray, " d"]:
        """Make a row of the values of all needed joints, in SI units. Raises ConversionError naming one that lacks."""
        row = np.array([self._number(source, values) for source in self.sources], np.float64)
        return row.astype(np.float32)

    @staticmethod
    def _number(source: JointSource | float, values: Mapping[tuple[str, str], float]) -> float:
        if not isinstance(source, JointSource):
            return source
        value = values.get((source.joint, source.field))
        if value is None:
            raise ConversionError(f"joint {source.joint!r} has no {source.field}")
        return value * source.factor


def parse_state_map(entries: Sequence[str], names: Sequence[str], units: Sequence[str]) -> StateMap:
    """Read the node's parameter: `NAME=joint`, `NAME=joint:velocity`, or `NAME==0.5` for a constant.

    names, units: the schema's. Raises ConversionError when a name is unknown, missing or there twice.
    """
    given: dict[str, str] = {}
    for entry in entries:
        name, separator, rest = entry.partition("=")
        if not separator or not rest:
            raise ConversionError(f"{entry!r} is not of the form NAME=joint")
        if name not in names or name in given:
            raise ConversionError(f"{name!r} is {'there twice' if name in given else 'no number of the state'}")
        given[name] = rest
    missing = [name for name in names if name not in given]
    if missing:
        raise ConversionError(f"the state's {missing[0]!r} comes from nowhere, and {len(missing) - 1} others")
    return StateMap(tuple(_parse_source(given[name], unit) for name, unit in zip(names, units, strict=True)))


def _parse_source(text: str, unit: str) -> JointSource | float:
    if text.startswith("="):
        return _parse_constant(text[1:])
    joint, separator, field_name = text.rpartition(":")
    if not separator:
        joint, field_name = text, "position"
    if not joint or field_name not in _FIELDS:
        raise ConversionError(f"{text!r} is not of the form joint, or joint: and one of {', '.join(_FIELDS)}")
    if unit not in _FROM_SI:
        raise ConversionError(f"joint {joint!r}: radians or metres cannot be converted to {unit!r}")
    return JointSource(joint, field_name, _FROM_SI[unit])


def _parse_constant(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ConversionError(f"{text!r} is no number") from None
    if not math.isfinite(value):
        raise ConversionError(f"{text!r} is not finite")
    return value


def values_of(message: JointState) -> dict[tuple[str, str], float]:
    """Read every joint's fields, in SI units. Raises ConversionError for arrays of unequal length or odd numbers."""
    names = list(message.name)
    if len(set(names)) < len(names):
        raise ConversionError("a joint state names a joint twice")
    values: dict[tuple[str, str], float] = {}
    for field_name in _FIELDS:
        numbers = getattr(message, field_name)
        if len(numbers) not in (0, len(names)):
            raise ConversionError(f"a joint state has {len(names)} names and {len(numbers)} numbers of {field_name}")
        named = zip(names, numbers, strict=True) if len(numbers) else ()
        values.update({(name, field_name): float(number) for name, number in named})
    return values


@dataclass
class StateAssembler:
    """Puts together states whose joints come in several messages, arms apart from grippers for instance.

    max_age_s: how much older than the newest message any number of a row may be.
    """

    state_map: StateMap
    max_age_s: float = 0.1
    _values: dict[tuple[str, str], float] = field(default_factory=dict, init=False)
    _times_s: dict[tuple[str, str], float] = field(default_factory=dict, init=False)

    def push(self, message: JointState) -> StampedRow | None:
        """Take a message; return the state at its time once every joint is known and of its time.

        Raises ConversionError when a needed number is not finite.
        """
        time_s, needed = seconds_of(message.header.stamp), self.state_map.joints
        for key, value in values_of(message).items():
            if key not in needed:
                continue
            if not math.isfinite(value):
                raise ConversionError(f"joint {key[0]!r} has a {key[1]} that is not finite")
            self._values[key], self._times_s[key] = value, time_s
        if any(abs(time_s - self._times_s.get(key, -math.inf)) > self.max_age_s for key in needed):
            return None
        return StampedRow(time_s, self.state_map.row(self._values))
