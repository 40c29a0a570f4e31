"""Ask what the camera will see, and how sure the model is.

python examples/predict.py [http://127.0.0.1:8000]
"""

import sys

from foreframe_client import Client
from foreframe_engines import builtin_bundle
from foreframe_engines.episodes import load_clips

server = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
clip = load_clips(builtin_bundle() / "clips.npz")[0]  # recorded, never trained on
seen, states = clip.frames[:4], clip.states[:4]  # uint8 RGB, oldest first; a row of physical units for each
plan = clip.states[4:]  # what the robot would do: 8 rows, one a frame

with Client(server) as client:
    prediction = client.predict(seen, states, plan, ensemble=8, seed=7, deadline_ms=5000)

print(f"{prediction.model} made {prediction.num_members} members in {prediction.timings_ms['total']:.0f} ms")
print("mean frames:", prediction.frames.shape, prediction.frames.dtype)
for time_s, spread in zip(prediction.times_s, prediction.spread_per_frame, strict=True):
    print(f"  {time_s:.2f} s ahead: members differ by {spread:.3f} of white")
