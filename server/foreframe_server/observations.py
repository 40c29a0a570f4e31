"""Observations that were uploaded and encoded once, and are held for a while. It knows no wire and no engine.

One budget of bytes bounds all of them: what was used longest ago is forgotten first. Any thread may call.
"""

import heapq
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8

from foreframe_engines.types import Latents, TokenContext
from foreframe_server.calls import HoldTimings
from foreframe_server.errors import Gone, Reason, TooExpensive
from foreframe_server.lru import LruBytes
from foreframe_server.state_layout import AS_THE_SCHEMA, StateLayout

_ID_BYTES = 18

ModelKind = Literal["rollout", "likelihood"]


@dataclass(frozen=True, slots=True, eq=False)
class StoredObservation:
    """What a robot saw and did, and what each loaded model made of it.

    frames: uint8 RGB 0..255, oldest first. states: float32, physical units, one row a frame. latents: of the last
    frames, as many as the rollout model takes. layout: how the states were written when they came.
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    states: Float32[np.ndarray, "t n"]
    latents: Latents | None = None
    tokens: TokenContext | None = None
    layout: StateLayout = AS_THE_SCHEMA
    model: str = ""
    fingerprint: str = ""
    """Of the model that encoded it, and of its very version."""

    def of_model(self, fingerprint: str) -> "StoredObservation":
        """Return it, for the model that encoded it. Raises Gone for another, or another version."""
        if self.fingerprint not in ("", fingerprint):
            reason = Reason("/observation_id", "was encoded by another model, or by another version of this one")
            raise Gone("The observation is not of this model; upload it again.", reasons=[reason])
        return self

    @property
    def num_bytes(self) -> int:
        """How much memory the arrays hold."""
        latents = 0 if self.latents is None else self.latents.nbytes
        tokens = 0 if self.tokens is None else self.tokens.num_bytes
        return self.frames.nbytes + self.states.nbytes + latents + tokens

    @property
    def models(self) -> tuple[ModelKind, ...]:
        """Which models' encodings are here."""
        kinds: dict[ModelKind, object] = {"rollout": self.latents, "likelihood": self.tokens}
        return tuple(kind for kind, encoding in kinds.items() if encoding is not None)


@dataclass(frozen=True, slots=True, eq=False)
class HeldObservation:
    """What became of an upload: held under this id for so long."""

    observation_id: str
    observation: StoredObservation
    ttl_s: float
    timings: HoldTimings


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    observation: StoredObservation
    expires_s: float


@dataclass(frozen=True, slots=True, order=True)
class _Expiry:
    at_s: float
    name: bytes


class ObservationStore:
    """Holds observations for `ttl_s` after they came, at most `max_bytes` of them; using one does not prolong it."""

    def __init__(self, ttl_s: float, max_bytes: int, clock: Callable[[], float]) -> None:
        self.ttl_s = ttl_s
        self.max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._held: LruBytes[_Held] = LruBytes(max_bytes)
        self._expiries: list[_Expiry] = []

    @property
    def num_bytes(self) -> int:
        """How much memory the observations hold that have not expired."""
        with self._lock:
            self._forget_expired()
            return self._held.num_bytes

    def __len__(self) -> int:
        with self._lock:
            self._forget_expired()
            return len(self._held)

    def put(self, observation: StoredObservation, ttl_s: float | None = None, tenant: str = "") -> str:
        """Hold an observation for a tenant and return its new id. Its arrays become read-only.

        Raises TooExpensive when it is larger than the whole budget.
        """
        num_bytes = observation.num_bytes
        if num_bytes > self.max_bytes:
            raise _too_large(num_bytes, self.max_bytes)
        _freeze(observation)
        observation_id = secrets.token_urlsafe(_ID_BYTES)
        expires_s = self._clock() + (self.ttl_s if ttl_s is None else ttl_s)
        with self._lock:
            self._forget_expired()
            self._held.put(_name(observation_id, tenant), _Held(observation, expires_s), num_bytes)
            heapq.heappush(self._expiries, _Expiry(expires_s, _name(observation_id, tenant)))
        return observation_id

    def get(self, observation_id: str, tenant: str = "") -> StoredObservation:
        """Return a tenant's observation. Raises Gone when it has expired, was forgotten for others, or never was."""
        with self._lock:
            self._forget_expired()
            held = self._held.get(_name(observation_id, tenant))
        if held is None:
            raise _gone("/observation_id")
        return held.observation

    def find_model(self, observation_id: str, tenant: str = "") -> str | None:
        """Name the model that encoded a tenant's observation; None for one that is not held."""
        with self._lock:
            self._forget_expired()
            held = self._held.get(_name(observation_id, tenant))
        return None if held is None else held.observation.model or None

    def delete(self, observation_id: str, tenant: str = "") -> None:
        """Forget a tenant's observation. Raises Gone when there is none of this id."""
        with self._lock:
            self._forget_expired()
            if self._held.get(_name(observation_id, tenant)) is None:
                raise _gone("")
            self._held.pop(_name(observation_id, tenant))

    def _forget_expired(self) -> None:
        now = self._clock()
        while self._expiries and self._expiries[0].at_s <= now:
            self._held.pop(heapq.heappop(self._expiries).name)


def _name(observation_id: str, tenant: str) -> bytes:
    """Return what an observation is held under: a tenant's name has no line break."""
    return f"{tenant}\n{observation_id}".encode()


def _freeze(observation: StoredObservation) -> None:
    for array in (observation.frames, observation.states, observation.latents):
        if array is not None:
            array.flags.writeable = False


def _gone(pointer: str) -> Gone:
    reason = Reason(pointer, "is not held: it expired, was forgotten for newer ones, or never was")
    return Gone("The observation is not held any more; upload it again.", reasons=[reason])


def _too_large(num_bytes: int, max_bytes: int) -> TooExpensive:
    reason = Reason(
        "/observation",
        "the encoded observation is larger than everything that may be held",
        f"at most {max_bytes} bytes",
        f"{num_bytes} bytes",
    )
    return TooExpensive("The observation is too large to be held.", reasons=[reason])
