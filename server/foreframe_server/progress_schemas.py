"""What the events of a prediction's progress hold, as pydantic models. `done` is the reply, `error` the problem."""

from pydantic import Field

from foreframe_server.schemas import PredictedFrame, WireReply


class AcceptedEvent(WireReply):
    """`accepted`: the request is being worked on, and this is how it was understood."""

    id: str
    model: str
    revision: str
    requested: int = Field(description="Members that were asked for.")
    steps: int
    seed: int
    deadline_ms: int | None = Field(description="Budget from the request's first byte; null without a deadline.")


class EstimateEvent(WireReply):
    """`estimate`: the posterior mean as the first step sees it; sent at most once, before any `update`."""

    frames: list[PredictedFrame]
    elapsed_ms: float = Field(description="Since the request's first byte.")


class UpdateEvent(WireReply):
    """`update`: the answer as the members so far make it. What a slow reader cannot take is left out."""

    members: int
    steps: int
    frames: list[PredictedFrame]
    spread_per_frame: list[float] = Field(description="White is 1; empty with one member or when not asked for.")
    standard_error: float | None = Field(description="Of the mean: root mean square over pixels, white is 1.")
    elapsed_ms: float = Field(description="Since the request's first byte.")
