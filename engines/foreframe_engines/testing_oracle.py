"""Oracle engines: every answer is a keystream of a hash of all that was asked, and some questions do harm.

Whoever asks can compute the right bytes, so a mix-up of rows, callers, retries or cache entries anywhere shows in them.
A question whose last state row has a knob's number in the channel `knob` makes the engine sleep, allocate or die.
They know no weights and no server.
"""

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from foreframe_engines.errors import ModelFault
from foreframe_engines.testing import toy_contract, toy_tokens
from foreframe_engines.types import Conditioning, Contract, GridScore, StateSchema, StepRow, TokenRow
from foreframe_engines.windows import grid_lengths, split_grids

CHANNELS = ("joint_0", "joint_1", "knob", "amount")
EXIT_STATUS = 70
_KNOB, _AMOUNT = CHANNELS.index("knob"), CHANNELS.index("amount")
_HANG_S = 3600.0


class Knob(IntEnum):
    """What a question does to the engine at a member's first step; `amount` says how much.

    SLEEP: `amount` ms in every step. ALLOCATE: `amount` MB, freed after the step. ABORT: the process aborts. HANG: the
    step takes an hour. NAN: the latents are not finite. VANISH: the process exits between the result and its return.
    """

    NONE = 0
    SLEEP = 101
    ALLOCATE = 102
    ABORT = 103
    HANG = 104
    NAN = 105
    VANISH = 106


@dataclass(frozen=True, slots=True)
class Pace:
    """How long work takes: a fixed time for a forward and one for each of its rows, in milliseconds."""

    forward_ms: float = 0.0
    row_ms: float = 0.0

    def seconds(self, rows: int) -> float:
        """Return how long a forward of so many rows takes."""
        return (self.forward_ms + self.row_ms * rows) / 1000


Sleep = Callable[[float], None]


def oracle_contract() -> Contract:
    """Make the contract of oracles: one 8 x 8 camera, 2 frames of context, 4 of horizon, and the channels above."""
    wide = np.full(len(CHANNELS), 100_000, np.float32)
    schema = StateSchema(
        name="oracle",
        names=CHANNELS,
        units=("rad", "rad", "1", "1"),
        mean=np.zeros(len(CHANNELS), np.float32),
        std=np.ones(len(CHANNELS), np.float32),
        low=-wide,
        high=wide,
    )
    contract = toy_contract(context_frames=2, horizon=4, state_dim=len(CHANNELS), tokens=toy_tokens())
    return replace(contract, model="oracle", family="oracle", description="Hashes for answers.", state=schema)


def seal(*parts: object) -> bytes:
    """Hash text, numbers and arrays, each with its kind and length, so that no two lists of parts are alike."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            kind, data = f"{part.dtype.str}{part.shape}", part.tobytes()
        else:
            kind, data = type(part).__name__, repr(part).encode()
        digest.update(f"{kind} {len(data)} ".encode())
        digest.update(data)
    return digest.digest()


def keystream(digest: bytes, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
    """Spread a digest over as many bytes as a shape holds."""
    return np.frombuffer(hashlib.shake_256(digest).digest(int(np.prod(shape))), np.uint8).reshape(shape)


def _latents(digest: bytes, shape: tuple[int, ...]) -> Float32[np.ndarray, "..."]:
    return keystream(digest, shape).astype(np.float32) / np.float32(127.5) - 1


def _seal_tables(tables: Mapping[str, np.ndarray]) -> bytes:
    return seal(*(part for name in sorted(tables) for part in (name, tables[name])))


class OracleEngine:
    """A rollout engine of hashes whose rows never touch. is_calm: knobs do nothing, as for whoever checks answers."""

    determinism = "bitwise"
    num_lanes = 1

    def __init__(self, *, pace: Pace | None = None, is_calm: bool = False, sleep: Sleep = time.sleep) -> None:
        self.contract = oracle_contract()
        self._pace = pace or Pace()
        self._is_calm = is_calm
        self._sleep = sleep

    def encode(self, context: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, "t c y x"]:
        """Hash the frames."""
        return _latents(seal("encode", context), (self.contract.context_latents, *self.contract.latent_shape))

    def condition(
        self, context_latents: Float32[np.ndarray, "t c y x"], states: Float32[np.ndarray, "n d"]
    ) -> Conditioning:
        """Hash the latents and the states into `seal`; `knob` holds what the last row asks for."""
        sealed = _latents(seal("condition", context_latents, states), (1, self.contract.num_frames))
        knob = np.ascontiguousarray(states[-1:, [_KNOB, _AMOUNT]], np.float32)
        return Conditioning(context_latents, {"seal": sealed, "knob": knob})

    def noise_shape(self) -> tuple[int, int, int, int]:
        """Shape `f c y x` of the noise of one member's future latents."""
        return (self.contract.horizon, *self.contract.latent_shape)

    def initial_latents(
        self, conditioning: Conditioning, noise: Float32[np.ndarray, "f c y x"]
    ) -> Float32[np.ndarray, "n c y x"]:
        """Put a member's noise for the future behind the clean context latents."""
        return np.concatenate([conditioning.context_latents, noise])

    def step(self, rows: Sequence[StepRow]) -> list[Float32[np.ndarray, "n c y x"]]:
        """Hash each row by itself, after what its knob does."""
        self._sleep(self._pace.seconds(len(rows)))
        stepped = [self._advance(row) for row in rows]
        if any(self._knob(row) is Knob.VANISH for row in rows):
            os._exit(EXIT_STATUS)
        return stepped

    def _advance(self, row: StepRow) -> Float32[np.ndarray, "n c y x"]:
        self._turn(row)
        context, held = self.contract.context_latents, row.conditioning
        sealed = seal(
            "step", row.latents, row.time, row.next_time, row.earlier_times, row.guidance,
            held.context_latents, _seal_tables(held.tables),
        )  # fmt: skip
        future = _latents(sealed, row.latents[context:].shape)
        if self._knob(row) is Knob.NAN:
            future = np.full_like(future, np.nan)
        return np.concatenate([row.latents[:context], future])

    def _turn(self, row: StepRow) -> None:
        knob, amount = self._knob(row), float(row.conditioning.tables["knob"][0, 1])
        if knob is Knob.SLEEP:
            self._sleep(amount / 1000)
        if row.time < 1:
            return
        if knob is Knob.ALLOCATE:
            np.ones(int(amount * 2**20), np.uint8)
        elif knob is Knob.HANG:
            self._sleep(_HANG_S)
        elif knob is Knob.ABORT:
            os.abort()

    def _knob(self, row: StepRow) -> Knob:
        value = float(row.conditioning.tables["knob"][0, 0])
        return Knob(int(value)) if not self._is_calm and value in set(Knob) else Knob.NONE

    def denoise(
        self,
        previous: Float32[np.ndarray, "n c y x"],
        state: Float32[np.ndarray, "n c y x"],
        time: float,
        next_time: float,
    ) -> Float32[np.ndarray, "n c y x"]:
        """Hash a step's two ends."""
        context = self.contract.context_latents
        future = _latents(seal("denoise", previous, state, time, next_time), state[context:].shape)
        return np.concatenate([state[:context], future])

    def decode(
        self, latents: Sequence[Float32[np.ndarray, "n c y x"]], frame_indices: Sequence[int]
    ) -> UInt8[np.ndarray, "k f h w 3"]:
        """Hash each member's latents with each frame's number. Raises ModelFault when latents are not finite."""
        if not all(np.isfinite(member).all() for member in latents):
            raise ModelFault("the latents are not finite")
        camera = self.contract.camera
        shape = (camera.height, camera.width, 3)
        return np.stack(
            [
                np.stack([keystream(seal("decode", member, int(index)), shape) for index in frame_indices])
                for member in latents
            ]
        )

    def close(self) -> None:
        """Free nothing."""


