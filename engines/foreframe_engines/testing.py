"""Toy engines for tests: exact arithmetic in place of a model, with the whole protocol of a real engine.

They know no weights and no runtime. Every answer depends on all that a row holds and on no other row, through
additions, products and quotients (and for likelihoods one logarithm), so equal rows give equal bytes.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from foreframe_engines.errors import ModelFault
from foreframe_engines.types import (
    CameraSpec,
    Conditioning,
    Contract,
    GridScore,
    SamplerSpec,
    StateSchema,
    StepRow,
    TokenRow,
    TokenSpec,
)
from foreframe_engines.windows import grid_lengths, split_grids

StepHook = Callable[[Sequence[StepRow]], None]
ReadHook = Callable[[Sequence[TokenRow]], None]
_POOL = 2


def toy_contract(
    *,
    size: int = 8,
    context_frames: int = 4,
    horizon: int = 8,
    state_dim: int = 3,
    buckets: tuple[int, ...] = (1, 2, 4, 8, 16),
    tokens: TokenSpec | None = None,
) -> Contract:
    """Make the contract of toy engines: one camera `head`, `size` x `size` (even), and `state_dim` joints.

    With `tokens`, such as `toy_tokens()`, likelihoods are among its capabilities.
    """
    return Contract(
        model="toy",
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
        capabilities=("predict", "score") if tokens is None else ("predict", "likelihood", "score"),
        buckets=buckets,
        tokens=tokens,
    )


def toy_tokens(
    *,
    levels: tuple[int, ...] = (3, 2),
    grid: tuple[int, int] = (2, 2),
    window_frames: int = 1,
    window_grids: int = 1,
    max_grids: int = 16,
    max_candidates: int = 64,
) -> TokenSpec:
    """Make the tokens of a toy: 6 ids in grids of 4, one frame a grid. The grid must divide the camera's size."""
    return TokenSpec(levels, grid, window_frames, window_grids, max_grids, max_candidates)


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
    num_lanes = 1

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

    def denoise(
        self,
        previous: Float32[np.ndarray, "n c y x"],
        state: Float32[np.ndarray, "n c y x"],
        time: float,
        next_time: float,
    ) -> Float32[np.ndarray, "n c y x"]:
        """Return where an Euler step points at time 0."""
        return state - next_time * ((state - previous) / (next_time - time))

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


