"""Rows of states from the wire, as a schema has them: shape, order, units, numbers, finiteness.

Knows how a request says that its rows are written, and nothing of what usual states look like.
"""

import numpy as np
from jaxtyping import Float32

from foreframe_engines import StateSchema
from foreframe_server.codec.counts import describe_counts
from foreframe_server.errors import InvalidRequest, NonFinite, Reason, StateDimMismatch
from foreframe_server.state_layout import AS_THE_SCHEMA, StateLayout

_MAX_REPORTED = 8


def read_states(
    values: object, pointer: str, schema: StateSchema, num_rows: range, layout: StateLayout = AS_THE_SCHEMA
) -> Float32[np.ndarray, "n d"]:
    """Return rows of states in the schema's order and units; their number must lie in `num_rows`.

    Raises StateDimMismatch, NonFinite or InvalidRequest, with a pointer to each wrong number.
    """
    states = read_rows(values, pointer, schema, num_rows, layout)
    _check_finite(states, pointer, layout)
    return states


def read_rows(
    values: object, pointer: str, schema: StateSchema, num_rows: range, layout: StateLayout = AS_THE_SCHEMA
) -> Float32[np.ndarray, "n d"]:
    """Return rows as `read_states` does; their numbers may be NaN or infinite.

    Raises StateDimMismatch or InvalidRequest.
    """
    if isinstance(values, np.ndarray):
        _check_array(values, pointer, schema, num_rows)
        rows = values
    else:
        rows = np.array(_check_list(values, pointer, schema, num_rows), np.float64)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(layout.arrange(rows), np.float32)


def read_state(
    values: object, pointer: str, schema: StateSchema, layout: StateLayout = AS_THE_SCHEMA
) -> Float32[np.ndarray, " d"]:
    """Return one row in the schema's order and units. Raises as `read_states`."""
    one = range(1, 2)
    if isinstance(values, np.ndarray):
        _check_array(values[None], pointer, schema, one)
        numbers = values
    else:
        numbers = np.array(_check_row(values, pointer, schema, one), np.float64)
    with np.errstate(over="ignore"):
        row = np.ascontiguousarray(layout.arrange(numbers), np.float32)
    if not np.isfinite(row).all():
        column = layout.column(int(np.isfinite(row).argmin()))
        reason = Reason(f"{pointer}/{column}", "is not finite as float32", "a finite number")
        raise NonFinite("The state holds a number that is not finite.", reasons=[reason])
    return row


def _check_array(values: np.ndarray, pointer: str, schema: StateSchema, num_rows: range) -> None:
    if values.dtype.kind != "f":
        raise InvalidRequest(
            "States must be floats.",
            reasons=[Reason(pointer, "the array holds no floats", "float32", values.dtype.name)],
        )
    if values.ndim != 2 or values.shape[1] != schema.dim or len(values) not in num_rows:
        received = "an array of shape " + " x ".join(str(size) for size in values.shape)
        raise _mismatch(pointer, schema, num_rows, received)


def _check_list(values: object, pointer: str, schema: StateSchema, num_rows: range) -> list[list[float]]:
    if not isinstance(values, list) or len(values) not in num_rows:
        received = f"{len(values)} rows" if isinstance(values, list) else "no rows"
        raise _mismatch(pointer, schema, num_rows, received)
    return [_check_row(row, f"{pointer}/{index}", schema, num_rows) for index, row in enumerate(values)]


def _check_row(row: object, pointer: str, schema: StateSchema, num_rows: range) -> list[float]:
    if not isinstance(row, list) or len(row) != schema.dim:
        received = f"a row of {len(row)} values" if isinstance(row, list) else "no row of numbers"
        raise _mismatch(pointer, schema, num_rows, received)
    for index, value in enumerate(row):
        if type(value) not in (int, float):
            reason = Reason(f"{pointer}/{index}", "is not a number", "a number")
            raise InvalidRequest("A state is not a number.", reasons=[reason])
    return [float(value) for value in row]


def _mismatch(pointer: str, schema: StateSchema, num_rows: range, received: str) -> StateDimMismatch:
    expected = f"{describe_counts(num_rows)} rows of {schema.dim} numbers"
    return StateDimMismatch(
        f"States need {expected}.", reasons=[Reason(pointer, "states have the wrong shape", expected, received)]
    )


def _check_finite(states: Float32[np.ndarray, "n d"], pointer: str, layout: StateLayout) -> None:
    is_finite = np.isfinite(states)
    if not is_finite.all():
        wrong = np.argwhere(~is_finite)
        reasons = [
            Reason(f"{pointer}/{row}/{layout.column(dim)}", "is not finite as float32", "a finite number")
            for row, dim in wrong[:_MAX_REPORTED]
        ]
        raise NonFinite(f"{len(wrong)} numbers of the states are not finite.", reasons=reasons)