class MixedUpOracle(OracleEngine):
    """An oracle with a planted fault: two rows of one forward change places. Whoever checks answers must notice."""

    def step(self, rows: Sequence[StepRow]) -> list[Float32[np.ndarray, "n c y x"]]:
        """Hash each row, and swap the first two."""
        stepped = super().step(rows)
        return stepped if len(stepped) < 2 else [stepped[1], stepped[0], *stepped[2:]]


class OracleLikelihood:
    """A likelihood engine of hashes whose rows never touch. It has no knobs."""

    determinism = "bitwise"

    def __init__(self, *, pace: Pace | None = None, sleep: Sleep = time.sleep) -> None:
        self.contract = oracle_contract()
        self.tokens = toy_tokens()
        self._pace = pace or Pace()
        self._sleep = sleep

    def tokenize(self, frames: UInt8[np.ndarray, "t h w 3"]) -> Int64[np.ndarray, "g s"]:
        """Hash each window of frames into ids. Raises ShapeMismatch for a part of a window."""
        grid_lengths(len(frames), self.tokens)
        return np.stack([self._ids(seal("tokenize", frame)) for frame in frames])

    def detokenize(self, ids: Int64[np.ndarray, "g s"]) -> UInt8[np.ndarray, "t h w 3"]:
        """Hash each grid of ids into a frame. Raises ShapeMismatch for a part of a window."""
        split_grids(ids, self.tokens)
        camera = self.contract.camera
        return np.stack([keystream(seal("detokenize", grid), (camera.height, camera.width, 3)) for grid in ids])

    def read(self, rows: Sequence[TokenRow]) -> list[GridScore]:
        """Hash each row by itself into log probabilities, ids and one grid more of history."""
        self._sleep(self._pace.seconds(len(rows)))
        return [self._score(row) for row in rows]

    def _score(self, row: TokenRow) -> GridScore:
        target = np.zeros(0, np.int64) if row.target is None else row.target
        sealed = seal("read", row.ids, row.states, target, row.top_k, *row.history.keys, *row.history.values)
        shape = (1, 1, 1, self.tokens.tokens, 1)
        history = row.history.extended(_latents(seal("keys", sealed), shape), _latents(seal("values", sealed), shape))
        score = GridScore(self._nats(seal("nats", sealed)), self._ids(seal("greedy", sealed)), history)
        if row.top_k is None:
            return score
        is_in_top = keystream(seal("in", sealed), (self.tokens.tokens,)) % 2 == 0
        return replace(score, top_log_mass=self._nats(seal("mass", sealed)), is_in_top=is_in_top)

    def _ids(self, digest: bytes) -> Int64[np.ndarray, " s"]:
        return keystream(digest, (self.tokens.tokens,)).astype(np.int64) % self.tokens.vocabulary

    def _nats(self, digest: bytes) -> Float32[np.ndarray, " s"]:
        return -(keystream(digest, (self.tokens.tokens,)).astype(np.float32) + 1) / np.float32(64)

    def close(self) -> None:
        """Free nothing."""
