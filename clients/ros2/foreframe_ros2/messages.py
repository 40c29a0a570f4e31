"""The fields of the ROS 2 messages that are read here, as their interface definitions have them. Knows no ROS.

Arrays come as `array.array`, as numpy arrays or as lists, whichever rclpy gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np

Bytes: TypeAlias = bytes | bytearray | memoryview | np.ndarray | Sequence[int]


class Time(Protocol):
    """`builtin_interfaces/Time` and `Duration`."""

    sec: int
    nanosec: int


class Header(Protocol):
    """`std_msgs/Header`: when the data were taken, and in which frame of reference."""

    stamp: Time
    frame_id: str


class Image(Protocol):
    """`sensor_msgs/Image`: `data` has `height` rows of `step` bytes."""

    header: Header
    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: Bytes


class CompressedImage(Protocol):
    """`sensor_msgs/CompressedImage`: `data` is a whole JPEG or PNG file."""

    header: Header
    format: str
    data: Bytes


class JointState(Protocol):
    """`sensor_msgs/JointState`: radians or metres by name; an array that is not known is empty."""

    header: Header
    name: Sequence[str]
    position: Sequence[float]
    velocity: Sequence[float]
    effort: Sequence[float]


class JointTrajectoryPoint(Protocol):
    """`trajectory_msgs/JointTrajectoryPoint`: where the joints are to be some time after the start."""

    positions: Sequence[float]
    velocities: Sequence[float]
    time_from_start: Time


class JointTrajectory(Protocol):
    """`trajectory_msgs/JointTrajectory`: points in time for the joints that it names."""

    header: Header
    joint_names: Sequence[str]
    points: Sequence[JointTrajectoryPoint]


def seconds_of(time: Time) -> float:
    """Return a stamp or a duration in seconds."""
    return time.sec + time.nanosec * 1e-9
