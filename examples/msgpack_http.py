"""Ask over HTTP without the client: MessagePack with arrays as maps, the way of openpi. For any language.

python examples/msgpack_http.py [http://127.0.0.1:8000]
"""

import sys

import httpx
import msgpack
import numpy as np

from foreframe_engines import builtin_bundle
from foreframe_engines.episodes import load_clips

server = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
clip = load_clips(builtin_bundle() / "clips.npz")[0]


def pack_array(array):
    """Write an array as a map."""
    return {"__ndarray__": True, "data": array.tobytes(), "dtype": array.dtype.str, "shape": list(array.shape)}


def unpack_array(packed):
    """Read an array from a map; what the server sends has keys of bytes."""
    return np.frombuffer(packed[b"data"], packed[b"dtype"]).reshape(packed[b"shape"])


question = {
    "observation": {
        "cameras": {"head": {"frames": pack_array(clip.frames[:4])}},
        "state": {"values": pack_array(clip.states[:4])},
    },
    "future": {"kind": "state", "values": pack_array(clip.states[4:])},
    "sampling": {"strategy": "posterior_mean"},
    "return": {"encoding": "raw"},
}
media = "application/msgpack"
reply = httpx.post(
    f"{server}/v1/predictions",
    content=msgpack.packb(question),
    headers={"content-type": media, "accept": media},
    timeout=60,
)
answer = msgpack.unpackb(reply.content)
if reply.is_error:
    sys.exit(f"{answer['code']}: {answer['detail']}")
frames = np.stack([unpack_array(frame["image"]) for frame in answer["frames"]])
print("frames:", frames.shape, frames.dtype)
print("took:", answer["timings_ms"]["total"], "ms")
