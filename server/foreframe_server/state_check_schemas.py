"""The wire's state schemas and dry runs of states, as pydantic models.

As in `schemas`, what depends on a schema (widths, names, units) is checked by `codec`.
"""

from pydantic import Field

from foreframe_server.schemas import UNITS_NOTE, Names, Rows, Units, Warned, WireReply, WireRequest
from foreframe_server.state_schemas import Semantics, UnitSource


class StateCheckRequest(WireRequest):
    """Rows of states to try against a schema."""

    values: Rows
    names: Names | None = Field(
        default=None, description="The name of each number of a row; absent: the schema's order. `generic-N` needs it."
    )
    units: Units | None = Field(default=None, description=f"{UNITS_NOTE} Absent: the schema's.")


class StateSchemaReply(WireReply):
    """A state vector: every list has one entry a dimension."""

    name: str
    dim: int
    names: list[str]
    units: list[str]
    mean: list[float] | None = Field(description="Of the training data, or of recordings; null where none are known.")
    std: list[float] | None = Field(description="As `mean`.")
    low: list[float] | None = Field(description="Lowest in the training data; null without a model.")
    high: list[float] | None = Field(description="Highest in the training data; null without a model.")
    is_loaded: bool = Field(description="Whether it is a loaded model's.")
    description: str
    source: str = Field(description="Who says so.")
    rate_hz: float | None = Field(description="Rows a second; null where recordings differ.")
    unit_sources: list[UnitSource]
    minimum: list[float | None] = Field(description="Mechanical or defined range, in the dimension's unit.")
    maximum: list[float | None] = Field(description="As `minimum`.")
    semantics: list[Semantics | None] = Field(description="Of grippers: what the ends of the range mean, in any unit.")


class StateSchemaList(WireReply):
    """The loaded models' state schemas first, then those of known robots."""

    state_schemas: list[StateSchemaReply]
    patterns: list[str] = Field(description="Schemas for any number N of dimensions, whose names a request gives.")


class StateCheckReply(WireReply):
    """The rows fit the schema; what was changed and what is odd about them stands in `warnings`."""

    name: str
    rows: int
    dim: int
    first_row: list[float] = Field(description="As a model would get it: in the schema's order and units.")
    warnings: list[Warned]
