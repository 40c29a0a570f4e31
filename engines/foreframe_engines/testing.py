"""Toy engines for tests: exact arithmetic in place of a model, with the whole protocol of a real engine.

They know no weights and no runtime. Every answer depends on context, states, noise and time, row by row, through
additions, products and quotients only, so equal rows give equal bytes on every machine.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32, UInt8

from foreframe_engines.errors import ModelFault
from foreframe_engines.types import CameraSpec, Conditioning, Contract, SamplerSpec, StateSchema, StepRow

StepHook = Callable[[Sequence[StepRow]], None]
_POOL = 2


def toy_contract(
    *,
    model: str = "toy",
    size: int = 8,
    context_frames: int = 4,
    horizon: int = 8,
    state_dim: int = 3,
    buckets: tuple[int, ...] = (1, 2, 4, 8, 16),
) -> Contract:
    """Make the contract of a toy engine: one camera `head`, `size` x `size` (even), and `state_dim` joints."""
    return Contract(
        model=model,
        family="toy",
        revision="1",
        description="Deterministic arithmetic in place of a model.",
        cameras=(CameraSpec("head", size, size),),
        context_frames=context_frames,
        horizon=horizon,
        fps=10.0,
        state=_toy_schema(state_dim),
        sampler=SamplerSpec(steps=4, max_steps=50, shift=5.0, ensemble_size=1, max_ensemble_size=32),
        latent_shape=(3, size // _POOL, size // _POOL),
        frames_per_latent=1,
        capabilities=("predict",),
        buckets=buckets,
    )


def _toy_schema(dim: int) -> StateSchema:
    return StateSchema(
        name="toy-joints",
        names=tuple(f"joint_{index}" for index in range(dim)),
        units=("rad",) * dim,
        mean=np.zeros(dim, np.float32),
        std=np.ones(dim, np.float32),
        low=np.full(dim, -3, np.float32),
        high=np.full(dim, 3, np.float32),
    )


def _softsign(values: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    return values / (1 + np.abs(values))


class ToyRolloutEngine:
    """A rollout engine of plain arithmetic whose rows never touch.

    `step_hook` is called with the rows of every forward before it runs: it may count, advance a clock, wait or raise.
    `calls` counts the calls of each method, `step_rows` holds the rows of each forward so far.
    """

    determinism = "bitwise"

    def __init__(self, contract: Contract | None = None, *, step_hook: StepHook | None = None) -> None:
        self.contract = contract or toy_contract()
        self.calls: Counter[str] = Counter()
        self.step_rows: list[int] = []
        self.is_closed = False
        self._step_hook = step_hook

    def encode(self, context: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, "t c y x"]:
        """Average blocks of pixels into latents -1..1."""
        self.calls["encode"] += 1
        t, h, w, c = context.shape
        blocks = context.reshape(t, h // _POOL, _POOL, w // _POOL, _POOL, c).sum(axis=(2, 4), dtype=np.uint32)
        pooled = blocks.astype(np.float32) / np.float32(127.5 * _POOL**2) - 1
        return np.ascontiguousarray(pooled.transpose(0, 3, 1, 2))

    def condition(
        self, context_latents: Float32[np.ndarray, "t c y x"], states: Float32[np.ndarray, "n d"]
    ) -> Conditioning:
        """Make the table `drive` `1 n`: how far the states of each frame push the picture, -1..1."""
        self.calls["condition"] += 1
        rows = np.minimum(np.arange(self.contract.context_frames + self.contract.horizon), len(states) - 1)
        weights = np.arange(1, states.shape[1] + 1, dtype=np.float32)
        return Conditioning(context_latents, {"drive": _softsign((states[rows] * weights).sum(axis=1))[None]})

    def noise_shape(self) -> tuple[int, int, int, int]:
        """Shape `f c y x` of the noise of one member's future latents."""
        return (self.contract.horizon, *self.contract.latent_shape)

    def initial_latents(
        self, conditioning: Conditioning, noise: Float32[np.ndarray, "f c y x"]
    ) -> Float32[np.ndarray, "n c y x"]:
        """Put a member's noise for the future behind the clean context latents."""
        return np.concatenate([conditioning.context_latents, noise])

    def step(self, rows: Sequence[StepRow]) -> list[Float32[np.ndarray, "n c y x"]]:
        """Advance each row by one solver step, each by itself."""
        if self._step_hook is not None:
            self._step_hook(rows)
        self.calls["step"] += 1
        self.step_rows.append(len(rows))
        return [self._advance(row) for row in rows]

    def _advance(self, row: StepRow) -> Float32[np.ndarray, "n c y x"]:
        context = self.contract.context_frames
        time, next_time = np.float32(row.time), np.float32(row.next_time)
        drive = row.conditioning.tables["drive"][0, context:, None, None, None]
        noisy, last = row.latents[context:], row.latents[context - 1]
        clean = last + np.float32(0.5) * drive + np.float32(0.3) * _softsign(noisy) * (2 - time)
        future = noisy + (next_time - time) * (noisy - clean) / time
        return np.concatenate([row.latents[:context], future])

    def decode(
        self, latents: Sequence[Float32[np.ndarray, "n c y x"]], frame_indices: Sequence[int]
    ) -> UInt8[np.ndarray, "k f h w 3"]:
        """Spread each latent over its block of pixels. Raises ModelFault when latents are not finite."""
        self.calls["decode"] += 1
        wanted = [self.contract.context_frames + index - 1 for index in frame_indices]
        chosen = np.stack([member[wanted] for member in latents])
        if not np.isfinite(chosen).all():
            raise ModelFault("the latents are not finite")
        levels = np.floor((np.clip(chosen, -1, 1) + 1) * np.float32(127.5) + np.float32(0.5)).astype(np.uint8)
        return levels.repeat(_POOL, axis=-2).repeat(_POOL, axis=-1).transpose(0, 1, 3, 4, 2)

    def close(self) -> None:
        """Free nothing, and remember that it was asked."""
        self.is_closed = True


class LeakyToyEngine(ToyRolloutEngine):
    """A toy with a planted fault: every row of a forward leaks into the others. Invariance tests must catch it."""

    def step(self, rows: Sequence[StepRow]) -> list[Float32[np.ndarray, "n c y x"]]:
        """Advance each row by one solver step, stained by its neighbours."""
        context = self.contract.context_frames
        stepped = super().step(rows)
        stain = np.float32(0.2) * (np.mean(stepped, axis=0) - np.stack(stepped))
        for latents, leak in zip(stepped, stain, strict=True):
            latents[context:] += leak[context:]
        return stepped
