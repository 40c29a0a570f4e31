"""An engine whose work only lets a simulated clock go on. It has a model's contract and none of its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, UInt8

from foreframe_engines import Conditioning, Contract, StepRow
from foreframe_engines.types import CameraSpec, Latents, StepState
from foreframe_server.capacity.costs import Costs, Seconds

_LATENTS = np.zeros((1, 1, 1, 1), np.float32)


@dataclass(slots=True)
class VirtualClock:
    """Seconds that go on only when somebody says so."""

    now: float = 0.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.now


class PacedEngine:
    """Takes as long as the costs say, with their spread; rows and members are all alike."""

    determinism = "bitwise"
    num_lanes = 1

    def __init__(self, contract: Contract, costs: Costs, clock: VirtualClock, rng: np.random.Generator) -> None:
        self.contract = replace(contract, cameras=(CameraSpec("none", 1, 1),), latent_shape=(1, 1, 1))
        self.busy_s = 0.0
        self._costs = costs
        self._clock = clock
        self._rng = rng

    def encode(self, context: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, "t c y x"]:  # noqa: ARG002
        """Take no time: `condition` takes that of both, as contexts are kept and conditions are not."""
        return _LATENTS

    def condition(
        self,
        context_latents: Float32[np.ndarray, "t c y x"],
        states: Float32[np.ndarray, "n d"],  # noqa: ARG002
    ) -> Conditioning:
        """Take the time of preparing a question."""
        self._work(self._costs.prepare)
        return Conditioning(context_latents, {})

    def noise_shape(self) -> tuple[int, int, int, int]:
        """Shape `f c y x` of a member's noise."""
        return (1, 1, 1, 1)

    def initial_latents(self, conditioning: Conditioning, noise: Float32[np.ndarray, "f c y x"]) -> StepState:  # noqa: ARG002
        """Return latents that say nothing."""
        return _LATENTS

    def step(self, rows: Sequence[StepRow]) -> list[StepState]:
        """Take the time of a forward."""
        self._work(self._costs.step(len(rows)))
        return [_LATENTS] * len(rows)

    def denoise(self, previous: StepState, state: StepState, time: float, next_time: float) -> Latents:  # noqa: ARG002
        """Return latents that say nothing."""
        return _LATENTS

    def decode(
        self, latents: Sequence[Float32[np.ndarray, "n c y x"]], frame_indices: Sequence[int]
    ) -> UInt8[np.ndarray, "k f h w 3"]:
        """Take the time of decoding so many frames, and return black ones."""
        self._work(self._costs.frame.scaled(len(latents) * len(frame_indices)))
        return np.zeros((len(latents), len(frame_indices), 1, 1, 3), np.uint8)

    def close(self) -> None:
        """Do nothing."""

    def _work(self, seconds: Seconds) -> None:
        taken_s = seconds.draw(self._rng)
        self._clock.now += taken_s
        self.busy_s += taken_s
