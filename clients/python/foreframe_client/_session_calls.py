"""A session's calls as flows, which both kinds of session drive. Knows which step comes next, and no connection."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Dict, Mapping, Optional, Sequence, Tuple

import numpy as np

from foreframe_client import _calls as calls
from foreframe_client import _wire as wire
from foreframe_client._errors import Gone, InvalidRequest
from foreframe_client._retry import Deadline
from foreframe_client._session_types import Compared, SessionStatus, StepPrediction
from foreframe_client._types import (
    FrameSelection,
    Metadata,
    Noise,
    Observation,
    OnDeadline,
    Priority,
    Reducer,
    Strategy,
    Variance,
)
from foreframe_client._wire_sessions import path_of, read_compared, read_status, read_step

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8


@dataclass
class OpenSession:
    """One session as its client knows it. `layout` is how all its states are written, which the server does not keep.

    `committed_step_id` is that of the last answer that came.
    """

    session: calls.Session
    session_id: str
    door: calls.Door
    layout: wire.Layout
    committed_step_id: int = 0


def open_session(  # noqa: PLR0913 - as for `step`
    session: calls.Session,
    frames: Optional[UInt8[np.ndarray, "t h w 3"]] = None,
    states: Optional[Float32[np.ndarray, "t d"]] = None,
    *,
    observation: Optional[Observation] = None,
    clip: Optional[int] = None,
    model: Optional[str] = None,
    camera: Optional[str] = None,
    state_names: Optional[Sequence[str]] = None,
    state_units: Optional[Sequence[str]] = None,
    seed: Optional[int] = None,
    ttl_s: Optional[float] = None,
) -> calls.Flow[OpenSession]:
    """Start a stateful rollout from what the robot saw, from an uploaded observation, or from a clip of the model's.

    frames and states: as for `predict`. clip: number of a held-out clip that comes with the model. seed: of the noise
    of every step that names none. ttl_s: how long the server holds the session after its last use. state_names and
    state_units: of each number of a row, where they are not the schema's; they hold for every step and push too. As a
    context manager the session ends with the block. Raises as `predict` does.
    """
    door = calls.Door("predict", model, camera)
    layout = wire.Layout.of(state_names, state_units)
    start = yield from _start(session, _Seen(frames, states, observation, clip), door, layout)
    body = {**wire.given(model=model), **start, **wire.given(seed=wire.optional_whole("seed", seed), ttl_s=ttl_s)}
    status = read_status((yield from calls.submit(session, "/v1/sessions", body, Deadline())))
    return OpenSession(session, status.session_id, door, layout, status.committed_step_id)


def step(  # noqa: PLR0913 - the wire's fields, each with its default, so that `help` shows them
    opened: OpenSession,
    states: Float32[np.ndarray, "n d"],
    *,
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
    priority: Priority = "controller",
    variance: Optional[Variance] = None,
    members: bool = False,
    metadata: Optional[Metadata] = None,
) -> calls.Flow[StepPrediction]:
    """Predict the frames after the next rows of states (physical units), and go on from them.

    A chunk longer than the model's horizon is predicted window by window. seed: of this step; without one the session's
    own counts on. A step that failed has not been made, and one whose answer was lost is not made twice. The rest is as
    for `predict`, errors too; raises StepOutOfOrder when somebody else stepped the session.
    """
    deadline = Deadline.after(wire.optional_whole("deadline_ms", deadline_ms), opened.session.clock())
    body: Dict[str, object] = {
        "step_id": opened.committed_step_id + 1,
        "future": {"kind": "state", **wire.rows(wire.state_rows("states", states), opened.layout)},
        "frames": wire.selection(frame_indices),
        "ensemble": wire.given(
            size=wire.whole("ensemble", ensemble), reducer=reducer, noise=noise, tolerance=tolerance
        ),
        "sampling": wire.sampling(strategy, steps, seed, guidance),
        "return": {"encoding": "raw", "variance": wire.variance_of(variance, ensemble), "members": members},
        **wire.given(on_deadline=on_deadline, priority=priority, metadata=metadata),
    }
    reply = yield from calls.submit(opened.session, path_of(opened.session_id, "steps"), body, deadline)
    prediction = read_step(reply)
    opened.committed_step_id = prediction.committed_step_id
    return prediction


def push(
    opened: OpenSession, frames: UInt8[np.ndarray, "t h w 3"], states: Float32[np.ndarray, "t d"]
) -> calls.Flow[Tuple[Compared, ...]]:
    """Tell the session which frames really came next, with their states, and hear how near their predictions were.

    The next step starts from them. It is not tried again when the connection breaks, because it might count twice.
    Raises as `predict` does.
    """
    seen = wire.seen(frames, states, None, opened.layout)
    placed = yield from calls.from_seen(opened.session, seen, opened.door, Deadline())
    request = wire.post(path_of(opened.session_id, "observations"), {"observation": placed["observation"]})
    return read_compared((yield from calls.attempt(opened.session, lambda _left_ms: request, Deadline())))


def fork(opened: OpenSession) -> calls.Flow[OpenSession]:
    """Start another session from where this one stands. Raises Gone when the session has ended."""
    status = read_status((yield from _post(opened, "forks", {})))
    return replace(opened, session_id=status.session_id, committed_step_id=status.committed_step_id)


def rollback(opened: OpenSession, step_id: int) -> calls.Flow[SessionStatus]:
    """Take back every step after this one; 0 takes back all. Raises Gone for one that the server keeps no more."""
    return (yield from _moved(opened, "rollback", {"step_id": wire.whole("step_id", step_id)}))


def reset(
    opened: OpenSession,
    frames: Optional[UInt8[np.ndarray, "t h w 3"]] = None,
    states: Optional[Float32[np.ndarray, "t d"]] = None,
    *,
    observation: Optional[Observation] = None,
    clip: Optional[int] = None,
    seed: Optional[int] = None,
) -> calls.Flow[SessionStatus]:
    """Go back to the start, or to another one; steps are counted from 1 again. Arguments are those of a session."""
    seen = _Seen(frames, states, observation, clip)
    start: Mapping[str, object] = {}
    if clip is not None or seen.has_more_than_a_clip:
        start = yield from _start(opened.session, seen, opened.door, opened.layout)
    fields = {name: value for name, value in start.items() if name != "model"}
    return (yield from _moved(opened, "reset", {**fields, **wire.given(seed=wire.optional_whole("seed", seed))}))


def status(opened: OpenSession) -> calls.Flow[SessionStatus]:
    """Say how the server holds the session. Raises Gone when it has ended."""
    path = ("v1", "sessions", opened.session_id)
    return read_status((yield from calls.ask(opened.session, lambda _left_ms: wire.get(*path), Deadline())))


def close(opened: OpenSession) -> calls.Flow[None]:
    """Let the server forget the session; one that has ended already is no error."""
    path = ("v1", "sessions", opened.session_id)
    try:
        yield from calls.ask(opened.session, lambda _left_ms: wire.delete(*path), Deadline())
    except Gone:
        return


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a session is to start from, as it was given."""

    frames: Optional[UInt8[np.ndarray, "t h w 3"]]
    states: Optional[Float32[np.ndarray, "t d"]]
    observation: Optional[Observation]
    clip: Optional[int]

    @property
    def has_more_than_a_clip(self) -> bool:
        """Whether anything but a clip was given."""
        return any(each is not None for each in (self.frames, self.states, self.observation))


def _start(
    session: calls.Session, given: _Seen, door: calls.Door, layout: wire.Layout
) -> calls.Flow[Dict[str, object]]:
    """Write what a session starts from. Raises InvalidRequest."""
    if given.clip is None and not given.has_more_than_a_clip:
        raise InvalidRequest("give frames and states, an observation, or a clip")
    if given.observation is not None:  # which is written already: the layout is that of what follows
        layout = wire.AS_THE_SCHEMA
    if given.clip is None:
        seen = wire.seen(given.frames, given.states, given.observation, layout)
        return (yield from calls.from_seen(session, seen, door, Deadline()))
    if given.has_more_than_a_clip:
        raise InvalidRequest("frames, states and observation must not be given beside a clip")
    return {"clip": wire.whole("clip", given.clip)}


def _moved(opened: OpenSession, segment: str, body: Mapping[str, object]) -> calls.Flow[SessionStatus]:
    moved = read_status((yield from _post(opened, segment, body)))
    opened.committed_step_id = moved.committed_step_id
    return moved


def _post(opened: OpenSession, segment: str, body: Mapping[str, object]) -> calls.Flow[wire.Reply]:
    return (yield from calls.submit(opened.session, path_of(opened.session_id, segment), body, Deadline()))
