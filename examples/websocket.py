"""Keep one connection open: the contract first, then an answer that gets better until it is done.

python examples/websocket.py [http://127.0.0.1:8000]
"""

import sys

import msgpack
from websockets.sync.client import connect

from foreframe_engines import builtin_bundle
from foreframe_engines.episodes import load_clips

server = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
clip = load_clips(builtin_bundle() / "clips.npz")[0]

with connect(f"{server.replace('http', 'ws', 1)}/v1/realtime", max_size=None) as socket:
    contract = msgpack.unpackb(socket.recv())["body"]
    camera = contract["cameras"][0]
    print(f"{contract['id']}: {camera['name']} {camera['width']}x{camera['height']} at {contract['fps']:g} a second")
    video = {"encoding": "raw_rgb8", "width": camera["width"], "height": camera["height"]}
    video["frames"] = [frame.tobytes() for frame in clip.frames[:4]]
    question = {
        "type": "predict",
        "request_id": "first",
        "observation": {"cameras": {camera["name"]: video}, "state": {"values": clip.states[:4].tolist()}},
        "future": {"values": clip.states[4:].tolist()},
        "ensemble": {"size": 8},
        "return": {"encoding": "raw"},
        "progress": True,
    }
    socket.send(msgpack.packb(question))
    while (message := msgpack.unpackb(socket.recv()))["type"] not in ("done", "error"):
        print(message["type"])  # accepted, estimate, update, update, …
    if message["type"] == "error":
        sys.exit(str(message["body"]))
    print("done with", message["body"]["ensemble"]["members"], "members")
