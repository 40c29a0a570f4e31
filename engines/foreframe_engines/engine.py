"""What a model family can do, in the field's words. The server knows engines by these protocols alone."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from foreframe_engines.types import (
    Conditioning,
    Contract,
    GridScore,
    Latents,
    StepRow,
    StepState,
    TokenRow,
    TokenSpec,
)


@runtime_checkable
class RolloutEngine(Protocol):
    """Encodes a context once, steps members from noise to latents, decodes the frames asked for.

    Every method is called from the one thread that owns the device.
    """

    contract: Contract
    determinism: str
    """What equal queries may count on: `bitwise` (equal bytes whatever shares a step), `bucketed` or `tolerance`."""

    @property
    def num_lanes(self) -> int:
        """How many forwards run side by side: a step of fewer rows leaves some of the device idle."""
        ...

    def encode(self, context: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, "t c y x"]:
        """Encode context frames (RGB 0..255) into clean latents."""
        ...

    def condition(
        self, context_latents: Float32[np.ndarray, "t c y x"], states: Float32[np.ndarray, "n d"]
    ) -> Conditioning:
        """Turn states (physical units, context and future rows) into what every step of every member needs.

        Fewer future rows than the contract's horizon repeat the last one: later frames never act on earlier
        answers' frames because those are not decoded.
        """
        ...

    def initial_latents(self, conditioning: Conditioning, noise: Float32[np.ndarray, "f c y x"]) -> StepState:
        """Put a member's noise for the future behind the clean context latents."""
        ...

    def noise_shape(self) -> tuple[int, int, int, int]:
        """Shape `f c y x` of the noise of one member's future latents."""
        ...

    def step(self, rows: Sequence[StepRow]) -> list[StepState]:
        """Advance each row by one solver step in one forward, at most `contract.buckets[-1]` rows.

        What lands at time 0 is finished latents `n c y x`.
        """
        ...

    def denoise(self, previous: StepState, state: StepState, time: float, next_time: float) -> Latents:
        """Return where the step that led from `previous` to `state` points at time 0."""
        ...

    def decode(
        self, latents: Sequence[Float32[np.ndarray, "n c y x"]], frame_indices: Sequence[int]
    ) -> UInt8[np.ndarray, "k f h w 3"]:
        """Decode the frames 1..H asked for, for each member's finished latents.

        Raises ModelFault when latents are not finite.
        """
        ...

    def close(self) -> None:
        """Free the device."""
        ...


@runtime_checkable
class LikelihoodEngine(Protocol):
    """Turns frames into ids and back, and says how likely each next grid of ids is.

    Every method is called from the one thread that owns the device.
    """

    contract: Contract
    tokens: TokenSpec
    """The contract's, which a likelihood model always has."""
    determinism: str
    """As of a rollout engine."""

    def tokenize(self, frames: UInt8[np.ndarray, "t h w 3"]) -> Int64[np.ndarray, "g s"]:
        """Turn whole windows of frames into grids of ids. Raises ShapeMismatch for a part of a window."""
        ...

    def detokenize(self, ids: Int64[np.ndarray, "g s"]) -> UInt8[np.ndarray, "t h w 3"]:
        """Turn whole windows of grids back into frames."""
        ...

    def read(self, rows: Sequence[TokenRow]) -> list[GridScore]:
        """Read one grid of each row and score the next; a row's answer does not depend on its neighbours.

        Raises ModelFault when a number is not finite.
        """
        ...

    def close(self) -> None:
        """Free the device."""
        ...
