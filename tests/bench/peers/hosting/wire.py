"""What a peer is asked in raw bytes: a header, context frames, states. Numpy and the standard library alone."""

import struct
from dataclasses import dataclass

import numpy as np

FRAMES_SHAPE, STATES_SHAPE, REPLY_SHAPE = (4, 64, 64, 3), (12, 25), (8, 64, 64, 3)
_HEADER = struct.Struct("<QI4x")
_FRAMES_BYTES = int(np.prod(FRAMES_SHAPE))
BODY_BYTES = _HEADER.size + _FRAMES_BYTES + 4 * int(np.prod(STATES_SHAPE))


@dataclass(frozen=True, slots=True, eq=False)
class WorldRequest:
    """One question: uint8 context frames, float32 states of past and future, the seed and how many members."""

    frames: np.ndarray
    states: np.ndarray
    seed: int
    members: int


def pack(request: WorldRequest) -> bytes:
    """Write a question."""
    return _HEADER.pack(request.seed, request.members) + request.frames.tobytes() + request.states.tobytes()


def unpack(body: bytes) -> WorldRequest:
    """Read a question. Raises ValueError for a body of another length."""
    if len(body) != BODY_BYTES:
        raise ValueError(f"a body has {BODY_BYTES} bytes, this one {len(body)}")
    seed, members = _HEADER.unpack_from(body)
    frames = np.frombuffer(body, np.uint8, _FRAMES_BYTES, _HEADER.size).reshape(FRAMES_SHAPE)
    states = np.frombuffer(body, np.float32, offset=_HEADER.size + _FRAMES_BYTES).reshape(STATES_SHAPE)
    return WorldRequest(frames, states, seed, members)
