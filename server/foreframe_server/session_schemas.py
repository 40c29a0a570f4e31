"""The wire's requests and replies about sessions, as pydantic models."""

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from foreframe_engines import OnDeadline, Priority
from foreframe_server.calls import CachePolicy
from foreframe_server.schemas import (
    MAX_DEADLINE_MS,
    MAX_SEED,
    MIN_DEADLINE_MS,
    EnsembleRequest,
    FrameChoice,
    Observation,
    ObservationId,
    ObservedState,
    PredictionReply,
    ReturnRequest,
    SamplingRequest,
    Scalar,
    Warned,
    WireReply,
    WireRequest,
)

SessionId = Annotated[str, Field(min_length=1, max_length=128)]
MAX_STEP_ID = 2**53 - 1


class SessionStart(WireRequest):
    """What a session starts from: one of an observation, an uploaded one, and a clip that comes with the model."""

    observation: Observation | None = None
    observation_id: ObservationId = None
    clip: int | None = Field(default=None, ge=0, description="Number of a held-out clip that comes with the model.")
    seed: int | None = Field(
        default=None, ge=0, le=MAX_SEED, description="Of the noise of every step that names none; absent is drawn."
    )


class SessionRequest(SessionStart):
    """A session to be started."""

    model: str | None = Field(default=None, max_length=128)
    ttl_s: FiniteFloat | None = Field(
        default=None, gt=0, description="Seconds to hold it after its last use; absent is the server's default."
    )


class ResetRequest(SessionStart):
    """A session to be put back to its start, or to another one. Absent fields keep what it was started with."""


class RollbackRequest(WireRequest):
    """Steps to be taken back."""

    step_id: int = Field(ge=0, le=MAX_STEP_ID, description="The last step to be kept; 0 keeps none.")


class ForkRequest(WireRequest):
    """Nothing: a fork is all that its session is."""


class StepStates(ObservedState):
    """What the robot would do: row k conditions the k-th frame of the step, from 1.

    Rows are as the model's schema has them where nothing is said, whatever the session was started with.
    """

    kind: Literal["state"] = "state"


class StepRequest(WireRequest):
    """The next rows of states, for which frames are to be predicted and committed."""

    step_id: int | None = Field(
        default=None,
        ge=1,
        le=MAX_STEP_ID,
        description="One more than the last committed step; that one again gives its answer again. Absent: the next.",
    )
    future: StepStates
    frames: FrameChoice = "all"
    ensemble: EnsembleRequest = EnsembleRequest()
    sampling: SamplingRequest = SamplingRequest()
    deadline_ms: int | None = Field(
        default=None, ge=MIN_DEADLINE_MS, le=MAX_DEADLINE_MS, description="Budget from the request's first byte."
    )
    on_deadline: Annotated[OnDeadline, Field(strict=False)] = OnDeadline.DEGRADE
    priority: Annotated[Priority, Field(strict=False)] = Priority.CONTROLLER
    returns: ReturnRequest = Field(default=ReturnRequest(), alias="return")
    cache: Annotated[CachePolicy, Field(strict=False)] = CachePolicy.BYPASS
    client_time: FiniteFloat | None = Field(default=None, description="Echoed.")
    metadata: dict[str, Scalar] | None = Field(default=None, max_length=16, description="Echoed.")


class PushRequest(WireRequest):
    """Frames that really arrived, with their states: the next ones after those that arrived before."""

    observation: Observation


class ShadowReply(WireReply):
    """How near the session's predictions have been to what arrived, in dB.

    baseline: of the frame that arrived before, taken as the prediction.
    """

    count: int
    mean_psnr_db: float | None
    mean_baseline_db: float | None


class SessionReply(WireReply):
    """A session after its last committed step."""

    session_id: str
    model: str
    revision: str
    committed_step_id: int
    rollback_from: int = Field(description="From this step on, every one can be rolled back to.")
    frames: int = Field(description="Seen and predicted since the start.")
    state: list[float] = Field(description="The last row of states, physical units.")
    seed: int
    expires_in_s: float
    bytes: int = Field(description="Memory of the session, what it shares with others included.")
    shadow: ShadowReply
    warnings: list[Warned]


class ComparedReply(WireReply):
    """One frame that arrived against its prediction; `psnr_db` is null where nothing was predicted for it."""

    psnr_db: float | None
    baseline_db: float


class PushReply(SessionReply):
    """A session after frames arrived."""

    compared: list[ComparedReply]


class StepReply(PredictionReply):
    """The predicted frames of a step, which is committed. `frames[].index` counts from the step's first row, from 1."""

    session_id: str
    step_id: int
    committed_step_id: int
    is_repeat: bool = Field(description="Whether the step had been made before, and this is its answer again.")
