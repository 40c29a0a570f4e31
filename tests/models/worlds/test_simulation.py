"""The physics without a picture: deterministic by seed, 25 states that all say something, and hidden causes."""

from dataclasses import replace

import numpy as np
import pytest

with pytest.MonkeyPatch.context() as environment:
    environment.setenv("MUJOCO_GL", "disable")  # nothing here renders, so no GL library is needed
    mujoco = pytest.importorskip("mujoco", reason="mujoco is not installed")

from foreframe_models.worlds.eve_tabletop.episode import Simulation
from foreframe_models.worlds.eve_tabletop.motion import minimum_jerk
from foreframe_models.worlds.eve_tabletop.names import STATE_NAMES, STATE_UNITS
from foreframe_models.worlds.eve_tabletop.scene import (
    MIN_OBJECT_GAP_M,
    OBJECTS,
    TRAY_X_M,
    TRAY_Y_M,
    SceneProperties,
    draw_scene,
)

DOCUMENTED_STATES = (
    "HIP_YAW", "HIP_ROLL", "HIP_PITCH", "KNEE_PITCH", "ANKLE_ROLL", "ANKLE_PITCH",
    "LEFT_SHOULDER_PITCH", "LEFT_SHOULDER_ROLL", "LEFT_SHOULDER_YAW", "LEFT_ELBOW_PITCH", "LEFT_ELBOW_YAW",
    "LEFT_WRIST_PITCH", "LEFT_WRIST_ROLL",
    "RIGHT_SHOULDER_PITCH", "RIGHT_SHOULDER_ROLL", "RIGHT_SHOULDER_YAW", "RIGHT_ELBOW_PITCH", "RIGHT_ELBOW_YAW",
    "RIGHT_WRIST_PITCH", "RIGHT_WRIST_ROLL",
    "NECK_PITCH", "LEFT_HAND_CLOSURE", "RIGHT_HAND_CLOSURE", "LINEAR_VELOCITY", "ANGULAR_VELOCITY",
)  # fmt: skip


