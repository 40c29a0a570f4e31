"""Every call as a flow: a generator that yields what to send or how long to pause and returns the answer.

Both clients drive the same flows, so retries, deadlines and checks are written once. Does no I/O itself.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Callable, Dict, Generator, Mapping, Optional, Sequence, Tuple, Type, TypeVar, Union

import numpy as np

from foreframe_client import _wire as wire
from foreframe_client._encodings import FrameEncoding
from foreframe_client._errors import (
    CameraMissing,
    DeadlineExceeded,
    ForeframeError,
    Gone,
    InvalidRequest,
    ModelFault,
    NotReady,
    ServerError,
    TransportError,
    UnknownModel,
)
from foreframe_client._retry import MIN_DEADLINE_MS, Deadline, RetryBudget, RetryPolicy, pause_before_retry
from foreframe_client._types import (
    CachePolicy,
    Constraint,
    FrameSelection,
    Likelihood,
    Metadata,
    Model,
    Noise,
    Objective,
    Observation,
    OnDeadline,
    Prediction,
    Priority,
    Reducer,
    ReturnedFrames,
    Scenario,
    Scores,
    SeedPolicy,
    StateCheck,
    StateSchema,
    Strategy,
    TopKDefinition,
    Variance,
)
from foreframe_client._wire_likelihoods import read_likelihood, read_observation, write_target
from foreframe_client._wire_scores import read_scores, write_candidates, write_constraints, write_objectives

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64, UInt8
    from typing_extensions import TypeGuard

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


def is_question(step: Step) -> TypeGuard[Send]:
    """Say whether a step asks a model, which may answer event by event."""
    return isinstance(step, Send) and step.request.method == "POST"


@dataclass
class Session:
    """What the calls of one client share. `clock` is monotonic seconds, `uniform` draws from 0..1."""

    timeout_s: float = 60.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    clock: Callable[[], float] = time.monotonic
    uniform: Callable[[], float] = random.random
    budget: RetryBudget = field(default_factory=RetryBudget)
    contracts: Dict[Tuple[Optional[str], Optional[str]], Model] = field(default_factory=dict)
    """By the name asked for, or by the capability that only one model has."""
    encoding: FrameEncoding = "raw"
    """How frames are sent."""


def predict(  # noqa: PLR0913 - the wire's fields, each with its default, so that `help` shows them
    session: Session,
    frames: Optional[UInt8[np.ndarray, "t h w 3"]] = None,
    states: Optional[Float32[np.ndarray, "t d"]] = None,
    future_states: Optional[Float32[np.ndarray, "H d"]] = None,
    *,
    observation: Optional[Observation] = None,
    model: Optional[str] = None,
    camera: Optional[str] = None,
    state_names: Optional[Sequence[str]] = None,
    state_units: Optional[Sequence[str]] = None,
    frame_indices: FrameSelection = "all",
    ensemble: int = 1,
    reducer: Reducer = "mean",
    noise: Noise = "antithetic",
    tolerance: Optional[float] = None,
    strategy: Strategy = "sample",
    steps: Optional[int] = None,
    guidance: Optional[float] = None,
    seed: Optional[int] = None,
    deadline_ms: Optional[int] = None,
    on_deadline: OnDeadline = "degrade",
    stream_id: Optional[str] = None,
    priority: Priority = "controller",
    variance: Optional[Variance] = None,
    members: bool = False,
    cache: CachePolicy = "use",
    metadata: Optional[Metadata] = None,
) -> Flow[Prediction]:
    """Predict what the camera will see if the robot goes through `future_states`.

    frames: context, oldest first, RGB 0..255. states: one row a context frame, physical units. future_states: up to
    horizon rows. observation: what `observe` returned, instead of frames and states. frame_indices: which of the
    frames 1..horizon to return, rising. ensemble: how many futures to draw; the reducer makes one of them. tolerance:
    draw fewer once the mean's standard error (root mean square over pixels, white is 1) is at most this. guidance: how
    far from what the model says when it is told nothing, where it can be; 1 is none.
    deadline_ms: budget for the whole call; each try is sent with what is left of it. A server that stays silent is
    given up on about a second after it. variance: by default a map from two members on, and none below.
    model and camera: may be left out when there is only one. state_names and state_units: of each number of a row,
    where they are not the schema's; they hold for every state of the call, and an uploaded observation keeps them.

    Raises InvalidRequest before anything is sent when an argument has the wrong dtype, axes or a number that is not
    finite; another ServerError when the server refuses; TransportError when no answer came.
    """
    deadline = Deadline.after(wire.optional_whole("deadline_ms", deadline_ms), session.clock())
    seen = wire.seen(frames, states, observation, wire.Layout.of(state_names, state_units))
    body: Dict[str, object] = {
        "future": {"kind": "state", **wire.rows(wire.state_rows("future_states", future_states))},
        "frames": wire.selection(frame_indices),
        "ensemble": wire.given(
            size=wire.whole("ensemble", ensemble), reducer=reducer, noise=noise, tolerance=tolerance
        ),
        "sampling": wire.sampling(strategy, steps, seed, guidance),
        "return": {"encoding": "raw", "variance": wire.variance_of(variance, ensemble), "members": members},
        **wire.given(on_deadline=on_deadline, stream_id=stream_id, priority=priority, cache=cache, metadata=metadata),
    }
    body.update((yield from from_seen(session, seen, Door("predict", model, camera), deadline)))
    return wire.read_prediction((yield from submit(session, "/v1/predictions", body, deadline)))


def observe(  # noqa: PLR0913 - as for `predict`
    session: Session,
    frames: UInt8[np.ndarray, "t h w 3"],
    states: Float32[np.ndarray, "t d"],
    *,
    model: Optional[str] = None,
    camera: Optional[str] = None,
    state_names: Optional[Sequence[str]] = None,
    state_units: Optional[Sequence[str]] = None,
    ttl_s: Optional[float] = None,
) -> Flow[Observation]:
    """Upload and encode what the robot saw once, to be given as `observation` of many calls.

    frames and states: as for `predict`; more frames than a prediction needs are more history for likelihoods.
    ttl_s: how long the server is to hold it. state_names and state_units: as for `predict`; every call that is given
    the observation writes its states so. Raises as `predict` does.
    """
    seen = wire.seen(frames, states, None, wire.Layout.of(state_names, state_units))
    placed = yield from from_seen(session, seen, Door(None, model, camera), Deadline())
    reply = yield from submit(session, "/v1/observations", {**placed, **wire.given(ttl_s=ttl_s)}, Deadline())
    return read_observation(reply, model)


def forget(session: Session, observation: Observation) -> Flow[None]:
    """Let the server drop an observation before it expires; one that is gone already is no error."""
    path = ("v1", "observations", observation.id)
    try:
        yield from ask(session, lambda _left_ms: wire.delete(*path), Deadline())
    except Gone:
        return


def likelihood(  # noqa: PLR0913 - as for `predict`
    session: Session,
    frames: Optional[UInt8[np.ndarray, "t h w 3"]] = None,
    states: Optional[Float32[np.ndarray, "t d"]] = None,
    target: Union[UInt8[np.ndarray, "f h w 3"], Int64[np.ndarray, "g s"], None] = None,
    target_states: Optional[Float32[np.ndarray, "f d"]] = None,
    *,
    observation: Optional[Observation] = None,
    model: Optional[str] = None,
    camera: Optional[str] = None,
    state_names: Optional[Sequence[str]] = None,
    state_units: Optional[Sequence[str]] = None,
    scenario: Scenario = "teacher_forced",
    top_k: Optional[int] = None,
    top_k_definition: Optional[TopKDefinition] = None,
    surprise_map: bool = False,
    deadline_ms: Optional[int] = None,
    priority: Priority = "controller",
    metadata: Optional[Metadata] = None,
) -> Flow[Likelihood]:
    """Count the bits of what did happen after an observation.

    target: the frames that came, RGB 0..255, or their ids. target_states: one row a target frame, physical units.
    scenario: each grid given the true ones before it, or given the model's own likeliest ones. top_k: also return a
    cross-entropy over the k likeliest ids, under a named definition. The rest is as for `predict`, errors too.
    """
    deadline = Deadline.after(wire.optional_whole("deadline_ms", deadline_ms), session.clock())
    seen = wire.seen(frames, states, observation, wire.Layout.of(state_names, state_units))
    has_top_k = top_k is not None or top_k_definition is not None
    body: Dict[str, object] = {
        "target": write_target(target, target_states, session.encoding),
        "scenario": scenario,
        "support": "top_k" if has_top_k else "full",
        "map": surprise_map,
        "priority": priority,
        **wire.given(top_k=wire.optional_whole("top_k", top_k), top_k_definition=top_k_definition, metadata=metadata),
    }
    body.update((yield from from_seen(session, seen, Door("likelihood", model, camera), deadline)))
    return read_likelihood((yield from submit(session, "/v1/likelihoods", body, deadline)))


def score(  # noqa: PLR0913 - as for `predict`
    session: Session,
    frames: Optional[UInt8[np.ndarray, "t h w 3"]] = None,
    states: Optional[Float32[np.ndarray, "t d"]] = None,
    candidates: Optional[Float32[np.ndarray, "k H d"]] = None,
    *,
    objectives: Sequence[Objective],
    observation: Optional[Observation] = None,
    model: Optional[str] = None,
    camera: Optional[str] = None,
    state_names: Optional[Sequence[str]] = None,
    state_units: Optional[Sequence[str]] = None,
    ids: Optional[Sequence[str]] = None,
    constraints: Sequence[Constraint] = (),
    ensemble: int = 1,
    reducer: Reducer = "mean",
    noise: Noise = "antithetic",
    strategy: Strategy = "sample",
    steps: Optional[int] = None,
    guidance: Optional[float] = None,
    seed: Optional[int] = None,
    seed_policy: SeedPolicy = "shared",
    top_n: int = 1,
    returned_frames: ReturnedFrames = "none",
    deadline_ms: Optional[int] = None,
    priority: Priority = "controller",
    metadata: Optional[Metadata] = None,
) -> Flow[Scores]:
    """Say what each of k plans costs, lower is better, from one observation.

    candidates: k plans of H rows, physical units; row k belongs to the k-th frame after the observation. One that is
    not finite is marked invalid and the others are scored. objectives: terms of the cost. constraints: terms with a
    bound; a candidate that breaks one ranks after all that break none. returned_frames: predicted frames of the best
    `top_n`. deadline_ms: candidates that are not reached in time come back as expired. The rest is as for `predict`,
    errors too.
    """
    deadline = Deadline.after(wire.optional_whole("deadline_ms", deadline_ms), session.clock())
    seen = wire.seen(frames, states, observation, wire.Layout.of(state_names, state_units))
    body: Dict[str, object] = {
        "candidates": write_candidates(candidates, ids),
        "objectives": write_objectives(objectives),
        "constraints": write_constraints(constraints),
        "ensemble": {"size": wire.whole("ensemble", ensemble), "reducer": reducer, "noise": noise},
        "sampling": wire.sampling(strategy, steps, seed, guidance),
        "seed_policy": seed_policy,
        "return": {"top_n": wire.whole("top_n", top_n), "frames": returned_frames, "encoding": "raw"},
        "priority": priority,
        **wire.given(metadata=metadata),
    }
    body.update((yield from from_seen(session, seen, Door("score", model, camera), deadline)))
    return read_scores((yield from submit(session, "/v1/scores", body, deadline)))


def models(session: Session) -> Flow[Tuple[Model, ...]]:
    """List the models that the server has loaded."""
    return wire.read_models((yield from _get(session, "v1", "models")))


def model(session: Session, model_id: str) -> Flow[Model]:
    """Describe one model. Raises UnknownModel."""
    return wire.read_model((yield from _get(session, "v1", "models", model_id)))


def state_schemas(session: Session) -> Flow[Tuple[StateSchema, ...]]:
    """List the state vectors that the server's models take."""
    return wire.read_state_schemas((yield from _get(session, "v1", "state-schemas")))


