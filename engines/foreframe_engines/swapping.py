"""A model that serves at once and gets faster: one engine answers while a better one is prepared, then hands over.

The new one takes over between two calls, after it has given what the old one gives. Knows no runtime.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Float32, UInt8

from foreframe_engines.engine import RolloutEngine
from foreframe_engines.errors import EngineError, ModelFault
from foreframe_engines.runtime.parity import Tolerance, compare_outputs
from foreframe_engines.selftest import point_at_zero, random_rows, weaker
from foreframe_engines.types import Conditioning, Contract, Latents, StepRow, StepState

_NUM_ROWS = 2

_log = logging.getLogger(__name__)


class Stage(StrEnum):
    """How far the better engine is."""

    PREPARING = "preparing"
    SERVING = "serving"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Handover:
    """How far the better engine is, and why it was refused if it was."""

    stage: Stage
    reason: str = ""


@dataclass(slots=True, eq=False)
class _Lease:
    """An engine and how many calls run on it; who ends the last of a retired one closes it. The lock is held."""

    engine: RolloutEngine
    num_calls: int = 0
    is_retired: bool = False

    def take(self) -> None:
        """Begin a call. Raises ModelFault when the engine is retired."""
        if self.is_retired:
            raise ModelFault("the engine is closed")
        self.num_calls += 1

    def give_back(self) -> bool:
        """End a call; returns whether it was the last of a retired engine."""
        self.num_calls -= 1
        return self.is_retired and self.num_calls == 0

    def retire(self) -> bool:
        """Mark the engine as not to be used again; returns whether no call runs on it."""
        self.is_retired = True
        return self.num_calls == 0


class SwappingRolloutEngine:
    """Serves from a fallback until `prepare` has returned an engine that agrees with it, then from that one.

    The two are compared in the thread that prepares, so a fallback must bear calls from two threads, as those on
    ONNX Runtime and torch do.
    A call runs on one engine from beginning to end, also when the other takes over meanwhile; the fallback is closed
    when its last call has returned. Conditioning made before serves after: engines of one bundle share its form.
    """

    def __init__(
        self,
        fallback: RolloutEngine,
        prepare: Callable[[], RolloutEngine],
        *,
        tolerance: Tolerance,
        on_end: Callable[[Handover], None] = lambda _: None,
    ) -> None:
        """Take over the fallback. `prepare` runs in a thread of its own, from `start` on; `on_end` is told once."""
        self.contract: Contract = fallback.contract
        # Equal queries may be answered by either engine.
        self.determinism = weaker(fallback.determinism, "tolerance")
        self.handover = Handover(Stage.PREPARING)
        self._prepare, self._tolerance, self._on_end = prepare, tolerance, on_end
        self._current = _Lease(fallback)
        self._lock = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._improve, name="foreframe-build", daemon=True)

    def start(self) -> None:
        """Begin to prepare the better engine."""
        self._thread.start()

    def join(self, timeout_s: float | None = None) -> Handover:
        """Wait until the better engine serves or is refused, and say which."""
        self._thread.join(timeout_s)
        return self.handover

    @property
    def num_lanes(self) -> int:
        """How many forwards the engine that serves now runs side by side."""
        with self._leased() as engine:
            return engine.num_lanes

    def encode(self, context: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, "t c y x"]:
        """Encode context frames (RGB 0..255) into clean latents."""
        with self._leased() as engine:
            return engine.encode(context)

    def condition(
        self, context_latents: Float32[np.ndarray, "t c y x"], states: Float32[np.ndarray, "n d"]
    ) -> Conditioning:
        """Turn states (physical units) into what every step of every member needs."""
        with self._leased() as engine:
            return engine.condition(context_latents, states)

    def initial_latents(self, conditioning: Conditioning, noise: Float32[np.ndarray, "f c y x"]) -> StepState:
        """Put a member's noise for the future behind the clean context latents."""
        with self._leased() as engine:
            return engine.initial_latents(conditioning, noise)

    def noise_shape(self) -> tuple[int, int, int, int]:
        """Shape `f c y x` of the noise of one member's future latents."""
        with self._leased() as engine:
            return engine.noise_shape()

    def step(self, rows: Sequence[StepRow]) -> list[StepState]:
        """Advance each row by one solver step. Raises ModelFault when the graph fails."""
        with self._leased() as engine:
            return engine.step(rows)

    def denoise(self, previous: StepState, state: StepState, time: float, next_time: float) -> Latents:
        """Return where the step that led from `previous` to `state` points at time 0."""
        with self._leased() as engine:
            return engine.denoise(previous, state, time, next_time)

    def decode(
        self, latents: Sequence[Float32[np.ndarray, "n c y x"]], frame_indices: Sequence[int]
    ) -> UInt8[np.ndarray, "k f h w 3"]:
        """Decode the frames 1..H asked for. Raises ModelFault when latents are not finite."""
        with self._leased() as engine:
            return engine.decode(latents, frame_indices)

    def close(self) -> None:
        """Free the engine that serves; one that is still being prepared is freed as soon as it is there."""
        with self._lock:
            self._is_closed = True
            lease = self._current
            is_idle = lease.retire()
        if is_idle:
            lease.engine.close()

    @contextmanager
    def _leased(self) -> Iterator[RolloutEngine]:
        with self._lock:
            lease = self._current
            lease.take()
        try:
            yield lease.engine
        finally:
            with self._lock:
                is_last = lease.give_back()
            if is_last:
                lease.engine.close()

    def _improve(self) -> None:
        better = None
        try:
            better = self._prepare()
            self._compare(better)
        except Exception as error:  # noqa: BLE001 - the thread's border: whatever went wrong, serving goes on
            if better is not None:
                better.close()
            reason = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
            self._end(Handover(Stage.REFUSED, reason))
            return
        self._end(self._hand_over(better))

    def _compare(self, better: RolloutEngine) -> None:
        """Let both engines take equal steps and decode what came out. Raises ModelFault when they differ too much."""
        if (better.contract.model, better.contract.revision) != (self.contract.model, self.contract.revision):
            raise ModelFault(f"{better.contract.model} {better.contract.revision} is another model")
        with self._leased() as fallback:
            rows = random_rows(fallback, _NUM_ROWS)
            expected = _answers(fallback, rows)
            given = _answers(better, rows)
        compare_outputs("the better engine", given, expected, self._tolerance, "the fallback")

    def _hand_over(self, better: RolloutEngine) -> Handover:
        """Let a better engine serve every call that begins from now on."""
        with self._lock:
            if self._is_closed:
                unused, is_idle = better, True
            else:
                old, self._current = self._current, _Lease(better)
                unused, is_idle = old.engine, old.retire()
        if is_idle:
            unused.close()
        return Handover(Stage.SERVING)

    def _end(self, handover: Handover) -> None:
        self.handover = handover
        if handover.stage is Stage.REFUSED and not self._is_closed:
            _log.warning("the fallback goes on serving: %s", handover.reason)
        self._on_end(handover)


def _answers(engine: RolloutEngine, rows: Sequence[StepRow]) -> dict[str, np.ndarray]:
    latents = point_at_zero(engine, rows, engine.step(rows))
    return {"latents": np.stack(latents), "frames": engine.decode(latents, (1, engine.contract.horizon))}