def record(simulation: Simulation, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return states `t 25` and the objects' positions `t n 3`, frame 0 before anything is advanced."""
    states, objects = [], []
    for frame in range(num_frames):
        if frame:
            simulation.advance_frame()
        states.append(simulation.robot.state())
        objects.append([simulation.data.body(name).xpos.copy() for name in OBJECTS])
    return np.stack(states), np.array(objects)


def distances(objects: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.linalg.norm(objects - others, axis=-1)


def with_other_dynamics(scene: SceneProperties) -> SceneProperties:
    """Change what is hidden, mass and friction of every object, and nothing else."""
    changed = (replace(item, mass_kg=0.54 - item.mass_kg, friction=1.2 - item.friction) for item in scene.objects)
    return replace(scene, objects=tuple(changed))


def test_a_seed_is_one_episode() -> None:
    (states, objects), (again, objects_again) = record(Simulation(3), 24), record(Simulation(3), 24)
    np.testing.assert_array_equal(states, again)
    np.testing.assert_array_equal(objects, objects_again)
    assert Simulation(3).scene == Simulation(3).scene


def test_another_seed_is_another_episode() -> None:
    (states, objects), (others, other_objects) = record(Simulation(3), 24), record(Simulation(4), 24)
    assert np.abs(states - others).max() > 0.05
    assert np.abs(objects - other_objects).max() > 0.02


def test_the_states_have_the_documented_names_and_order() -> None:
    assert STATE_NAMES == DOCUMENTED_STATES
    assert STATE_UNITS == ("rad",) * 21 + ("1", "1", "m/s", "rad/s")


def test_each_state_is_read_from_the_part_it_names() -> None:
    simulation = Simulation(0)
    data, model = simulation.data, simulation.model
    values = dict(zip(STATE_NAMES, simulation.robot.state(), strict=True))
    for name in STATE_NAMES[:21]:
        assert values[name] == np.float32(data.joint(name.lower()).qpos[0])
    for side in ("left", "right"):
        opening = data.joint(f"{side}_thumb").qpos[0] / model.joint(f"{side}_thumb").range[1]
        assert values[f"{side.upper()}_HAND_CLOSURE"] == pytest.approx(1 - opening, abs=1e-6)
    assert values["LINEAR_VELOCITY"] == np.float32(data.joint("drive").qvel[0])
    assert values["ANGULAR_VELOCITY"] == np.float32(data.joint("turn").qvel[0])


def test_all_25_states_are_finite_and_all_carry_information() -> None:
    states = np.stack([record(Simulation(seed), 48)[0] for seed in range(4)])
    assert states.shape == (4, 48, 25)
    assert states.dtype == np.float32
    assert np.isfinite(states).all()
    assert (states.std(axis=(0, 1)) > 1e-3).all()
    assert (states.std(axis=1) > 1e-4).all()  # in every single episode too


def test_hand_closures_run_from_open_to_closed() -> None:
    closures = np.concatenate([record(Simulation(seed), 48)[0][:, 21:23] for seed in range(4)])
    assert -0.25 < closures.min() < 0.5 < closures.max() < 1.25  # a pressed finger yields past its stop


@pytest.mark.parametrize("seed", [3, 19, 31])
def test_hidden_mass_and_friction_are_not_in_the_states_but_decide_the_future(seed: int) -> None:
    simulation = Simulation(seed)
    other = Simulation(seed, with_other_dynamics(simulation.scene))
    other.data.qpos[:], other.data.qvel[:] = simulation.data.qpos, simulation.data.qvel  # the same moment in both
    for each in (simulation, other):
        mujoco.mj_forward(each.model, each.data)
    (states, objects), (other_states, other_objects) = record(simulation, 25), record(other, 25)
    np.testing.assert_array_equal(states[0], other_states[0])
    np.testing.assert_array_equal(objects[0], other_objects[0])
    assert distances(objects[-1], other_objects[-1]).max() > 0.02


@pytest.mark.parametrize("hidden", [{"mass_kg": 0.06}, {"friction": 0.2}], ids=["mass", "friction"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_mass_alone_and_friction_alone_decide_the_future(seed: int, hidden: dict[str, float]) -> None:
    simulation = Simulation(seed)
    changed = tuple(replace(item, **hidden) for item in simulation.scene.objects)
    other = Simulation(seed, replace(simulation.scene, objects=changed))
    (_, objects), (_, other_objects) = record(simulation, 65), record(other, 65)
    assert distances(objects[-1], other_objects[-1]).max() > 0.02


def test_the_same_dynamics_give_the_same_future() -> None:
    simulation = Simulation(31)
    same = Simulation(31, simulation.scene)
    np.testing.assert_array_equal(record(simulation, 25)[1], record(same, 25)[1])


def test_the_ball_is_kicked_at_times_of_its_own() -> None:
    counts = []
    for seed in range(6):
        simulation = Simulation(seed)
        record(simulation, 64)
        counts.append(simulation.behaviour.num_kicks)
    assert min(counts) >= 1
    assert len(set(counts)) > 1
    assert 4 < np.mean(counts) < 14  # 1.6 a second over 5.3 seconds is 8.4


def test_the_hands_touch_objects_and_the_rim_keeps_most_of_them() -> None:
    touched, lost = 0, 0
    for seed in range(6):
        simulation = Simulation(seed)
        for _ in range(48):
            simulation.advance_frame()
            touched += simulation.is_object_touched()
        lost += simulation.num_objects_off_tray()
    assert 20 < touched < 6 * 48
    assert lost <= 3


def test_scenes_are_spread_over_the_tray() -> None:
    for seed in range(20):
        places = np.array([item.position_m for item in draw_scene(np.random.default_rng(seed)).objects])
        assert ((places > (TRAY_X_M[0], TRAY_Y_M[0])) & (places < (TRAY_X_M[1], TRAY_Y_M[1]))).all()
        gaps = np.linalg.norm(places[:, None] - places[None], axis=-1)[np.triu_indices(len(places), 1)]
        assert gaps.min() > MIN_OBJECT_GAP_M


def test_hands_start_and_stop_at_rest() -> None:
    assert [minimum_jerk(s) for s in (-1.0, 0.0, 0.5, 1.0, 2.0)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert minimum_jerk(0.01) < 1e-4
    assert 1.0 - minimum_jerk(0.99) < 1e-4
