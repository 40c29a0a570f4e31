"""What a message of openpi's wire holds beside an observation and a prediction's own options, as pydantic models."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from foreframe_server.realtime_schemas import MessageId
from foreframe_server.schemas import WireRequest


class Endpoint(StrEnum):
    """What a robot may ask of a policy."""

    INFER = "infer"
    RESET = "reset"


class PolicyEnvelope(MessageId):
    """What a message is about. A session of another name than the last begins without its observations."""

    endpoint: Annotated[Endpoint, Field(strict=False)] = Endpoint.INFER
    session_id: str | None = Field(default=None, min_length=1, max_length=128)


class PolicyOptions(WireRequest):
    """What stands beside the observation."""

    prompt: str | None = Field(default=None, description="Taken, because every policy has one, and not used.")
    resize: Literal["pad"] | None = None
