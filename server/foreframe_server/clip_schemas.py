"""The wire's recorded clips that come with a model, as pydantic models."""

from pydantic import Field

from foreframe_server.schemas import Picture, WireReply


class ClipSummary(WireReply):
    """One clip of a list."""

    index: int = Field(description="Its number, as sessions take it.")
    seed: int = Field(description="Of the recorded episode.")
    start: int = Field(description="Its first frame in the episode.")
    picture: Picture = Field(description="The last context frame.")


class ClipList(WireReply):
    """The held-out clips that come with a model; none where it comes with none."""

    clips: list[ClipSummary]


class ClipReply(WireReply):
    """One clip: context frames, then what really happened, with the states of every frame."""

    index: int
    seed: int
    start: int
    context_frames: int
    frames: list[Picture] = Field(description="PNG, oldest first.")
    states: list[list[float]] = Field(description="One row a frame, physical units.")
