"""foreframe with the stub below it: every request goes the whole way, from the door to the scheduler and back."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from peers.hosting import stub
from peers.hosting.hosted import STUB_ROUNDS

from foreframe_engines import Contract, StepRow
from foreframe_engines.testing import ToyRolloutEngine, toy_contract
from foreframe_server.cli.serving import serve_until_stopped
from foreframe_server.log import configure_logging
from foreframe_server.opening import given
from foreframe_server.settings import read_settings


class StubEngine(ToyRolloutEngine):
    """The stub as an engine: latents are corner colours 0..1, and a step multiplies and lets the context last."""

    def __init__(self, rounds: int) -> None:
        super().__init__(stub_contract())
        self._model = stub.StubModel(rounds)

    def encode(self, context: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(stub.corners(context).transpose(0, 3, 1, 2).astype(np.float32) / 255)

    def step(self, rows: Sequence[StepRow]) -> list[np.ndarray]:
        return [self._step(row) for row in rows]

    def decode(self, latents: Sequence[np.ndarray], frame_indices: Sequence[int]) -> np.ndarray:
        wanted = [stub.CONTEXT_FRAMES + index - 1 for index in frame_indices]
        colours = [np.rint(255 * each[wanted]).astype(np.uint8).transpose(0, 2, 3, 1) for each in latents]
        return np.stack([stub.paint(each) for each in colours])

    def _step(self, row: StepRow) -> np.ndarray:
        self._model.work()
        latents = np.array(row.latents)
        latents[stub.CONTEXT_FRAMES :] = latents[stub.CONTEXT_FRAMES - stub.HORIZON : stub.CONTEXT_FRAMES]
        return latents


def stub_contract() -> Contract:
    """Return the contract of the stub: one step, one member."""
    toy = toy_contract(size=stub.SIZE, context_frames=stub.CONTEXT_FRAMES, horizon=stub.HORIZON)
    return replace(toy, latent_shape=(3, stub.GRID, stub.GRID), sampler=replace(toy.sampler, steps=1))


if __name__ == "__main__":
    configure_logging(is_quiet=True)
    settings = read_settings({"http": {"host": "127.0.0.1", "port": int(sys.argv[1])}})
    engine = StubEngine(int(os.environ[STUB_ROUNDS]))
    serve_until_stopped(settings, lambda address, contract: None, given(engine))
