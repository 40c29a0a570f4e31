"""Replay an episode of a LeRobotDataset v3, window by window, and compare what was predicted with what came.

python examples/lerobot_replay.py [http://127.0.0.1:8000] [FOLDER] [EPISODE]

Without a folder a small data set is written first, from recorded clips of the simulated robot. One of your own has to
have the model's camera size and states; the server says what does not fit. Needs pyarrow.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from foreframe_client import Client
from foreframe_engines import builtin_bundle
from foreframe_engines.episodes import Episode, load_clips
from foreframe_engines.readers import LeRobotRecordings
from foreframe_engines.testing_lerobot import LeRobotLayout, write_lerobot

server = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"


def write_example(folder, names):
    """Write two episodes of 12 frames, one after the other in one lossless video."""
    clips = load_clips(builtin_bundle() / "clips.npz")[:2]
    episodes = [Episode(index, clip.frames, clip.states, clip.masks, {}) for index, clip in enumerate(clips)]
    write_lerobot(folder, episodes, LeRobotLayout(15, "head", names, codec="libx264rgb"))


def psnr_db(predicted, arrived):
    """PSNR in dB of one frame."""
    return 10 * np.log10(255**2 / np.square(predicted.astype(float) - arrived).mean())


with Client(server) as client, tempfile.TemporaryDirectory() as scratch:
    model, schema = client.models()[0], client.state_schemas()[0]
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(scratch)
    if len(sys.argv) <= 2:
        write_example(folder, schema.names)
    recordings = LeRobotRecordings.open(folder)
    episode = recordings.read(int(sys.argv[3]) if len(sys.argv) > 3 else 1)
    print(f"{len(recordings)} episodes at {recordings.fps:g} frames a second; this one has {len(episode.frames)}")
    context, ahead = model.context_frames, model.horizon
    for now in range(context, len(episode.frames) - ahead + 1, ahead):
        frames, states = episode.frames[now - context : now], episode.states[now - context : now]
        made = client.predict(frames, states, episode.states[now : now + ahead], strategy="posterior_mean")
        came = episode.frames[now : now + ahead]
        for step, (predicted, arrived) in enumerate(zip(made.frames, came, strict=True), now):
            print(f"frame {step}: {psnr_db(predicted, arrived):.2f} dB, copying {psnr_db(frames[-1], arrived):.2f} dB")
