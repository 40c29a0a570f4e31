"""Drive a policy inside a session: meet what really came, act frame by frame, fork to compare, and take it back.

python examples/session_drive.py [http://127.0.0.1:8000]
"""

import sys

import numpy as np

from foreframe_client import Client
from foreframe_engines import builtin_bundle
from foreframe_engines.episodes import load_clips

server = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
clip = load_clips(builtin_bundle() / "clips.npz")[0]
frames, states = clip.frames, clip.states
shoulder = 6  # LEFT_SHOULDER_PITCH, of the 25 numbers of a state


def policy(row, goal):
    """Close a quarter of the way to a posture; yours would look at the frame."""
    return row + 0.25 * (goal - row)


def drive(session, row, goal, count):
    """Let the policy act for some frames, each predicted from those before it; return where it ends."""
    for _ in range(count):
        row = policy(row, goal)
        made = session.step(row[None], strategy="posterior_mean")
    return row, made.frames[-1]


with Client(server) as client, client.open_session(frames[:4], states[:4], seed=0) as session:
    session.step(states[4:8], strategy="posterior_mean")  # what the robot was about to do
    for number, arrived in enumerate(session.push(frames[4:8], states[4:8]), 1):  # and what its camera then saw
        print(f"frame {number}: {arrived.psnr_db:.2f} dB; the frame before it: {arrived.baseline_db:.2f} dB")

    goal = states[7].copy()
    goal[shoulder] -= 0.4
    row, _ = drive(session, states[7], goal, 8)
    here = session.committed_step_id
    print(f"after {here} steps the shoulder has {goal[shoulder] - row[shoulder]:+.3f} rad to go")

    with session.fork() as other:  # from here on two futures, one memory
        _, stayed = drive(other, row, row, 4)
        _, went_back = drive(session, row, states[7], 4)
    apart = np.abs(stayed.astype(int) - went_back).mean()
    print(f"staying and going back differ by {apart:.2f} of 255 after 4 frames")

    status = session.rollback(here)
    print(f"back at step {status.committed_step_id}; the session holds {status.num_bytes / 1024:.0f} KiB")
