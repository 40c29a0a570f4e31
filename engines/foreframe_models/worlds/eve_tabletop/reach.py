"""A planning task in the simulator: move one hand to where a picture shows it, within one horizon of frames.

An action displaces that hand. Kinematics decode it to the states that a planner offers; physics says where it leads.
No kick falls into the horizon, for no action could answer one. Knows no model and renders nothing.
"""

import copy
import math
from dataclasses import dataclass

import mujoco
import numpy as np
from jaxtyping import Float, Float32, Float64

from foreframe_models.worlds.eve_tabletop.episode import PHYSICS_STEPS_PER_TICK, TICKS_PER_FRAME, Simulation
from foreframe_models.worlds.eve_tabletop.motion import CONTROL_HZ, minimum_jerk
from foreframe_models.worlds.eve_tabletop.names import ARM_JOINTS, BODY_JOINTS, JOINTS
from foreframe_models.worlds.eve_tabletop.robot import GRIP_OPENING_M, SIDES, Command

NUM_CONTEXT_FRAMES = 8
HORIZON_FRAMES = 8
NUM_TICKS = HORIZON_FRAMES * TICKS_PER_FRAME
NUM_SEARCHED_FRAMES = 64

PROPOSAL_STD_M = np.array([0.12, 0.14, 0.07])
"""Deviation of random displacements: 1.7 times that of recorded hands over as many frames."""

GOAL_DISTANCE_M = (0.12, 0.26)
"""How far from the hand a goal lies; of recorded hands one in a hundred moves farther in this time."""

WORKSPACE_LOW_M = np.array([[0.33, -0.08, 0.78], [0.33, -0.36, 0.78]])
WORKSPACE_HIGH_M = np.array([[0.71, 0.36, 1.00], [0.71, 0.08, 1.00]])
"""Where each hand's targets lie in recorded episodes."""

ARM_LAG_S, GRIP_LAG_S, BASE_LAG_S = 0.10, 0.06, 0.20
"""How long what moves stays behind its command: (gain of velocity + damping) / gain of position of an actuator."""

_ARMS = slice(len(BODY_JOINTS), len(BODY_JOINTS) + len(SIDES) * len(ARM_JOINTS))


@dataclass(frozen=True, slots=True, eq=False)
class Reached:
    """Where an action led: the last moment, where the hand is in it (metres), and the states on the way."""

    moment: mujoco.MjData
    hand_m: Float64[np.ndarray, "3"]
    states: Float32[np.ndarray, "8 25"]


