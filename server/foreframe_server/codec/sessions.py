"""Documents about sessions to what is asked of them, and what became of them to bytes. Knows no route and no store."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float32, UInt8

from foreframe_engines import Contract, Prediction
from foreframe_server.calls import Call, CallOptions, HoldTimings
from foreframe_server.codec.bounds import Bounds
from foreframe_server.codec.context import ObservationReader, Recall, check_model
from foreframe_server.codec.documents import Document, write_document
from foreframe_server.codec.layouts import find_changes, read_layout
from foreframe_server.codec.media import DOCUMENT_MEDIA, Media
from foreframe_server.codec.oddities import find_outliers, find_unit_doubts
from foreframe_server.codec.query import (
    ReplyOptions,
    check_reply,
    read_ensemble,
    read_frame_choice,
    read_sampling,
    reply_options,
)
from foreframe_server.codec.reply import EncodedReply, build_reply, encode_prediction, write_prediction
from foreframe_server.codec.states import read_states
from foreframe_server.codec.validation import validate
from foreframe_server.errors import InvalidRequest, Reason
from foreframe_server.schemas import Warned
from foreframe_server.session_clips import ShippedClips
from foreframe_server.session_schemas import (
    ComparedReply,
    ForkRequest,
    PushReply,
    PushRequest,
    ResetRequest,
    RollbackRequest,
    SessionReply,
    SessionRequest,
    SessionStart,
    ShadowReply,
    StepReply,
    StepRequest,
)
from foreframe_server.sessions import Compared, Session, SessionSeed, StepAnswer, StepAsk, StepSampling
from foreframe_server.state_layout import StateLayout

_AHEAD = "/future"


@dataclass(frozen=True, slots=True, eq=False)
class AskedSession:
    """A session to be started, or put back to a start; `seed` is None for its own."""

    seed: SessionSeed | None
    media: Media
    warnings: tuple[Warned, ...]
    noise_seed: int | None = None

    @property
    def options(self) -> CallOptions:
        """How it wants to be handled: as everything."""
        return CallOptions()


@dataclass(frozen=True, slots=True, eq=False)
class AskedStep:
    """A step, and how its call and its reply are wanted. frame_indices: of its rows from 1, those that go back."""

    ask: StepAsk
    frame_indices: tuple[int, ...]
    options: CallOptions
    reply: ReplyOptions
    warnings: tuple[Warned, ...]


@dataclass(frozen=True, slots=True, eq=False)
class AskedPush:
    """Frames that arrived, with their states."""

    frames: UInt8[np.ndarray, "n h w 3"]
    states: Float32[np.ndarray, "n d"]
    media: Media
    warnings: tuple[Warned, ...]

    @property
    def options(self) -> CallOptions:
        """How it wants to be handled: as everything."""
        return CallOptions()


@dataclass(frozen=True, slots=True)
class AskedRollback:
    """The last step to be kept."""

    step_id: int
    media: Media
    warnings: tuple[Warned, ...] = ()

    @property
    def options(self) -> CallOptions:
        """How it wants to be handled: as everything."""
        return CallOptions()


@dataclass(frozen=True, slots=True, eq=False)
class ToldSession:
    """What became of a session. compared: the frames that arrived, when it was told of them."""

    session: Session
    expires_in_s: float
    timings: HoldTimings = field(default_factory=HoldTimings)
    compared: tuple[Compared, ...] | None = None


@dataclass(frozen=True, slots=True)
class SessionReader:
    """Reads documents about sessions for a contract. max_ttl_s, max_step_rows: what one request may ask for."""

    clips: ShippedClips
    max_ttl_s: float
    max_step_rows: int

    def read_session(
        self, document: Document, accepted: Media, contract: Contract, bounds: Bounds, recall: Recall
    ) -> AskedSession:
        """Read what a session is to start from.

        Raises InvalidRequest and its kin with pointers, UnknownModel, CapabilityMissing or Gone.
        """
        request = validate(SessionRequest, document, [camera.name for camera in contract.cameras])
        check_model(request.model, contract)
        if request.ttl_s is not None and request.ttl_s > self.max_ttl_s:
            raise _refusal("/ttl_s", "is longer than this server holds anything", f"at most {self.max_ttl_s:g} s")
        started = self._read_start(request, contract, bounds, recall)
        if started is None:
            raise _refusal("/observation", "is missing", "observation, observation_id or clip")
        seed = replace(started.seed, seed=request.seed, ttl_s=request.ttl_s)
        return AskedSession(seed, accepted, started.warnings)

    def read_reset(
        self, document: Document, accepted: Media, contract: Contract, bounds: Bounds, recall: Recall
    ) -> AskedSession:
        """Read where a session is to begin again. Raises as `read_session`."""
        request = validate(ResetRequest, document, [camera.name for camera in contract.cameras])
        started = self._read_start(request, contract, bounds, recall)
        if started is None:
            return AskedSession(None, accepted, (), request.seed)
        return AskedSession(replace(started.seed, seed=request.seed), accepted, started.warnings, request.seed)

    def read_step(
        self, document: Document, accepted: Media, contract: Contract, _bounds: Bounds, _recall: Recall
    ) -> AskedStep:
        """Read the next step. Raises InvalidRequest and its kin with pointers."""
        request = validate(StepRequest, document)
        check_reply(request, accepted)
        if request.returns.latents:
            raise _refusal("/return/latents", "latents are not offered")
        layout = read_layout(request.future, _AHEAD, contract.state)
        rows = range(1, self.max_step_rows + 1)
        states = read_states(request.future.values, f"{_AHEAD}/values", contract.state, rows, layout)
        sampling = read_sampling(request.sampling, contract)
        ask = StepAsk(
            states=states,
            step_id=request.step_id,
            sampling=StepSampling(sampling.strategy, sampling.steps, sampling.guidance, request.sampling.seed),
            ensemble=read_ensemble(request.ensemble, request.sampling.strategy, contract),
            priority=request.priority,
        )
        return AskedStep(
            ask=ask,
            frame_indices=read_frame_choice(request, len(states)),
            options=CallOptions(request.deadline_ms, request.priority, request.on_deadline, request.cache),
            reply=reply_options(request, accepted),
            warnings=(*find_changes(layout, _AHEAD, contract.state), *_odd_states(states, layout, contract)),
        )

    def read_push(
        self, document: Document, accepted: Media, contract: Contract, bounds: Bounds, _recall: Recall
    ) -> AskedPush:
        """Read frames that arrived, at most a horizon of them. Raises InvalidRequest and its kin with pointers."""
        request = validate(PushRequest, document, [camera.name for camera in contract.cameras])
        reader = ObservationReader(contract, bounds, range(1, contract.horizon + 1))
        observed = reader.read_sent(request.observation)
        return AskedPush(observed.observation.frames, observed.observation.states, accepted, observed.warnings)

    def read_rollback(
        self, document: Document, accepted: Media, _contract: Contract, _bounds: Bounds, _recall: Recall
    ) -> AskedRollback:
        """Read which step is to be the last. Raises InvalidRequest."""
        return AskedRollback(validate(RollbackRequest, document).step_id, accepted)

    def read_fork(
        self, document: Document, accepted: Media, _contract: Contract, _bounds: Bounds, _recall: Recall
    ) -> AskedSession:
        """Read that a fork is wanted. Raises InvalidRequest for any field."""
        validate(ForkRequest, document)
        return AskedSession(None, accepted, ())

    def _read_start(
        self, request: SessionStart, contract: Contract, bounds: Bounds, recall: Recall
    ) -> "_Started | None":
        given = [request.observation, request.observation_id, request.clip]
        if given == [None, None, None]:
            return None
        if given.count(None) != 2:
            raise _refusal("/observation", "does not stand alone", "one of observation, observation_id, clip")
        if request.clip is not None:
            return self._read_clip(request.clip, contract)
        count = contract.context_frames
        observed = ObservationReader(contract, bounds, range(count, count + 1)).read(
            request.observation, request.observation_id, recall
        )
        stored = observed.observation
        return _Started(SessionSeed(stored.frames, stored.states, stored.latents), observed.warnings)

    def _read_clip(self, index: int, contract: Contract) -> "_Started":
        clip, count = self.clips.read(index, contract), contract.context_frames
        return _Started(SessionSeed(clip.frames[:count], clip.states[:count]), ())


@dataclass(frozen=True, slots=True, eq=False)
class _Started:
    seed: SessionSeed
    warnings: tuple[Warned, ...]


def _odd_states(states: Float32[np.ndarray, "n d"], layout: StateLayout, contract: Contract) -> tuple[Warned, ...]:
    pointers = [f"{_AHEAD}/values/{row}" for row in range(len(states))]
    outliers = find_outliers(states, contract.state, pointers, [layout] * len(states))
    return (*outliers, *find_unit_doubts(states, contract.state, f"{_AHEAD}/values"))


def _refusal(pointer: str, message: str, expected: str | None = None) -> InvalidRequest:
    return InvalidRequest("The session cannot be used so.", reasons=[Reason(pointer, message, expected)])


def encode_session(
    asked: AskedSession | AskedPush | AskedRollback, told: ToldSession, contract: Contract, _call: Call
) -> EncodedReply:
    """Write what became of a session. Sets `told.timings.respond`."""
    start_s = time.monotonic()
    reply = describe_session(told.session, told.expires_in_s, contract, asked.warnings)
    if told.compared is not None:
        compared = [ComparedReply(psnr_db=each.psnr_db, baseline_db=each.baseline_db) for each in told.compared]
        reply = PushReply(**dict(reply), compared=compared)
    body = write_document(reply.model_dump(), asked.media)
    told.timings.respond = (time.monotonic() - start_s) * 1000
    return EncodedReply(body, asked.media, {})


def describe_session(
    session: Session, expires_in_s: float, contract: Contract, warnings: Sequence[Warned] = ()
) -> SessionReply:
    """Write a session's fields."""
    shadow = session.shadow
    return SessionReply(
        session_id=session.session_id,
        model=contract.model,
        revision=contract.revision,
        committed_step_id=session.step_id,
        rollback_from=session.first_step_id,
        frames=session.num_frames,
        state=session.context.states[-1].tolist(),
        seed=session.seed,
        expires_in_s=expires_in_s,
        bytes=session.num_bytes,
        shadow=ShadowReply(
            count=shadow.count,
            mean_psnr_db=shadow.total_db / shadow.count if shadow.count else None,
            mean_baseline_db=shadow.total_baseline_db / shadow.count if shadow.count else None,
        ),
        warnings=list(warnings),
    )


