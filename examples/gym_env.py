"""Act inside the world model through gymnasium: one environment, then four that the server steps together.

python examples/gym_env.py [http://127.0.0.1:8000]
"""

import sys

import gymnasium
import numpy as np

from foreframe_client import Objective
from foreframe_client.gym import Start, Task, register, relative
from foreframe_engines import builtin_bundle
from foreframe_engines.episodes import load_clips

server = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
clips = load_clips(builtin_bundle() / "clips.npz")[:4]
task = Task(
    starts=[Start(clip.frames[:4], clip.states[:4]) for clip in clips],
    actions=relative(["LEFT_SHOULDER_PITCH", "LEFT_ELBOW_PITCH"], largest=0.1),  # rad a frame
    objectives=[Objective.goal_image(clips[0].frames[-1])],  # rewards are minus the distance to this picture
    strategy="posterior_mean",
    horizon=6,
)
world = register()

env = gymnasium.make(world, server=server, task=task)
observed, info = env.reset(seed=0, options={"start": 0})
is_over, total = False, 0.0
while not is_over:
    observed, reward, terminated, truncated, info = env.step(np.array([-0.5, 0.5], np.float32))
    is_over, total = terminated or truncated, total + reward
print(f"{info['step']} frames, {info['time_s']:.2f} s: reward {total:.4f}; saw {observed['pixels'].shape}")
env.close()

envs = gymnasium.make_vec(world, num_envs=4, server=server, task=task)
observed, infos = envs.reset(seed=0)
for _ in range(8):  # the seventh step begins new episodes: autoreset mode NEXT_STEP
    observed, rewards, terminated, truncated, infos = envs.step(envs.action_space.sample())
print(f"{envs.num_envs} environments at steps {infos['step'].tolist()}; saw {observed['pixels'].shape}")
envs.close()
