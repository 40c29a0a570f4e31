"""A model that takes next to no time, whatever the size of its frames: what is left is what everything else costs."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float32, UInt8

from foreframe_engines import Contract
from foreframe_engines.testing import ToyRolloutEngine, toy_contract

_GRID = 2


def stub_contract(size: int, context_frames: int) -> Contract:
    """Make the contract of stubs: one future frame, latents of 2 x 2; `size` is a multiple of 4."""
    return replace(toy_contract(size=size, context_frames=context_frames, horizon=1), latent_shape=(3, _GRID, _GRID))


class StubEngine(ToyRolloutEngine):
    """A toy that looks at four pixels a frame, whatever its size."""

    def encode(self, context: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, "t c y x"]:
        """Take one pixel of each quarter."""
        _, height, width, _ = context.shape
        corners = context[:, :: height // _GRID, :: width // _GRID]
        return np.ascontiguousarray(corners.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5) - 1)

    def decode(
        self, latents: Sequence[Float32[np.ndarray, "n c y x"]], frame_indices: Sequence[int]
    ) -> UInt8[np.ndarray, "k f h w 3"]:
        """Paint each part in its colour."""
        small = super().decode(latents, frame_indices)
        camera = self.contract.camera
        return small.repeat(camera.height // small.shape[2], axis=2).repeat(camera.width // small.shape[3], axis=3)
