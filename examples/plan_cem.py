"""Find out how to move so that the camera sees a goal picture: the cross-entropy method against the server's scores.

python examples/plan_cem.py [http://127.0.0.1:8000]
"""

import sys
from functools import partial

import numpy as np

from foreframe_client import Client, Objective
from foreframe_client.planning import CrossEntropyPlanner, Gaussian
from foreframe_engines import builtin_bundle
from foreframe_engines.episodes import load_clips

server = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
clip = load_clips(builtin_bundle() / "clips.npz")[2]
arms = slice(6, 20)  # of the 25 numbers of a state


def decode(actions):
    """Turn displacements of the 14 arm joints (rad) into 8 rows of states, reached at an even pace."""
    plans = np.tile(clip.states[3], (len(actions), 8, 1))
    plans[:, :, arms] += np.linspace(1 / 8, 1, 8)[None, :, None] * actions[:, None]
    return plans


with Client(server) as client, client.observe(clip.frames[:4], clip.states[:4]) as seen:
    goal = Objective.goal_image(clip.frames[-1])
    score = partial(client.score, observation=seen, objectives=[goal], strategy="posterior_mean", seed=0)
    still = score(candidates=decode(np.zeros((1, 14)))).costs[0]
    proposal = Gaussian(np.zeros(14), np.full(14, 0.1))
    planner = CrossEntropyPlanner(decode, proposal, num_candidates=24, num_elites=6, rounds=4)
    plan = planner.plan(score)

print(f"standing still costs {still:.5f}")
print("best of each round:", ", ".join(f"{cost:.5f}" for cost in plan.best_costs))
print(f"the plan, {plan.states.shape}, costs {plan.cost / still:.2f} of standing still")
