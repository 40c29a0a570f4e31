"""Every call as a flow: a generator that yields what to send or how long to pause and returns the answer.

Both clients drive the same flows, so retries, deadlines and checks are written once. Does no I/O itself.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Callable, Dict, Generator, Mapping, Optional, Tuple, TypeVar, Union

import numpy as np

from foreframe_client import _wire as wire
from foreframe_client._errors import (
    CameraMissing,
    DeadlineExceeded,
    ForeframeError,
    InvalidRequest,
    ServerError,
    TransportError,
    UnknownModel,
)
from foreframe_client._retry import MIN_DEADLINE_MS, Deadline, RetryBudget, RetryPolicy, pause_before_retry
from foreframe_client._types import (
    CachePolicy,
    FrameSelection,
    Metadata,
    Model,
    Noise,
    OnDeadline,
    Prediction,
    Priority,
    Reducer,
    StateSchema,
    Strategy,
    Variance,
)

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8

_DEADLINE_SLACK_S = 1.0
"""How much later than its deadline an answer may still arrive before the client hangs up."""


@dataclass(frozen=True)
class Send:
    """Make this request; answer with its reply, or with the TransportError it met."""

    request: wire.Request
    read_timeout_s: float


@dataclass(frozen=True)
class Pause:
    """Wait; answer with None."""

    seconds: float


_T = TypeVar("_T")
Step = Union[Send, Pause]
Outcome = Union[wire.Reply, TransportError, None]
Flow = Generator[Step, Outcome, _T]


@dataclass
class Session:
    """What the calls of one client share. `clock` is monotonic seconds, `uniform` draws from 0..1."""

    timeout_s: float = 60.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    clock: Callable[[], float] = time.monotonic
    uniform: Callable[[], float] = random.random
    budget: RetryBudget = field(default_factory=RetryBudget)
    contracts: Dict[Optional[str], Model] = field(default_factory=dict)
    """By the name asked for; None is the only model that predicts."""


def predict(  # noqa: PLR0913 - the wire's fields, each with its default, so that `help` shows them
    session: Session,
    frames: UInt8[np.ndarray, "t h w 3"],
    states: Float32[np.ndarray, "t d"],
    future_states: Float32[np.ndarray, "H d"],
    *,
    model: Optional[str] = None,
    camera: Optional[str] = None,
    frame_indices: FrameSelection = "all",
    ensemble: int = 1,
    reducer: Reducer = "mean",
    noise: Noise = "antithetic",
    strategy: Strategy = "sample",
    steps: Optional[int] = None,
    seed: Optional[int] = None,
    deadline_ms: Optional[int] = None,
    on_deadline: OnDeadline = "degrade",
    stream_id: Optional[str] = None,
    priority: Priority = "controller",
    variance: Variance = "map",
    members: bool = False,
    cache: CachePolicy = "use",
    metadata: Optional[Metadata] = None,
) -> Flow[Prediction]:
    """Predict what the camera will see if the robot goes through `future_states`.

    frames: context, oldest first, RGB 0..255. states: one row a context frame, physical units. future_states: up to
    horizon rows. frame_indices: which of the frames 1..horizon to return, rising. ensemble: how many futures to draw;
    the reducer makes one of them. deadline_ms: budget for the whole call; each try is sent with what is left of it.
    model and camera: may be left out when there is only one.

    Raises InvalidRequest before anything is sent when an argument has the wrong dtype, axes or a number that is not
    finite; another ServerError when the server refuses; TransportError when no answer came.
    """
    deadline = Deadline.after(wire.optional_whole("deadline_ms", deadline_ms), session.clock())
    seen = wire.inputs(frames, states, future_states)
    body: Dict[str, object] = {
        "future": wire.future(seen),
        "frames": wire.selection(frame_indices),
        "ensemble": {"size": wire.whole("ensemble", ensemble), "reducer": reducer, "noise": noise},
        "sampling": wire.sampling(strategy, steps, seed),
        "return": {"encoding": "raw", "variance": variance, "members": members},
        **wire.given(on_deadline=on_deadline, stream_id=stream_id, priority=priority, cache=cache, metadata=metadata),
    }
    if camera is None:
        contract = yield from _contract(session, model, deadline)
        model, camera = contract.id, _only_camera(contract)
    body.update(wire.given(model=model, observation=wire.observation(seen, camera)))
    try:
        reply = yield from _ask(session, lambda left_ms: wire.post_prediction(body, left_ms), deadline)
    except (CameraMissing, UnknownModel):
        session.contracts.clear()  # the server may have been given another model
        raise
    return wire.read_prediction(reply)


def models(session: Session) -> Flow[Tuple[Model, ...]]:
    """List the models that the server has loaded."""
    return wire.read_models((yield from _get(session, "v1", "models")))


def model(session: Session, model_id: str) -> Flow[Model]:
    """Describe one model. Raises UnknownModel."""
    return wire.read_model((yield from _get(session, "v1", "models", model_id)))


def state_schemas(session: Session) -> Flow[Tuple[StateSchema, ...]]:
    """List the state vectors that the server's models take."""
    return wire.read_state_schemas((yield from _get(session, "v1", "state-schemas")))


