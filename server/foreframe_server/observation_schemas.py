"""The wire's requests and replies about uploaded observations, as pydantic models."""

from pydantic import Field, FiniteFloat

from foreframe_server.observations import ModelKind
from foreframe_server.schemas import Observation, Warned, WireReply, WireRequest


class ObservationRequest(WireRequest):
    """One observation to be encoded once and held, so that many requests can name it by its id."""

    model: str | None = Field(default=None, max_length=128)
    observation: Observation
    ttl_s: FiniteFloat | None = Field(
        default=None, gt=0, description="Seconds to hold it; absent is the server's default, at most its limit."
    )


class ObservationReply(WireReply):
    """An observation that is held. It may be forgotten earlier than it expires when newer ones need its memory."""

    observation_id: str
    expires_in_s: float
    frames: int
    models: list[ModelKind] = Field(description="Which models' encodings are held with it.")
    bytes: int
    warnings: list[Warned]
