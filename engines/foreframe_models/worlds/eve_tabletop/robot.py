"""The robot's body: the 25-dim state vector, inverse kinematics and position control. Knows no objects."""

from dataclasses import dataclass

import mujoco
import numpy as np
from jaxtyping import Float, Float32

from foreframe_models.worlds.eve_tabletop.names import JOINTS

SIDES = ("left", "right")
GRIP_OPENING_M = 0.03
ARM_REST = {"shoulder_pitch": -0.25, "shoulder_roll": 0.25, "elbow_pitch": -1.35, "wrist_pitch": -0.2}
MIRRORED = ("shoulder_roll", "shoulder_yaw", "elbow_yaw", "wrist_roll")

IK_DAMPING = 1e-3
IK_MAX_STEP_M = 0.06
IK_MAX_STEP_RAD = 0.15
IK_REST_PULL = 0.08


def rest_posture() -> Float[np.ndarray, "21"]:
    """Return the joint angles (rad) the arms are drawn back to."""
    posture = np.zeros(len(JOINTS))
    posture[JOINTS.index("hip_pitch")] = 0.12
    posture[JOINTS.index("neck_pitch")] = 0.10
    for side, sign in (("left", 1.0), ("right", -1.0)):
        for name, angle in ARM_REST.items():
            posture[JOINTS.index(f"{side}_{name}")] = angle * (sign if name in MIRRORED else 1.0)
    return posture


@dataclass(frozen=True, slots=True, eq=False)
class Command:
    """What the robot is told to do next: joint angles (rad), grips (m of opening a finger), base pose (m, rad)."""

    joints: Float[np.ndarray, "21"]
    grips: Float[np.ndarray, "2"]
    base: Float[np.ndarray, "2"]


class Robot:
    """Reads the state vector of a simulation and turns hand targets into joint commands."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        self.model, self.data = model, data
        self._kinematics = mujoco.MjData(model)
        self._q_index = np.array([model.joint(name).qposadr[0] for name in JOINTS])
        self._v_index = np.array([model.joint(name).dofadr[0] for name in JOINTS])
        self._thumbs = np.array([model.joint(f"{side}_thumb").qposadr[0] for side in SIDES])
        self._base_v = np.array([model.joint(name).dofadr[0] for name in ("drive", "turn")])
        self._hands = [model.site(f"{side}_hand").id for side in SIDES]
        ranges = np.array([model.joint(name).range for name in JOINTS])
        self._low, self._high = ranges[:, 0], ranges[:, 1]
        self._rest = rest_posture()
        data.qpos[self._q_index] = self._rest
        mujoco.mj_forward(model, data)

    def state(self) -> Float32[np.ndarray, "25"]:
        """Return the state vector in the order of `STATE_NAMES`."""
        closures = 1.0 - self.data.qpos[self._thumbs] / GRIP_OPENING_M
        parts = (self.data.qpos[self._q_index], closures, self.data.qvel[self._base_v])
        return np.concatenate(parts).astype(np.float32)

    def hand_positions(self, joints: Float[np.ndarray, "21"]) -> Float[np.ndarray, "2 3"]:
        """Place a copy of the robot at `joints` and the true base pose; return both hands, metres."""
        self._kinematics.qpos[:] = self.data.qpos
        self._kinematics.qpos[self._q_index] = joints
        mujoco.mj_kinematics(self.model, self._kinematics)
        mujoco.mj_comPos(self.model, self._kinematics)
        return self._kinematics.site_xpos[self._hands].copy()

    def reach(self, joints: Float[np.ndarray, "21"], targets: Float[np.ndarray, "2 3"]) -> Float[np.ndarray, "21"]:
        """Return `joints` moved one damped-least-squares step, so that the hands approach `targets` (metres)."""
        hands, moved = self.hand_positions(joints), joints.copy()
        for side in range(2):
            arm = np.arange(6 + 7 * side, 13 + 7 * side)
            jacobian = self._hand_jacobian(side)[:, self._v_index[arm]]
            error = np.clip(targets[side] - hands[side], -IK_MAX_STEP_M, IK_MAX_STEP_M)
            step = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + IK_DAMPING * np.eye(3), error)
            null_space = np.eye(7) - np.linalg.pinv(jacobian, rcond=0.05) @ jacobian
            step += null_space @ (IK_REST_PULL * (self._rest[arm] - joints[arm]))
            moved[arm] += np.clip(step, -IK_MAX_STEP_RAD, IK_MAX_STEP_RAD)
        return np.clip(moved, self._low, self._high)

    def apply(self, command: Command) -> None:
        """Hand a command to the actuators; it holds until the next one."""
        self.data.ctrl[:] = np.concatenate([command.joints, command.grips, command.base])

    def _hand_jacobian(self, side: int) -> Float[np.ndarray, "3 v"]:
        jacobian = np.zeros((3, self.model.nv))
        mujoco.mj_jacSite(self.model, self._kinematics, jacobian, None, self._hands[side])
        return jacobian