def check_states(
    session: Session,
    states: Float32[np.ndarray, "n d"],
    *,
    schema: Optional[str] = None,
    state_names: Optional[Sequence[str]] = None,
    state_units: Optional[Sequence[str]] = None,
) -> Flow[StateCheck]:
    """Try rows of states without a prediction: hear what would be refused, put right or warned of.

    schema: a state schema's name, by default that of the server's only model. state_names and state_units: as for
    `predict`. Raises UnknownModel for a schema that the server does not know, and else as `predict` does.
    """
    body = wire.rows(wire.state_rows("states", states), wire.Layout.of(state_names, state_units))
    if schema is None:
        schema = (yield from _contract(session, Door(None, None, None), Deadline())).state_schema
    request = wire.post(wire.get("v1", "state-schemas", schema, "check").path, body)
    return wire.read_state_check((yield from ask(session, lambda _left_ms: request, Deadline())))


def ready(session: Session) -> Flow[bool]:
    """Say whether the server takes work now; False while it starts or drains.

    Raises TransportError when no answer came, and ServerError or ProtocolError when the answer is another.
    """
    return (yield from _is_fine(session, "readyz", NotReady))


def health(session: Session) -> Flow[bool]:
    """Say whether the server is alive; False when its model could not be opened. Raises as `ready` does."""
    return (yield from _is_fine(session, "healthz", ModelFault))


