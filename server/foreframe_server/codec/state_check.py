"""A dry run of states against a schema: refuse what a prediction would, and say what is odd. Knows no route."""

from dataclasses import replace

from foreframe_engines import StateSchema
from foreframe_server.codec.bounds import Bounds
from foreframe_server.codec.documents import read_document
from foreframe_server.codec.layouts import as_written, build_layout, find_changes
from foreframe_server.codec.media import Media
from foreframe_server.codec.oddities import find_flat, find_outliers, find_outside, find_unit_doubts
from foreframe_server.codec.states import read_states
from foreframe_server.codec.validation import validate
from foreframe_server.errors import InvalidRequest, Reason, StateDimMismatch
from foreframe_server.schemas import Warned
from foreframe_server.state_check_schemas import StateCheckReply, StateCheckRequest
from foreframe_server.state_schemas import is_generic

MAX_CHECKED_ROWS = 4096
_VALUES = "/values"


def decode_state_check(body: bytes, media: Media, schema: StateSchema, bounds: Bounds) -> StateCheckReply:
    """Read rows of states as a prediction would, and say what is odd about them. Raises as a prediction would."""
    request = validate(StateCheckRequest, read_document(body, media, max_values=bounds.max_json_values))
    if is_generic(schema.name):
        schema = _name_numbers(request, schema)
    layout = build_layout(request.names, request.units, as_written(schema), "", schema)
    states = read_states(request.values, _VALUES, schema, range(1, MAX_CHECKED_ROWS + 1), layout)
    pointers = [f"{_VALUES}/{row}" for row in range(len(states))]
    warnings: list[Warned] = [
        *find_changes(layout, "", schema),
        *find_outliers(states, schema, pointers, [layout] * len(states)),
        *find_outside(states, schema, _VALUES, layout),
        *find_unit_doubts(states, schema, _VALUES),
        *find_flat(states, _VALUES),
    ]
    return StateCheckReply(
        name=schema.name, rows=len(states), dim=schema.dim, first_row=states[0].tolist(), warnings=warnings
    )


def _name_numbers(request: StateCheckRequest, schema: StateSchema) -> StateSchema:
    """Give a generic schema the names and units of the request. Raises InvalidRequest or StateDimMismatch."""
    names = tuple(request.names or ())
    if request.names is None:
        raise _unfit("/names", "are needed with a generic schema")
    if len(names) != schema.dim or len(request.units or names) != schema.dim:
        pointer = "/names" if len(names) != schema.dim else "/units"
        reason = Reason(pointer, "are not as many as the numbers of a row", f"{schema.dim}")
        raise StateDimMismatch("The states cannot be used.", reasons=[reason])
    if len(set(names)) < len(names):
        raise _unfit("/names", "hold a name twice")
    return replace(schema, names=names, units=tuple(request.units or schema.units))


def _unfit(pointer: str, message: str) -> InvalidRequest:
    return InvalidRequest("The states cannot be used.", reasons=[Reason(pointer, message, "each name once")])
