"""Arrivals as bodies of `POST /v1/predictions`, for whatever model the server has. Knows the wire, sends nothing."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from foreframe_server.codec.documents import write_document
from foreframe_server.codec.media import Media
from foreframe_server.load.traces import Ask

MAX_CONTENTS = 2**32
"""How many contents a run may number."""

_SEEDS = 2**20
"""Times `MAX_CONTENTS` they still fit the wire."""
_MARK_BYTES = 8
_JITTER = 0.3


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a question has to fit: one camera, its context and horizon, and the mean and deviation of each state."""

    model: str
    revision: str
    camera: str
    height: int
    width: int
    context_frames: int
    horizon: int
    steps: int
    state_mean: tuple[float, ...]
    state_std: tuple[float, ...]


class Questions:
    """Writes bodies. Contents of different numbers are different, from the first picture to the seed.

    seed: questions of one seed and number are the same but for the first bytes of their first picture, which hold the
    nonce (0..2^64) plus the number: it tells this run from others, so that no cache knows its questions from before.
    """

    def __init__(self, sizes: Sizes, *, seed: int, nonce: int) -> None:
        rng = np.random.default_rng(0)
        shape = (sizes.context_frames, sizes.height, sizes.width, 3)
        rows = sizes.context_frames + sizes.horizon
        self._sizes = sizes
        self._first_seed = seed % _SEEDS * MAX_CONTENTS
        self._nonce = nonce
        self._frames = rng.integers(0, 256, shape, dtype=np.uint8)
        noise = _JITTER * rng.standard_normal((rows, len(sizes.state_mean)))
        self._states = (np.array(sizes.state_mean) + np.array(sizes.state_std) * noise).astype(np.float32)

    def write(self, ask: Ask, content: int) -> bytes:
        """Write one question as MessagePack."""
        mark = (self._nonce + content) % 2 ** (8 * _MARK_BYTES)
        frames = self._frames.copy()
        frames.reshape(-1)[:_MARK_BYTES] = np.frombuffer(mark.to_bytes(_MARK_BYTES, "little"), np.uint8)
        return write_question(self._sizes, ask, Content(frames, self._states, self._first_seed + content))


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """What a question is about: frames 0..255 that were seen, states of them and of the future, and a seed."""

    frames: UInt8[np.ndarray, "t h w 3"]
    states: Float32[np.ndarray, "n d"]
    seed: int


def write_question(sizes: Sizes, ask: Ask, content: Content) -> bytes:
    """Write a question about a content as MessagePack."""
    past, future = np.split(content.states, [sizes.context_frames])
    clip = {"encoding": "raw_rgb8", "data": content.frames, "width": sizes.width, "height": sizes.height}
    document = {
        "model": sizes.model,
        "observation": {"cameras": {sizes.camera: clip}, "state": {"values": past}},
        "future": {"kind": "state", "values": future},
        **_terms(ask, content.seed),
        "return": {"encoding": "raw"},
    }
    return write_document(document, Media.MSGPACK)


def _terms(ask: Ask, seed: int) -> dict[str, object]:
    optional = {"deadline_ms": ask.deadline_ms, "stream_id": ask.stream_id}
    steps = {} if ask.steps is None else {"steps": ask.steps}
    return {
        **({} if ask.strategy == "posterior_mean" else {"ensemble": {"size": ask.members}}),
        "sampling": {"strategy": ask.strategy, "seed": seed, **steps},
        "on_deadline": ask.on_deadline,
        "priority": ask.priority,
        "cache": ask.cache,
        **{name: value for name, value in optional.items() if value is not None},
    }
