"""The robot's joints and its state vector by name, order and unit. Imports nothing."""

ARM_JOINTS = (
    "shoulder_pitch",
    "shoulder_roll",
    "shoulder_yaw",
    "elbow_pitch",
    "elbow_yaw",
    "wrist_pitch",
    "wrist_roll",
)
BODY_JOINTS = ("hip_yaw", "hip_roll", "hip_pitch", "knee_pitch", "ankle_roll", "ankle_pitch")
JOINTS = (
    *BODY_JOINTS,
    *(f"left_{name}" for name in ARM_JOINTS),
    *(f"right_{name}" for name in ARM_JOINTS),
    "neck_pitch",
)
STATE_NAMES = (
    *(name.upper() for name in JOINTS),
    "LEFT_HAND_CLOSURE",
    "RIGHT_HAND_CLOSURE",
    "LINEAR_VELOCITY",
    "ANGULAR_VELOCITY",
)
"""Order and names of the 1X World Model Challenge v2.0; closures are 0 open, 1 closed,
and a little beyond either while a finger is pressed."""

STATE_UNITS = (*("rad",) * len(JOINTS), "1", "1", "m/s", "rad/s")
