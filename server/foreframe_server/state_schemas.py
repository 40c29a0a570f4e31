"""State vectors of known robots, by name: what each number is, in which unit, and who says so.

A schema here needs no model. What the sources do not say is left out; what was not looked up anew is marked "from
memory of public documentation" in `source`. Knows no wire and no engine.
"""

import math
import re
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from foreframe_engines import StateSchema

MAX_GENERIC = 1024
GENERIC = "generic-N"
_GENERIC_NAME = re.compile(r"generic-([1-9][0-9]{0,3})")


class UnitSource(StrEnum):
    """Whether the robot's documentation states a unit, or it was concluded from its numbers."""

    STATED = "stated"
    ASSUMED = "assumed"


class Semantics(StrEnum):
    """What the ends of a gripper's range mean, whatever unit it is in."""

    OPEN_TO_CLOSED = "0_open_1_closed"
    CLOSED_TO_OPEN = "0_closed_1_open"


@dataclass(frozen=True, slots=True)
class Dimension:
    """One number of a state; `low` and `high` are the mechanical or defined range in its unit, where one is known."""

    name: str
    unit: str
    unit_source: UnitSource = UnitSource.STATED
    low: float | None = None
    high: float | None = None
    semantics: Semantics | None = None


@dataclass(frozen=True, slots=True)
class Typical:
    """Mean and standard deviation of one dimension in recordings of the robot."""

    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class RegisteredSchema:
    """A state vector by name. `typical` is empty, or has one entry a dimension; `rate_hz` is that of its recordings."""

    name: str
    description: str
    source: str
    dimensions: tuple[Dimension, ...]
    rate_hz: float | None = None
    typical: tuple[Typical, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The dimensions' names, in order."""
        return tuple(dimension.name for dimension in self.dimensions)

    @property
    def units(self) -> tuple[str, ...]:
        """The dimensions' units, in order."""
        return tuple(dimension.unit for dimension in self.dimensions)

    def as_state_schema(self) -> StateSchema:
        """Write it as a model's schema; what is not known of a number is a deviation or a range without end."""
        dimensions = self.dimensions
        unknown = (Typical(0.0, math.inf),) * len(dimensions)
        typical = self.typical or unknown
        return StateSchema(
            name=self.name,
            names=self.names,
            units=self.units,
            mean=np.array([each.mean for each in typical], np.float32),
            std=np.array([each.std for each in typical], np.float32),
            low=np.array([-math.inf if each.low is None else each.low for each in dimensions], np.float32),
            high=np.array([math.inf if each.high is None else each.high for each in dimensions], np.float32),
        )


def registered_schemas() -> tuple[RegisteredSchema, ...]:
    """List every schema that has a name of its own; `generic-N` is none of them."""
    return (_one_x_eve(), _aloha(), _droid(), _so101(), _unitree_g1())


def find_schema(name: str) -> RegisteredSchema | None:
    """Find a schema by name; of `generic-N` there is one for each N from 1 to MAX_GENERIC."""
    generic = _GENERIC_NAME.fullmatch(name)
    if generic is not None:
        dim = int(generic[1])
        return _generic(dim) if dim <= MAX_GENERIC else None
    return next((schema for schema in registered_schemas() if schema.name == name), None)


def is_generic(name: str) -> bool:
    """Whether a schema's numbers have no names of their own, so that whoever sends them must give some."""
    return _GENERIC_NAME.fullmatch(name) is not None


def find_kin(names: tuple[str, ...]) -> RegisteredSchema | None:
    """Find the schema whose numbers have these names in this order."""
    return next((schema for schema in registered_schemas() if schema.names == names), None)


def _generic(dim: int) -> RegisteredSchema:
    return RegisteredSchema(
        name=f"generic-{dim}",
        description=f"{dim} numbers of any robot. A request gives their names, and their units where they have any.",
        source="whoever sends them",
        dimensions=tuple(Dimension(f"dim_{index}", "1", UnitSource.ASSUMED) for index in range(dim)),
    )


_EVE_JOINTS = (
    ("HIP_YAW", 0.0012, 0.0549), ("HIP_ROLL", -0.0068, 0.0293), ("HIP_PITCH", -0.2305, 0.1604),
    ("KNEE_PITCH", 0.2757, 0.2619), ("ANKLE_ROLL", 0.0047, 0.0183), ("ANKLE_PITCH", -0.0387, 0.1122),
    ("LEFT_SHOULDER_PITCH", 0.1643, 0.3396), ("LEFT_SHOULDER_ROLL", 0.1904, 0.1963),
    ("LEFT_SHOULDER_YAW", -0.2703, 0.2113), ("LEFT_ELBOW_PITCH", -1.3330, 0.3544),
    ("LEFT_ELBOW_YAW", -0.0999, 0.2956), ("LEFT_WRIST_PITCH", 0.1234, 0.2451), ("LEFT_WRIST_ROLL", 0.0551, 0.2388),
    ("RIGHT_SHOULDER_PITCH", 0.0317, 0.3981), ("RIGHT_SHOULDER_ROLL", -0.2349, 0.2170),
    ("RIGHT_SHOULDER_YAW", 0.3477, 0.2325), ("RIGHT_ELBOW_PITCH", -1.3107, 0.4515),
    ("RIGHT_ELBOW_YAW", 0.2111, 0.3095), ("RIGHT_WRIST_PITCH", 0.1135, 0.2633), ("RIGHT_WRIST_ROLL", -0.0480, 0.2771),
    ("NECK_PITCH", 0.3625, 0.1842),
)  # fmt: skip
_EVE_HANDS_AND_BASE = (
    Typical(0.1766, 0.3558), Typical(0.3532, 0.4632), Typical(0.0709, 0.2448), Typical(0.0042, 0.2289),
)  # fmt: skip


def _one_x_eve() -> RegisteredSchema:
    joints = tuple(Dimension(name, "rad", UnitSource.ASSUMED) for name, _, _ in _EVE_JOINTS)
    hands = tuple(
        Dimension(f"{side}_HAND_CLOSURE", "1", UnitSource.STATED, 0.0, 1.0, Semantics.OPEN_TO_CLOSED)
        for side in ("LEFT", "RIGHT")
    )
    base = (
        Dimension("LINEAR_VELOCITY", "m/s", UnitSource.ASSUMED),
        Dimension("ANGULAR_VELOCITY", "rad/s", UnitSource.ASSUMED),
    )
    return RegisteredSchema(
        name="1x-eve-25",
        description="1X EVE, as in the World Model Challenge v2.0: 21 joints, two hands, the velocities of the base.",
        source="1X world model dataset card v2.0 (order, names, closures; it states no other unit); means and "
        "deviations as written in Humanoid World Models' code, presumably of the training set",
        dimensions=(*joints, *hands, *base),
        rate_hz=30.0,
        typical=(*(Typical(mean, std) for _, mean, std in _EVE_JOINTS), *_EVE_HANDS_AND_BASE),
    )


_ALOHA_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")


def _aloha() -> RegisteredSchema:
    arms = tuple(
        dimension
        for side in ("left", "right")
        for dimension in (
            *(Dimension(f"{side}_{joint}", "rad") for joint in _ALOHA_JOINTS),
            Dimension(f"{side}_gripper", "1", UnitSource.STATED, 0.0, 1.0, Semantics.CLOSED_TO_OPEN),
        )
    )
    return RegisteredSchema(
        name="aloha-14",
        description="ALOHA, two ViperX 300 S arms: six joints and a gripper each, left before right. Grippers are "
        "ALOHA's own, normalised from closed to open; openpi's grippers run the other way.",
        source="ACT's constants (joint names, gripper normalisation, 50 Hz); radians from memory of public "
        "documentation",
        dimensions=arms,
        rate_hz=50.0,
    )


_PANDA_LIMITS = (
    (-2.8973, 2.8973), (-1.7628, 1.7628), (-2.8973, 2.8973), (-3.0718, -0.0698), (-2.8973, 2.8973), (-0.0175, 3.7525),
    (-2.8973, 2.8973),
)  # fmt: skip


def _droid() -> RegisteredSchema:
    joints = tuple(
        Dimension(f"joint_{index}", "rad", UnitSource.STATED, low, high)
        for index, (low, high) in enumerate(_PANDA_LIMITS, 1)
    )
    gripper = Dimension("gripper_position", "1", UnitSource.STATED, 0.0, 1.0, Semantics.OPEN_TO_CLOSED)
    return RegisteredSchema(
        name="droid-8",
        description="DROID's Franka Panda: seven joint positions and the gripper. Its actions are joint velocities "
        "and are no states.",
        source="openpi's DROID policy (order); Franka's joint limits; 15 Hz and the gripper's sense from memory of "
        "public documentation",
        dimensions=(*joints, gripper),
        rate_hz=15.0,
    )


_SO101_JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")


def _so101() -> RegisteredSchema:
    joints = tuple(Dimension(f"{joint}.pos", "deg", UnitSource.STATED, -180.0, 180.0) for joint in _SO101_JOINTS)
    gripper = Dimension("gripper.pos", "%", UnitSource.STATED, 0.0, 100.0, Semantics.CLOSED_TO_OPEN)
    return RegisteredSchema(
        name="so101-6",
        description="SO-101 follower arm as LeRobot records it with `use_degrees`: five joints from the middle of "
        "their calibrated range, and the gripper in percent. Recordings in -100..100 are of another schema: their "
        "unit is each arm's own calibration.",
        source="LeRobot's SO-101 driver (order, names, units); 30 Hz and the gripper's sense from memory of public "
        "documentation",
        dimensions=(*joints, gripper),
        rate_hz=30.0,
    )


_G1_LEG = (
    ("hip_pitch", -2.5307, 2.8798), ("hip_roll", -0.5236, 2.9671), ("hip_yaw", -2.7576, 2.7576),
    ("knee", -0.087267, 2.8798), ("ankle_pitch", -0.87267, 0.5236), ("ankle_roll", -0.2618, 0.2618),
)  # fmt: skip
_G1_WAIST = (("waist_yaw", -2.618, 2.618), ("waist_roll", -0.52, 0.52), ("waist_pitch", -0.52, 0.52))
_G1_ARM = (
    ("shoulder_pitch", -3.0892, 2.6704), ("shoulder_roll", -1.5882, 2.2515), ("shoulder_yaw", -2.618, 2.618),
    ("elbow", -1.0472, 2.0944), ("wrist_roll", -1.97222, 1.97222), ("wrist_pitch", -1.61443, 1.61443),
    ("wrist_yaw", -1.61443, 1.61443),
)  # fmt: skip
_G1_MIRRORED = frozenset({"hip_roll", "shoulder_roll"})
"""Joints whose limits the right side has with the other sign."""


def _unitree_g1() -> RegisteredSchema:
    waist = tuple(Dimension(f"{name}_joint", "rad", UnitSource.STATED, low, high) for name, low, high in _G1_WAIST)
    left, right = "left", "right"
    return RegisteredSchema(
        name="unitree-g1-29",
        description="Unitree G1 with 29 joints: left leg, right leg, waist, left arm, right arm.",
        source="the motor indices of Unitree's SDK and LeRobot; names and limits of Unitree's g1_29dof URDF",
        dimensions=(
            *_g1_limb(left, _G1_LEG), *_g1_limb(right, _G1_LEG), *waist,
            *_g1_limb(left, _G1_ARM), *_g1_limb(right, _G1_ARM),
        ),
    )  # fmt: skip


def _g1_limb(side: str, joints: tuple[tuple[str, float, float], ...]) -> tuple[Dimension, ...]:
    limb = []
    for name, low, high in joints:
        is_mirrored = side == "right" and name in _G1_MIRRORED
        limits = (-high, -low) if is_mirrored else (low, high)
        limb.append(Dimension(f"{side}_{name}_joint", "rad", UnitSource.STATED, *limits))
    return tuple(limb)