def encode_step(asked: AskedStep, answered: StepAnswer, contract: Contract, call: Call) -> EncodedReply:
    """Write a step's frames as they were asked for. Sets `answered.timings.respond`."""
    chosen = replace(answered.answer, prediction=_choose(answered.prediction, asked.frame_indices))
    if asked.reply.media not in DOCUMENT_MEDIA:
        reply = encode_prediction(asked, chosen, contract, call)
        return replace(reply, headers={**reply.headers, "X-Foreframe-Step": str(answered.step_id)})
    start_s = time.monotonic()
    prediction = build_reply(asked, chosen, contract, call.request_id)
    reply_fields = StepReply(
        **dict(prediction),
        session_id=answered.session_id,
        step_id=answered.step_id,
        committed_step_id=answered.committed_step_id,
        is_repeat=answered.is_repeat,
    )
    body = write_prediction(reply_fields, asked.reply.media, call, start_s)
    answered.timings.respond = (time.monotonic() - start_s) * 1000
    return EncodedReply(body, asked.reply.media, {})


def _choose(prediction: Prediction, frame_indices: tuple[int, ...]) -> Prediction:
    """Keep the frames that are wanted."""
    if frame_indices == prediction.frame_indices:
        return prediction
    places = [index - 1 for index in frame_indices]
    return replace(
        prediction,
        frame_indices=frame_indices,
        frames=prediction.frames[places],
        members=prediction.members[:, places],
        variance=prediction.variance[places],
        spread_per_frame=tuple(prediction.spread_per_frame[place] for place in places),
    )