def version(session: Session) -> Flow[Mapping[str, object]]:
    """Return what the server says about its version."""
    return wire.read_document((yield from _get(session, "version")))


def _is_fine(session: Session, path: str, otherwise: Type[ServerError]) -> Flow[bool]:
    try:
        reply = yield from attempt(session, lambda _left_ms: wire.get(path), Deadline())
    except otherwise:
        return False
    wire.fields_of(reply).text("status")  # any server may answer 200 to any path
    return True


def _get(session: Session, *path: str) -> Flow[wire.Reply]:
    return (yield from ask(session, lambda _left_ms: wire.get(*path), Deadline()))


@dataclass(frozen=True)
class Door:
    """Who is asked: the capability needed (None for any), and the model and camera if they were named."""

    capability: Optional[str]
    model: Optional[str]
    camera: Optional[str]


def from_seen(
    session: Session, seen: Union[wire.Seen, Observation], door: Door, deadline: Deadline
) -> Flow[Dict[str, object]]:
    """Write what the robot saw and who is asked; the model's contract is fetched only where it is needed."""
    if isinstance(seen, Observation):
        return wire.given(model=door.model or seen.model, observation_id=seen.id)
    name, camera = door.model, door.camera
    if camera is None:
        contract = yield from _contract(session, door, deadline)
        name, camera = contract.id, _only_camera(contract)
    return wire.given(model=name, observation=wire.observation(seen, camera, session.encoding))