class ReachTask:
    """One seed's start, goal and physics. Equal seeds are equal tasks.

    The start is the quietest moment of the seed's episode; `context` holds the moments up to it, oldest first, and
    `states` theirs. The goal is where a hidden action led from the same physical state.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng((seed, 1))
        self.side = int(rng.integers(len(SIDES)))
        self._simulation = Simulation(seed)
        self._robot, self.model = self._simulation.robot, self._simulation.model
        self.context, self.states = self._advance_to(_quietest_frame(seed))
        self._start = self.context[-1]
        self._command = _command_of(self._start)
        self.start_hand_m = _hands(self._simulation)[self.side]
        self._from_m = self._robot.hand_positions(self._command.joints)
        self.goal = self.execute(self._draw_goal_action(rng))

    def candidates(self, actions: Float[np.ndarray, "k 3"]) -> Float32[np.ndarray, "k 8 25"]:
        """Decode hand displacements (metres) to the states of the horizon, as far as they can be known beforehand.

        Targets outside the workspace are drawn to its edge. Arms and grips follow their commands with the actuators'
        lag, the base comes to rest, the body stays as measured.
        """
        self._restore()
        return np.stack([self._foresee(action) for action in actions])

    def execute(self, action: Float[np.ndarray, "3"]) -> Reached:
        """Carry an action out in a copy of the start's physical state."""
        self._restore()
        states, data = [], self._robot.data
        for tick, joints in enumerate(self._joint_path(action)):
            self._robot.apply(Command(joints, self._command.grips, self._command.base))
            mujoco.mj_step(self.model, data, PHYSICS_STEPS_PER_TICK)
            if tick % TICKS_PER_FRAME == TICKS_PER_FRAME - 1:
                states.append(self._robot.state())
        return Reached(copy.copy(data), _hands(self._simulation)[self.side], np.stack(states))

    def distance_m(self, hand_m: Float[np.ndarray, "3"]) -> float:
        """Return how far a hand is from where the goal has it."""
        return float(np.linalg.norm(hand_m - self.goal.hand_m))

    def _advance_to(self, frame: int) -> tuple[list[mujoco.MjData], Float32[np.ndarray, "8 25"]]:
        moments, states = [], []
        for number in range(frame + 1):
            self._simulation.advance_frame()
            if number > frame - NUM_CONTEXT_FRAMES:
                moments.append(copy.copy(self._robot.data))
                states.append(self._robot.state())
        return moments, np.stack(states)

    def _restore(self) -> None:
        mujoco.mj_copyData(self._robot.data, self.model, self._start)

    def _draw_goal_action(self, rng: np.random.Generator) -> Float64[np.ndarray, "3"]:
        low, high = WORKSPACE_LOW_M[self.side], WORKSPACE_HIGH_M[self.side]
        while True:
            action = rng.normal(0.0, PROPOSAL_STD_M)
            target = self._from_m[self.side] + action
            is_inside = bool(((target > low) & (target < high)).all())
            if is_inside and GOAL_DISTANCE_M[0] < np.linalg.norm(action) < GOAL_DISTANCE_M[1]:
                return action

    def _joint_path(self, action: Float[np.ndarray, "3"]) -> Float64[np.ndarray, "t 21"]:
        """Return the joint commands of every control tick: the hand moves on a minimum-jerk path, the rest holds."""
        start = self._from_m[self.side]
        target = np.clip(start + action, WORKSPACE_LOW_M[self.side], WORKSPACE_HIGH_M[self.side])
        wanted, joints, path = self._from_m.copy(), self._command.joints, []
        for tick in range(NUM_TICKS):
            wanted[self.side] = start + (target - start) * minimum_jerk((tick + 1) / NUM_TICKS)
            joints = self._robot.reach(joints, wanted)
            path.append(joints)
        return np.stack(path)

    def _foresee(self, action: Float[np.ndarray, "3"]) -> Float32[np.ndarray, "8 25"]:
        now = self.states[-1].astype(np.float64)
        joints, closures, velocities = np.split(now, [len(JOINTS), -2])
        grips = 1.0 - self._command.grips / GRIP_OPENING_M
        rows = []
        for command in self._joint_path(action):
            joints[_ARMS] += _share(ARM_LAG_S) * (command[_ARMS] - joints[_ARMS])
            closures += _share(GRIP_LAG_S) * (grips - closures)
            velocities -= _share(BASE_LAG_S) * velocities
            rows.append(np.concatenate([joints, closures, velocities]))
        return np.stack(rows[TICKS_PER_FRAME - 1 :: TICKS_PER_FRAME]).astype(np.float32)


def _quietest_frame(seed: int) -> int:
    """Find the frame, past the first context, at which no object is touched and the faster hand is slowest."""
    simulation, hands, is_touched = Simulation(seed), [], []
    for _ in range(NUM_SEARCHED_FRAMES):
        simulation.advance_frame()
        hands.append(_hands(simulation))
        is_touched.append(simulation.is_object_touched())
    moved_m = np.linalg.norm(np.diff(np.stack(hands), axis=0), axis=-1).max(axis=-1)
    first = NUM_CONTEXT_FRAMES - 1
    busy = np.where(is_touched[first:], np.inf, 0.0)
    return int((moved_m[first - 1 :] + busy).argmin()) + first


def _hands(simulation: Simulation) -> Float64[np.ndarray, "2 3"]:
    return np.stack([simulation.data.site(f"{side}_hand").xpos.copy() for side in SIDES])


def _command_of(moment: mujoco.MjData) -> Command:
    joints, grips, base = np.split(moment.ctrl.copy(), [len(JOINTS), len(JOINTS) + 2])
    return Command(joints, grips, base)


def _share(lag_s: float) -> float:
    """Return which part of its way to a command something goes in one control tick."""
    return 1.0 - math.exp(-1.0 / CONTROL_HZ / lag_s)
