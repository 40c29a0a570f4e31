"""A joint trajectory to the states that a model is asked about, one row a frame. Knows no ROS and no topics."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from foreframe_ros2.errors import ConversionError
from foreframe_ros2.joints import JointSource, StateMap
from foreframe_ros2.messages import JointTrajectory, JointTrajectoryPoint, seconds_of

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64

_ROUNDING = 1e-6


def rows_of_plan(
    plan: JointTrajectory, state_map: StateMap, start: Float32[np.ndarray, " d"], *, fps: float, horizon: int
) -> Float32[np.ndarray, "n d"]:
    """Return the plan's states at 1, 2, ... frames after its start, at most `horizon`, linear between its points.

    start: the state that the plan sets out from; joints that the plan does not name stay there.
    Raises ConversionError when the plan's arrays or times contradict each other, or it is shorter than a frame.
    """
    times_s, rows = [0.0], [start.astype(np.float64)]
    for index, point in enumerate(plan.points):
        time_s, row = seconds_of(point.time_from_start), _row_of(plan, point, state_map, start)
        if time_s < times_s[-1] or (index and time_s == times_s[-1]):
            raise ConversionError(f"point {index} of the plan is not later than the one before")
        if time_s == 0:
            times_s, rows = [], []
        times_s.append(time_s)
        rows.append(row)
    count = min(horizon, math.floor(times_s[-1] * fps + _ROUNDING))
    if count < 1:
        raise ConversionError(f"the plan of {times_s[-1]:g} s is shorter than one frame of {1 / fps:g} s")
    places = np.arange(1, count + 1) / fps
    columns = [np.interp(places, times_s, column) for column in np.transpose(rows)]
    return np.stack(columns, axis=1).astype(np.float32)


def _row_of(
    plan: JointTrajectory, point: JointTrajectoryPoint, state_map: StateMap, start: Float32[np.ndarray, " d"]
) -> Float64[np.ndarray, " d"]:
    values: dict[tuple[str, str], float] = {}
    for name, numbers in (("position", point.positions), ("velocity", point.velocities)):
        if len(numbers) not in (0, len(plan.joint_names)):
            raise ConversionError(f"the plan names {len(plan.joint_names)} joints and gives {len(numbers)} of {name}")
        named = zip(plan.joint_names, numbers, strict=True) if len(numbers) else ()
        values.update({(joint, name): float(number) for joint, number in named})
    row = start.astype(np.float64)
    for index, source in enumerate(state_map.sources):
        if isinstance(source, JointSource) and (source.joint, source.field) in values:
            row[index] = values[source.joint, source.field] * source.factor
    if not np.isfinite(row).all():
        raise ConversionError("the plan holds a number that is not finite")
    return row
