"""Engines that stand for those in other processes: each call is written down, run over there, and read back."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from foreframe_engines import Conditioning, Contract, GridScore, StepRow, TokenHistory, TokenRow, TokenSpec
from foreframe_engines.solvers import initial_state
from foreframe_engines.types import Latents, StepState
from foreframe_server.processes.channel import Message, at
from foreframe_server.processes.frames import CorruptFrame
from foreframe_server.processes.messages import (
    Arrays,
    ConditionCall,
    ConditioningReply,
    DecodeCall,
    DenoiseCall,
    DetokenizeCall,
    EncodeCall,
    ReadCall,
    ReadPart,
    ScorePart,
    Scores,
    SharedPart,
    StepCall,
    StepPart,
    TokenizeCall,
)
from foreframe_server.processes.notes import EngineFacts
from foreframe_server.processes.parcels import Parcel
from foreframe_server.processes.process import Write

_Reply = TypeVar("_Reply")


class RunCall(Protocol):
    """Runs a call somewhere. Raises what the engine raised, or EngineLost."""

    def __call__(self, write: Write, kind: str, size: int) -> Message:
        """Run a call of a kind on so many items."""
        ...


class ProcessRolloutEngine:
    """A rollout engine that runs in another process. Every call raises EngineLost when that is lost.

    What is in a Conditioning must not be written to: it is sent once, and known by identity.
    """

    def __init__(self, facts: EngineFacts, run: RunCall, on_close: Callable[[], None]) -> None:
        """Stand for an engine that is what `facts` say. on_close: called once."""
        if facts.noise_shape is None:
            raise CorruptFrame("a rollout engine said no shape of its noise")
        self.contract: Contract = facts.contract
        self.determinism = facts.determinism
        self.num_lanes = facts.num_lanes
        self._noise_shape = facts.noise_shape
        self._run = run
        self._close = _Once(on_close)

    def encode(self, context: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, "t c y x"]:
        """Encode context frames (RGB 0..255) into clean latents."""
        return _sole(self._run(lambda parcel: EncodeCall(context=parcel.put(context)), "encode", 1))

    def condition(
        self, context_latents: Float32[np.ndarray, "t c y x"], states: Float32[np.ndarray, "n d"]
    ) -> Conditioning:
        """Turn states (physical units) into what every step of every member needs."""

        def write(parcel: Parcel) -> ConditionCall:
            return ConditionCall(context_latents=parcel.put(context_latents), states=parcel.put(states))

        message = self._run(write, "condition", 1)
        reply = _body(message, ConditioningReply)
        own = context_latents if reply.context_latents is None else at(message.arrays, reply.context_latents)
        return Conditioning(own, {name: at(message.arrays, index) for name, index in reply.tables.items()})

    def initial_latents(self, conditioning: Conditioning, noise: Float32[np.ndarray, "f c y x"]) -> StepState:
        """Put a member's noise for the future behind the clean context latents, on this side."""
        return initial_state(conditioning.context_latents, noise, self.contract.sampler.solver)

    def noise_shape(self) -> tuple[int, int, int, int]:
        """Shape `f c y x` of the noise of one member's future latents."""
        return self._noise_shape

    def step(self, rows: Sequence[StepRow]) -> list[StepState]:
        """Advance each row by one solver step in one forward."""
        return _arrays(self._run(lambda parcel: _write_step(rows, parcel), "step", len(rows)), len(rows))

    def denoise(self, previous: StepState, state: StepState, time: float, next_time: float) -> Latents:
        """Return where the step that led from `previous` to `state` points at time 0."""

        def write(parcel: Parcel) -> DenoiseCall:
            return DenoiseCall(
                previous=parcel.put(previous), state=parcel.put(state), time=float(time), next_time=float(next_time)
            )

        return _sole(self._run(write, "denoise", 1))

    def decode(
        self, latents: Sequence[Float32[np.ndarray, "n c y x"]], frame_indices: Sequence[int]
    ) -> UInt8[np.ndarray, "k f h w 3"]:
        """Decode the frames 1..H asked for. Raises ModelFault when latents are not finite."""

        def write(parcel: Parcel) -> DecodeCall:
            return DecodeCall(
                latents=tuple(parcel.put(member) for member in latents),
                frame_indices=tuple(int(index) for index in frame_indices),
            )

        return _sole(self._run(write, "decode", len(latents) * len(frame_indices)))

    def close(self) -> None:
        """Let go of the process; closing twice does nothing."""
        self._close()