def submit(session: Session, path: str, body: Mapping[str, object], deadline: Deadline) -> Flow[wire.Reply]:
    """Send a question until there is an answer or an error that stays."""
    try:
        return (yield from ask(session, lambda left_ms: wire.submit(path, body, left_ms), deadline))
    except (CameraMissing, UnknownModel):
        session.contracts.clear()  # the server may have been given another model
        raise


def _contract(session: Session, door: Door, deadline: Deadline) -> Flow[Model]:
    """Return the contract of the model asked for, or of the only able one; ask the server once a name."""
    key = (door.model, door.capability if door.model is None else None)
    if key not in session.contracts:
        path = ("v1", "models") if door.model is None else ("v1", "models", door.model)
        reply = yield from ask(session, lambda _left_ms: wire.get(*path), deadline)
        session.contracts[key] = (
            _only_able(wire.read_models(reply), door.capability) if door.model is None else wire.read_model(reply)
        )
    return session.contracts[key]


def _only_able(listed: Tuple[Model, ...], capability: Optional[str]) -> Model:
    """Return the only model, whatever it can do (the server knows better), or the only able one of several."""
    able = listed if len(listed) == 1 else [entry for entry in listed if capability in (None, *entry.capabilities)]
    if len(able) != 1:
        names, which = ", ".join(entry.id for entry in able) or "none", f" with {capability}" if capability else ""
        raise InvalidRequest(f"model must be named: the server's models{which} are: {names}")
    return able[0]


def _only_camera(contract: Model) -> str:
    if len(contract.cameras) != 1:
        names = ", ".join(camera.name for camera in contract.cameras) or "none"
        raise InvalidRequest(f"camera must be named: the cameras of {contract.id} are: {names}")
    return contract.cameras[0].name


def ask(session: Session, request: Callable[[Optional[int]], wire.Request], deadline: Deadline) -> Flow[wire.Reply]:
    """Try until there is an answer or an error that stays; `request` gets the milliseconds that are left."""
    session.budget.earn()
    retries_done = 0
    while True:
        try:
            return (yield from attempt(session, request, deadline))
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


def attempt(session: Session, request: Callable[[Optional[int]], wire.Request], deadline: Deadline) -> Flow[wire.Reply]:
    """Try once. Raises what the server or the connection met."""
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
