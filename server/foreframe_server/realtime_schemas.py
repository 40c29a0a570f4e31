"""What the messages of a websocket hold beside the bodies that HTTP has, as pydantic models."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from foreframe_server.calls import REQUEST_ID
from foreframe_server.likelihood_schemas import LikelihoodReply
from foreframe_server.observation_schemas import ObservationReply
from foreframe_server.progress_schemas import AcceptedEvent, EstimateEvent, UpdateEvent
from foreframe_server.schemas import ModelContract, PredictionReply, Problem, WireReply, WireRequest
from foreframe_server.score_schemas import ScoreReply
from foreframe_server.session_schemas import SessionId, SessionReply, StepReply

RequestId = Annotated[str, Field(pattern=f"^{REQUEST_ID}$")]


class MessageKind(StrEnum):
    """What a robot may send."""

    PREDICT = "predict"
    SCORE = "score"
    LIKELIHOOD = "likelihood"
    OBSERVE = "observe"
    STEP = "step"
    RESET = "reset"
    CANCEL = "cancel"
    PING = "ping"


class MessageId(WireRequest):
    """Whose answer an answer is."""

    request_id: RequestId | None = Field(default=None, description="Echoed in every answer; absent is drawn.")


class MessageType(WireRequest):
    """What is asked. The fields of the request itself stand beside it, as in the body of HTTP."""

    type: Annotated[MessageKind, Field(strict=False)]


class PredictOptions(WireRequest):
    """How a prediction is answered."""

    progress: bool = Field(default=False, description="Tell of it as it grows: accepted, estimate, update, done.")


class SessionName(WireRequest):
    """Which session a `step` or a `reset` is of; a `reset` without one starts a session."""

    session_id: SessionId | None = None


class CancelRequest(WireRequest):
    """Nothing beside the id: it is that of the request to cancel."""


class PingRequest(WireRequest):
    """Asks whether the server is there."""

    payload: object = Field(default=None, description="Anything. Echoed.")


class PongReply(WireReply):
    """The server is there."""

    payload: object


class RealtimeRequest(MessageId, MessageType, PredictOptions, SessionName):
    """A message to the server: a msgpack map that holds the fields of its request too.

    `progress` is of `predict`, `session_id` of `step` (a StepRequest) and `reset` (a ResetRequest, or without a session
    a SessionRequest, which starts one).
    """

    model_config = ConfigDict(extra="allow")


class RealtimeReply(WireReply):
    """A message from the server: a msgpack map, `error` and `done` the last of their request."""

    type: Literal["contract", "accepted", "estimate", "update", "done", "error", "pong"]
    request_id: str = Field(description="The request's; of `contract` that of the connection in the server's log.")
    server_timing: dict[str, float] | None = Field(
        default=None, description="Milliseconds of each stage; of `done`, `error` and `pong`."
    )
    body: (
        ModelContract | AcceptedEvent | EstimateEvent | UpdateEvent | PredictionReply | ScoreReply | LikelihoodReply
        | ObservationReply | StepReply | SessionReply | Problem | PongReply
    )  # fmt: skip