class ProcessLikelihoodEngine:
    """A likelihood engine that runs in another process. Every call raises EngineLost when that is lost.

    What is in a TokenHistory must not be written to: it is sent once, and known by identity.
    """

    def __init__(self, facts: EngineFacts, run: RunCall, on_close: Callable[[], None]) -> None:
        """Stand for an engine that is what `facts` say. on_close: called once."""
        if facts.contract.tokens is None:
            raise CorruptFrame("a likelihood engine has no tokens")
        self.contract: Contract = facts.contract
        self.tokens: TokenSpec = facts.contract.tokens
        self.determinism = facts.determinism
        self._run = run
        self._close = _Once(on_close)

    def tokenize(self, frames: UInt8[np.ndarray, "t h w 3"]) -> Int64[np.ndarray, "g s"]:
        """Turn whole windows of frames into grids of ids. Raises ShapeMismatch for a part of a window."""
        return _sole(self._run(lambda parcel: TokenizeCall(frames=parcel.put(frames)), "tokenize", len(frames)))

    def detokenize(self, ids: Int64[np.ndarray, "g s"]) -> UInt8[np.ndarray, "t h w 3"]:
        """Turn whole windows of grids back into frames."""
        return _sole(self._run(lambda parcel: DetokenizeCall(ids=parcel.put(ids)), "detokenize", len(ids)))

    def read(self, rows: Sequence[TokenRow]) -> list[GridScore]:
        """Read one grid of each row and score the next. Raises ModelFault when a number is not finite."""

        def write(parcel: Parcel) -> ReadCall:
            return ReadCall(rows=tuple(_write_token_row(row, parcel) for row in rows))

        message = self._run(write, "read", len(rows))
        scores = _body(message, Scores).scores
        if len(scores) != len(rows):
            raise _misunderstood()
        return [_read_score(part, row, message.arrays) for part, row in zip(scores, rows, strict=True)]

    def close(self) -> None:
        """Let go of the process; closing twice does nothing."""
        self._close()


class _Once:
    def __init__(self, action: Callable[[], None]) -> None:
        self._actions = [action]

    def __call__(self) -> None:
        if self._actions:
            self._actions.pop()()


def _write_conditioning(conditioning: Conditioning, parcel: Parcel) -> SharedPart:
    return SharedPart(
        context_latents=parcel.keep(conditioning.context_latents),
        tables={name: parcel.keep(table) for name, table in conditioning.tables.items()},
    )


def _write_step(rows: Sequence[StepRow], parcel: Parcel) -> StepCall:
    shared = list({id(row.conditioning): row.conditioning for row in rows}.values())
    places = {id(conditioning): place for place, conditioning in enumerate(shared)}
    return StepCall(
        conditionings=tuple(_write_conditioning(conditioning, parcel) for conditioning in shared),
        rows=tuple(
            StepPart(
                latents=parcel.put(row.latents),
                time=float(row.time),
                next_time=float(row.next_time),
                conditioning=places[id(row.conditioning)],
                earlier_times=tuple(float(time) for time in row.earlier_times),
                guidance=float(row.guidance),
            )
            for row in rows
        ),
    )


def _write_token_row(row: TokenRow, parcel: Parcel) -> ReadPart:
    return ReadPart(
        ids=parcel.put(row.ids),
        states=parcel.put(row.states),
        keys=tuple(parcel.keep(keys) for keys in row.history.keys),
        values=tuple(parcel.keep(values) for values in row.history.values),
        target=None if row.target is None else parcel.put(row.target),
        top_k=None if row.top_k is None else int(row.top_k),
    )


def _read_score(part: ScorePart, row: TokenRow, arrays: list[np.ndarray]) -> GridScore:
    kept, num_shared = row.history, part.num_shared
    if num_shared > len(kept.keys):
        raise _misunderstood()
    history = TokenHistory(
        kept.keys[:num_shared] + tuple(at(arrays, index) for index in part.keys),
        kept.values[:num_shared] + tuple(at(arrays, index) for index in part.values),
    )
    return GridScore(
        at(arrays, part.log_probability),
        at(arrays, part.greedy),
        history,
        None if part.top_log_mass is None else at(arrays, part.top_log_mass),
        None if part.is_in_top is None else at(arrays, part.is_in_top),
    )


def _body(message: Message, kind: type[_Reply]) -> _Reply:
    if not isinstance(message.body, kind):
        raise _misunderstood()
    return message.body


def _arrays(message: Message, count: int) -> list[np.ndarray]:
    indices = _body(message, Arrays).arrays
    if len(indices) != count:
        raise _misunderstood()
    return [at(message.arrays, index) for index in indices]


def _sole(message: Message) -> np.ndarray:
    return _arrays(message, 1)[0]


def _misunderstood() -> CorruptFrame:
    return CorruptFrame("the engine's process answered something else than what was asked")
