"""The reaching task without a picture: one seed is one task, goals can be reached, candidates foresee physics."""

import numpy as np
import pytest

with pytest.MonkeyPatch.context() as environment:
    environment.setenv("MUJOCO_GL", "disable")  # nothing here renders, so no GL library is needed
    pytest.importorskip("mujoco", reason="mujoco is not installed")

from foreframe_models.worlds.eve_tabletop.names import STATE_NAMES
from foreframe_models.worlds.eve_tabletop.reach import (
    GOAL_DISTANCE_M,
    HORIZON_FRAMES,
    NUM_CONTEXT_FRAMES,
    PROPOSAL_STD_M,
    WORKSPACE_HIGH_M,
    WORKSPACE_LOW_M,
    ReachTask,
)

SEEDS = range(7_000_000, 7_000_006)
STILL = np.zeros(3)


@pytest.fixture(scope="module")
def tasks():
    return [ReachTask(seed) for seed in SEEDS]


def draw(seed, count=6):
    return np.random.default_rng(seed).normal(0.0, PROPOSAL_STD_M, (count, 3))


def test_a_seed_is_one_task(tasks):
    again = ReachTask(SEEDS[0])
    np.testing.assert_array_equal(again.states, tasks[0].states)
    np.testing.assert_array_equal(again.goal.hand_m, tasks[0].goal.hand_m)
    np.testing.assert_array_equal(again.context[0].qpos, tasks[0].context[0].qpos)
    assert not np.array_equal(tasks[1].goal.hand_m, tasks[0].goal.hand_m)


def test_context_and_states_are_of_the_contracts_shape(tasks):
    for task in tasks:
        assert len(task.context) == NUM_CONTEXT_FRAMES
        assert task.states.shape == (NUM_CONTEXT_FRAMES, len(STATE_NAMES))
        assert task.goal.states.shape == (HORIZON_FRAMES, len(STATE_NAMES))
        assert task.states.dtype == task.goal.states.dtype == np.float32


def test_states_belong_to_their_moments(tasks):
    for moment, row in zip(tasks[0].context, tasks[0].states, strict=True):
        assert row[0] == np.float32(moment.joint("hip_yaw").qpos[0])
    times = [moment.time for moment in tasks[0].context]
    np.testing.assert_allclose(np.diff(times), 1 / 15, atol=1e-6)
    assert tasks[0].goal.moment.time - times[-1] == pytest.approx(HORIZON_FRAMES / 15)


def test_goals_are_away_from_the_hand_and_in_both_hands_reach(tasks):
    moved = [task.distance_m(task.start_hand_m) for task in tasks]
    assert min(moved) > 0.06
    assert max(moved) < GOAL_DISTANCE_M[1] + 0.05
    assert {task.side for task in tasks} == {0, 1}


def test_execution_leaves_the_start_as_it_was(tasks):
    action = draw(3, 1)[0]
    first = tasks[2].execute(action)
    tasks[2].execute(-action)
    tasks[2].candidates(draw(4))
    again = tasks[2].execute(action)
    np.testing.assert_array_equal(again.states, first.states)
    np.testing.assert_array_equal(again.hand_m, first.hand_m)
    assert tasks[2].distance_m(tasks[2].goal.hand_m) == 0.0


def test_different_actions_end_in_different_places(tasks):
    left, right = (tasks[3].execute(np.array([0.0, side, 0.05])) for side in (0.1, -0.1))
    assert np.linalg.norm(left.hand_m - right.hand_m) > 0.08


def test_candidates_foresee_the_states_that_physics_reaches(tasks):
    foreseen, held, errors = [], [], []
    for task in tasks:
        actions = draw(int(task.side) + 9)
        states = task.candidates(actions)
        reached = np.stack([task.execute(action).states for action in actions])
        errors.append(states - reached)
        foreseen.append(np.abs(states - reached)[..., :21].mean())
        held.append(np.abs(task.states[-1] - reached)[..., :21].mean())
    assert np.mean(foreseen) < 0.015
    assert np.mean(foreseen) < 0.15 * np.mean(held)  # holding still would foresee nothing: the control
    assert np.abs(np.concatenate(errors)[..., -2:]).mean() < 0.02


def test_each_candidate_is_decoded_by_itself(tasks):
    actions = draw(1, 3)
    together = tasks[1].candidates(actions)
    for index, action in enumerate(actions):
        np.testing.assert_array_equal(tasks[1].candidates(action[None])[0], together[index])


def test_only_the_tasks_arm_is_moved(tasks):
    task = tasks[0]
    moved = np.abs(np.diff(task.candidates(np.array([STILL, [0.1, 0.1, 0.1]])), axis=0))[0].max(axis=0)
    arm = [index for index, name in enumerate(STATE_NAMES) if name.startswith(("LEFT_", "RIGHT_")[task.side])]
    others = sorted(set(range(len(STATE_NAMES))) - set(arm))
    assert moved[arm].max() > 0.1
    assert moved[others].max() == 0.0


def test_targets_beyond_the_workspace_are_drawn_to_its_edge(tasks):
    task = tasks[4]
    far, farther = task.candidates(np.array([[5.0, 0.0, 0.0], [9.0, 0.0, 0.0]]))
    np.testing.assert_array_equal(far, farther)
    reached = task.execute(np.array([5.0, 0.0, 0.0])).hand_m
    assert (reached < WORKSPACE_HIGH_M[task.side] + 0.03).all()
    assert (reached > WORKSPACE_LOW_M[task.side] - 0.05).all()


def test_random_actions_end_far_from_the_goal_and_the_way_to_it_ends_near(tasks):
    far = [task.distance_m(task.execute(action).hand_m) for task in tasks for action in draw(task.side + 20)]
    near = [task.distance_m(task.execute(task.goal.hand_m - task.start_hand_m).hand_m) for task in tasks]
    assert np.mean(far) > 0.1
    assert np.mean(near) < 0.35 * np.mean(far)
