"""What a peer's script opens, by the environment that the driver gives it: the world model, or the stub."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from peers.hosting import stub, wire
from peers.hosting.world import WorldModel, open_engine

PORT, MODEL, ARRANGEMENT, THREADS = "PEER_PORT", "PEER_MODEL", "PEER_ARRANGEMENT", "PEER_THREADS"
MAX_BATCH, WAIT_MS, STUB_ROUNDS = "PEER_MAX_BATCH", "PEER_WAIT_MS", "PEER_STUB_ROUNDS"
WORLD, STUB = "world", "stub"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server listens and how it batches."""

    port: int
    max_batch: int
    wait_s: float

    @classmethod
    def read(cls) -> "Place":
        """Read the environment."""
        settings = os.environ
        return cls(int(settings[PORT]), int(settings[MAX_BATCH]), int(settings[WAIT_MS]) / 1000)


@dataclass(frozen=True, slots=True)
class Hosted:
    """A model behind bytes."""

    unpack: Callable[[bytes], Any]
    predict: Callable[[Sequence[Any]], list[np.ndarray]]


def open_hosted() -> Hosted:
    """Open the model and run it once."""
    if os.environ[MODEL] == STUB:
        return Hosted(stub.unpack, stub.StubModel(int(os.environ[STUB_ROUNDS])).predict)
    model = WorldModel(open_engine(os.environ[ARRANGEMENT], int(os.environ[THREADS])))
    frames, states = np.zeros(wire.FRAMES_SHAPE, np.uint8), np.zeros(wire.STATES_SHAPE, np.float32)
    model.predict([wire.WorldRequest(frames, states, seed=0, members=2)])
    return Hosted(wire.unpack, model.predict)
