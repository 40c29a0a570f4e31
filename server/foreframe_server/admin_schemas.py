"""What operators ask of the models and hear of them. Knows no model."""

from typing import Annotated

from pydantic import Field

from foreframe_server.repository import ModelState
from foreframe_server.schemas import WireReply, WireRequest

_Name = Annotated[str, Field(min_length=1, max_length=128)]


class LoadRequest(WireRequest):
    """Which version of a model, and with which adapter. The body may be left out."""

    version: _Name | None = Field(default=None, description="A version of the folder; none is the newest.")
    adapter: _Name | None = Field(default=None, description="An adapter of the folder; none is the bare model.")


class ModelStatus(WireReply):
    """One model that is loaded or could be."""

    name: str
    state: ModelState
    version: str | None = Field(description="The version that answers.")
    adapter: str | None = Field(description="The adapter that it was merged with.")
    reason: str = Field(description="Why the last load failed, or why nothing is loaded.")
    versions: list[str] = Field(description="Versions of the folder, oldest first.")
    adapters: list[str] = Field(description="Adapters of the folder.")


class ModelIndex(WireReply):
    """Every model, by name."""

    models: list[ModelStatus]