class ToyLikelihoodEngine:
    """A likelihood engine of plain arithmetic whose rows never touch.

    An id is the brightness of its patch. The next id lies near this one, pushed by the states of both grids, by the
    rest of the grid and by every grid before, under probabilities that sum to 1 over the vocabulary.
    `read_hook` is called with the rows of every read before it runs: it may count, advance a clock, wait or raise.
    `calls` counts the calls of each method, `read_rows` holds the rows of each read so far.
    """

    determinism = "bitwise"

    def __init__(self, contract: Contract | None = None, *, read_hook: ReadHook | None = None) -> None:
        """Raise ValueError when the contract has no tokens."""
        self.contract = contract or toy_contract(tokens=toy_tokens())
        if self.contract.tokens is None:
            raise ValueError("the contract has no tokens")
        self.tokens = self.contract.tokens
        self.calls: Counter[str] = Counter()
        self.read_rows: list[int] = []
        self.is_closed = False
        self._read_hook = read_hook

    def tokenize(self, frames: UInt8[np.ndarray, "t h w 3"]) -> Int64[np.ndarray, "g s"]:
        """Tell the mean brightness of each patch in one of v steps. Raises ShapeMismatch for a part of a window."""
        self.calls["tokenize"] += 1
        lengths = grid_lengths(len(frames), self.tokens)
        t, h, w, c = frames.shape
        rows, columns = self.tokens.grid
        sums = frames.reshape(t, rows, h // rows, columns, w // columns, c).sum(axis=(2, 4, 5), dtype=np.int64)
        totals = np.add.reduceat(sums.reshape(t, rows * columns), np.cumsum(lengths) - lengths, axis=0)
        num_values = lengths * (h // rows) * (w // columns) * c
        return totals * self.tokens.vocabulary // (256 * num_values[:, None])

    def detokenize(self, ids: Int64[np.ndarray, "g s"]) -> UInt8[np.ndarray, "t h w 3"]:
        """Paint each patch in the grey that its id stands for. Raises ShapeMismatch for a part of a window."""
        self.calls["detokenize"] += 1
        lengths = np.tile(self.tokens.frames_per_grid, len(split_grids(ids, self.tokens)))
        greys = ((2 * ids + 1) * 128 // self.tokens.vocabulary).astype(np.uint8)
        camera, (rows, columns) = self.contract.camera, self.tokens.grid
        patches = greys.repeat(lengths, axis=0).reshape(-1, rows, columns)
        pictures = patches.repeat(camera.height // rows, axis=1).repeat(camera.width // columns, axis=2)
        return np.repeat(pictures[..., None], 3, axis=-1)

    def read(self, rows: Sequence[TokenRow]) -> list[GridScore]:
        """Read one grid of each row and score the next, each by itself. Raises ModelFault when one is not finite."""
        if self._read_hook is not None:
            self._read_hook(rows)
        self.calls["read"] += 1
        self.read_rows.append(len(rows))
        return [self._score(row) for row in rows]

    def _score(self, row: TokenRow) -> GridScore:
        keys = ((row.ids + 1) / self.tokens.vocabulary).astype(np.float32)[None, None, None, :, None]
        values = np.full_like(keys, self._drive(row))
        probability = self._probability(row)
        if not np.isfinite(probability).all():
            raise ModelFault("the log probabilities are not finite")
        greedy = probability.argmax(axis=1)
        scored = np.take_along_axis(probability, (greedy if row.target is None else row.target)[:, None], axis=1)
        score = GridScore(np.log(scored[:, 0]).astype(np.float32), greedy, row.history.extended(keys, values))
        if row.top_k is None:
            return score
        mass = np.minimum(np.sort(probability, axis=1)[:, -row.top_k :].sum(axis=1), 1)
        is_in_top = (probability > scored).sum(axis=1) < row.top_k
        return replace(score, top_log_mass=np.log(mass).astype(np.float32), is_in_top=is_in_top)

    def _drive(self, row: TokenRow) -> np.float32:
        weights = np.arange(1, row.states.shape[1] + 1, dtype=np.float32)
        now, after = _softsign((row.states * weights).sum(axis=1))
        return np.float32(0.5) * now + after

    def _probability(self, row: TokenRow) -> Float64[np.ndarray, "s v"]:
        """Give each id of the vocabulary a weight that falls with its distance from where the picture should go."""
        past = np.zeros(self.tokens.tokens)
        for age, (keys, values) in enumerate(zip(row.history.keys[::-1], row.history.values[::-1], strict=True), 1):
            past += (keys * (1 + values))[0, 0, 0, :, 0] / (1 + age)
        centre = row.ids + 2 * self._drive(row) + past + row.ids.mean() / self.tokens.vocabulary
        distance = centre[:, None] - np.arange(self.tokens.vocabulary)
        weight = 1 / (0.25 + distance**2)
        return weight / weight.sum(axis=1, keepdims=True)

    def close(self) -> None:
        """Free nothing, and remember that it was asked."""
        self.is_closed = True


class LeakyToyLikelihoodEngine(ToyLikelihoodEngine):
    """A toy with a planted fault: every row of a read leaks into the others. Invariance tests must catch it."""

    def read(self, rows: Sequence[TokenRow]) -> list[GridScore]:
        """Read one grid of each row and score the next, stained by its neighbours."""
        scores = super().read(rows)
        mean = np.mean([score.log_probability for score in scores], axis=0, dtype=np.float32)
        return [
            replace(score, log_probability=np.float32(0.8) * score.log_probability + np.float32(0.2) * mean)
            for score in scores
        ]