def ready(session: Session) -> Flow[bool]:
    """Say whether the server takes work now; False while it starts or drains. Raises TransportError."""
    return (yield from _is_fine(session, "readyz"))


def health(session: Session) -> Flow[bool]:
    """Say whether the server is alive. Raises TransportError."""
    return (yield from _is_fine(session, "healthz"))


def version(session: Session) -> Flow[Mapping[str, object]]:
    """Return what the server says about its version."""
    return wire.read_document((yield from _get(session, "version")))


def _is_fine(session: Session, path: str) -> Flow[bool]:
    try:
        yield from _attempt(session, lambda _left_ms: wire.get(path), Deadline())
    except ServerError:
        return False
    return True


def _get(session: Session, *path: str) -> Flow[wire.Reply]:
    return (yield from _ask(session, lambda _left_ms: wire.get(*path), Deadline()))


def _contract(session: Session, name: Optional[str], deadline: Deadline) -> Flow[Model]:
    """Return the contract of the model asked for, or of the only one that predicts; ask the server once a name."""
    if name not in session.contracts:
        path = ("v1", "models") if name is None else ("v1", "models", name)
        reply = yield from _ask(session, lambda _left_ms: wire.get(*path), deadline)
        session.contracts[name] = _only_rollout(wire.read_models(reply)) if name is None else wire.read_model(reply)
    return session.contracts[name]


def _only_rollout(listed: Tuple[Model, ...]) -> Model:
    able = [entry for entry in listed if "predict" in entry.capabilities]
    if len(able) != 1:
        names = ", ".join(entry.id for entry in able) or "none"
        raise InvalidRequest(f"model must be named: the server's models that predict are: {names}")
    return able[0]


def _only_camera(contract: Model) -> str:
    if len(contract.cameras) != 1:
        names = ", ".join(camera.name for camera in contract.cameras) or "none"
        raise InvalidRequest(f"camera must be named: the cameras of {contract.id} are: {names}")
    return contract.cameras[0].name


def _ask(session: Session, request: Callable[[Optional[int]], wire.Request], deadline: Deadline) -> Flow[wire.Reply]:
    """Try until there is an answer or an error that stays; `request` gets the milliseconds that are left."""
    session.budget.earn()
    retries_done = 0
    while True:
        try:
            return (yield from _attempt(session, request, deadline))
        except ForeframeError as error:
            pause_s = pause_before_retry(
                session.retry,
                error,
                retries_done=retries_done,
                uniform=session.uniform(),
                left_ms=deadline.left_ms(session.clock()),
            )
            if pause_s is None or not session.budget.spend():
                raise
        yield Pause(pause_s)
        retries_done += 1


def _attempt(
    session: Session, request: Callable[[Optional[int]], wire.Request], deadline: Deadline
) -> Flow[wire.Reply]:
    left_ms = deadline.left_ms(session.clock())
    if left_ms is not None and left_ms < MIN_DEADLINE_MS:
        raise DeadlineExceeded("too little of the deadline is left to send the request")
    read_timeout_s = session.timeout_s if left_ms is None else left_ms / 1000 + _DEADLINE_SLACK_S
    outcome = yield Send(request(left_ms), read_timeout_s)
    if not isinstance(outcome, wire.Reply):
        raise outcome or TransportError("the request was not made")
    error = wire.refusal(outcome)
    if error is not None:
        raise error
    return outcome
