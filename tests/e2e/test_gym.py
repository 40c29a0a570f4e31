"""Environments in the model that ships, served as it is to everyone."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from foreframe_client import Objective
from foreframe_client.gym import RemoteWorldEnv, Start, Task, register, relative
from foreframe_engines import builtin_bundle
from foreframe_engines.episodes import load_clips
from foreframe_server.cli.serving import running_server
from foreframe_server.settings import Settings

CLIPS = load_clips(builtin_bundle() / "clips.npz")[:3]
STARTS = [Start(clip.frames[:4], clip.states[:4]) for clip in CLIPS]
ARMS = list(range(6, 20))


@pytest.fixture(scope="module")
def address():
    with running_server(Settings(http={"port": 0}, engine={"processes": 0})) as served:
        yield served


@pytest.mark.parametrize("strategy", ["sample", "posterior_mean"])
def test_gymnasium_finds_nothing_to_say(address, strategy):
    goal = [Objective.goal_image(CLIPS[0].frames[-1])]
    task = Task(STARTS, relative(ARMS, 0.05), goal, strategy=strategy)
    env = gymnasium.make(register(), server=address, task=task)
    check_env(env.unwrapped)
    env.close()


def test_what_the_robot_did_is_rewarded_more_than_standing_still(address):
    goal = [Objective.goal_image(CLIPS[1].frames[-1])]
    env = RemoteWorldEnv(address, Task(STARTS, objectives=goal, strategy="posterior_mean"))
    last = {}
    for name, rows in {"did": CLIPS[1].states[4:], "still": np.repeat(CLIPS[1].states[3:4], 8, axis=0)}.items():
        env.reset(seed=0, options={"start": 1})
        last[name] = [env.step(row)[1] for row in rows][-1]
    env.close()

    assert last["still"] < last["did"] < 0
