"""The stub's question as whole HTTP requests, and the bytes that a right answer holds. Opens no connection."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from peers.catalogue import OURS
from peers.hosting import stub

from foreframe_server.codec.documents import write_document
from foreframe_server.codec.media import Media

_ROWS, _STATES = stub.CONTEXT_FRAMES + stub.HORIZON, 3


@dataclass(frozen=True, slots=True, eq=False)
class StubQuestion:
    """One request with its head, and the pieces that the right answer's body holds."""

    request: bytes
    pieces: Sequence[bytes]


def stub_question(server: str, way: str, path: str, content: int) -> StubQuestion:
    """Write a question; contents of different numbers have different answers."""
    frames = np.random.default_rng(content).integers(0, 256, stub.CONTEXT_SHAPE, np.uint8)
    (answer,) = stub.StubModel(0).predict([frames])
    if server != OURS:
        return StubQuestion(_post(path, frames.tobytes(), {}), [answer.tobytes()])
    if way == "MessagePack":
        return StubQuestion(_native(frames), [frame.tobytes() for frame in answer])
    return StubQuestion(_kserve(frames), [answer.tobytes()])


def _native(frames: np.ndarray) -> bytes:
    clip = {"encoding": "raw_rgb8", "data": frames, "width": stub.SIZE, "height": stub.SIZE}
    states = np.zeros((_ROWS, _STATES), np.float32)
    past, future = np.split(states, [stub.CONTEXT_FRAMES])
    document = {
        "observation": {"cameras": {"head": clip}, "state": {"values": past}},
        "future": {"kind": "state", "values": future},
        "sampling": {"strategy": "sample", "steps": 1, "seed": 0},
        "return": {"encoding": "raw", "variance": "none"},
        "cache": "bypass",
    }
    kind = Media.MSGPACK.value
    return _post("/v1/predictions", write_document(document, Media.MSGPACK), {"content-type": kind, "accept": kind})


def _kserve(frames: np.ndarray) -> bytes:
    states = np.zeros((_ROWS, _STATES), np.float32)
    tensors = [
        ("past_frames", "UINT8", frames[None]),
        ("past_states", "FP32", states[None, : stub.CONTEXT_FRAMES]),
        ("future_states", "FP32", states[None, stub.CONTEXT_FRAMES :]),
    ]
    head = json.dumps(
        {
            "inputs": [
                {"name": name, "datatype": kind, "shape": each.shape, "parameters": {"binary_data_size": each.nbytes}}
                for name, kind, each in tensors
            ],
            "outputs": [{"name": "mean", "parameters": {"binary_data": True}}],
            "parameters": {"steps": 1, "seed": 0, "num_members": 1, "cache": "bypass"},
        }
    ).encode()
    body = head + b"".join(each.tobytes() for _, _, each in tensors)
    return _post("/v2/models/world_model/infer", body, {"inference-header-content-length": str(len(head))})


def _post(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    fields = {"host": "127.0.0.1", "content-length": str(len(body)), **headers}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body
