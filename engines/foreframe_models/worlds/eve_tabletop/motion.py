"""What the robot does and what happens to the ball: hand targets, sway, drive and kicks. Pure of rendering."""

import mujoco
import numpy as np
from jaxtyping import Float

from foreframe_models.worlds.eve_tabletop.names import JOINTS
from foreframe_models.worlds.eve_tabletop.robot import Command, Robot, rest_posture
from foreframe_models.worlds.eve_tabletop.scene import OBJECTS, TRAY_X_M, TRAY_Y_M

CONTROL_HZ = 30
SWAYING = ("hip_yaw", "hip_roll", "hip_pitch", "knee_pitch", "ankle_roll", "ankle_pitch", "neck_pitch")
SWAY_RAD = np.array([0.020, 0.004, 0.008, 0.004, 0.003, 0.004, 0.010])
BASE_SWAY = np.array([0.012, 0.015])
"""Amplitude of the base's small drive: metres forward, radians of turn."""

KICK_RATE_HZ = 1.6
KICK_SPEED_M_S = (0.18, 0.45)


def minimum_jerk(fraction: float) -> float:
    """Return how much of a minimum-jerk path is done after `fraction` of its time (Flash and Hogan, 1985)."""
    s = min(max(fraction, 0.0), 1.0)
    return s * s * s * (10.0 - 15.0 * s + 6.0 * s * s)


class Reaching:
    """A sequence of random hand targets, each reached on a minimum-jerk path."""

    def __init__(self, rng: np.random.Generator, hands: Float[np.ndarray, "2 3"]) -> None:
        self._rng = rng
        self._from, self._to = hands.copy(), hands.copy()
        self._start, self._duration = np.zeros(2), np.zeros(2)
        self._grips = np.full(2, 0.02)
        self._grip_targets = self._grips.copy()

    def targets(self, tick: int, objects: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "2 3"]:
        """Return both hands' wanted positions at a control tick; all in metres."""
        wanted = np.empty((2, 3))
        for side in range(2):
            if tick >= self._start[side] + self._duration[side]:
                self._choose_target(side, tick, objects)
            done = minimum_jerk((tick + 1 - self._start[side]) / self._duration[side])
            wanted[side] = self._from[side] + (self._to[side] - self._from[side]) * done
        return wanted

    def grips(self) -> Float[np.ndarray, "2"]:
        """Return both grips' openings (metres), eased towards their targets."""
        self._grips = self._grips + 0.15 * (self._grip_targets - self._grips)
        return self._grips

    def _choose_target(self, side: int, tick: int, objects: Float[np.ndarray, "n 3"]) -> None:
        rng, sign = self._rng, 1.0 if side == 0 else -1.0
        kind = rng.random()
        if kind < 0.60:
            near = objects[rng.integers(len(objects))]
            target = np.array([*(near[:2] + rng.normal(0.0, 0.05, 2)), rng.uniform(0.78, 0.83)])
        elif kind < 0.85:
            target = np.array([rng.uniform(0.36, 0.70), sign * rng.uniform(-0.05, 0.30), rng.uniform(0.78, 0.92)])
        else:
            target = np.array([rng.uniform(0.32, 0.50), sign * rng.uniform(0.12, 0.32), rng.uniform(0.86, 1.00)])
        low, high = (-0.08, 0.36) if side == 0 else (-0.36, 0.08)
        target[0], target[1] = np.clip(target[0], 0.33, 0.71), np.clip(target[1], low, high)
        self._from[side], self._to[side] = self._to[side], target
        distance = float(np.linalg.norm(target - self._from[side]))
        self._start[side] = tick
        self._duration[side] = max(8.0, rng.uniform(20.0, 44.0) * max(0.7, distance / 0.35))
        if rng.random() < 0.4:
            self._grip_targets[side] = rng.uniform(0.0, 0.03)


class Sway:
    """Slow sums of two sines for hip, legs, neck and the base's small drive."""

    def __init__(self, rng: np.random.Generator) -> None:
        rows = len(SWAYING) + len(BASE_SWAY)
        self._phase = rng.uniform(0.0, 2.0 * np.pi, (rows, 2))
        self._hz = rng.uniform(0.1, 0.4, (rows, 2))

    def at(self, time_s: float) -> tuple[Float[np.ndarray, " j"], Float[np.ndarray, "2"]]:
        """Return (joint offsets in rad, base pose in m and rad) at a time; joints in the order of `SWAYING`."""
        wave = 0.6 * np.sin(2.0 * np.pi * self._hz * time_s + self._phase).sum(axis=1)
        return SWAY_RAD * wave[: len(SWAYING)], BASE_SWAY * wave[len(SWAYING) :]


class Behaviour:
    """Everything that drives an episode, one control tick at a time."""

    def __init__(self, robot: Robot, rng: np.random.Generator) -> None:
        motion_rng, sway_rng, self._kick_rng = rng.spawn(3)
        self._robot, self._joints = robot, rest_posture()
        self._reaching = Reaching(motion_rng, robot.hand_positions(self._joints))
        self._sway = Sway(sway_rng)
        self._swaying = np.array([JOINTS.index(name) for name in SWAYING])
        model = robot.model
        self._object_bodies = [model.body(name).id for name in OBJECTS]
        self._ball_dof = int(model.joint("ball").dofadr[0])
        self._ball_radius_m = float(model.geom("ball").size[0])
        self.num_kicks = 0

    def tick(self, tick: int) -> None:
        """Set the actuators for one control period and perhaps kick the ball."""
        objects = self._robot.data.xpos[self._object_bodies]
        joints = self._robot.reach(self._joints, self._reaching.targets(tick, objects))
        offsets, base = self._sway.at(tick / CONTROL_HZ)
        joints[self._swaying] = rest_posture()[self._swaying] + offsets
        self._joints = joints
        self._robot.apply(Command(joints, self._reaching.grips(), base))
        if self._kick_rng.random() < KICK_RATE_HZ / CONTROL_HZ:
            self._kick(objects[OBJECTS.index("ball")])

    def _kick(self, ball: Float[np.ndarray, "3"]) -> None:
        """Give the ball a new rolling velocity towards a random point of the tray."""
        goal = np.array([self._kick_rng.uniform(*TRAY_X_M), self._kick_rng.uniform(*TRAY_Y_M)])
        heading = (goal - ball[:2]) / max(1e-6, float(np.linalg.norm(goal - ball[:2])))
        velocity = heading * self._kick_rng.uniform(*KICK_SPEED_M_S)
        spin = np.array([-velocity[1], velocity[0], 0.0]) / self._ball_radius_m
        self._robot.data.qvel[self._ball_dof : self._ball_dof + 6] = [*velocity, 0.0, *spin]
        self.num_kicks += 1
        mujoco.mj_forward(self._robot.model, self._robot.data)
