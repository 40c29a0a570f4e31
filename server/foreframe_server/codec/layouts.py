"""How a request says that its states are written, to a `StateLayout`. Knows the model's schema and the registered ones.

Names and units are never guessed: what cannot be put in order or converted is refused, what was is said in a warning.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from foreframe_engines import StateSchema
from foreframe_server.errors import InvalidRequest, Reason, StateDimMismatch
from foreframe_server.schemas import ObservedState, Warned
from foreframe_server.state_layout import AS_THE_SCHEMA, StateLayout
from foreframe_server.state_schemas import find_schema, is_generic
from foreframe_server.units import conversion, kindred_units


@dataclass(frozen=True, slots=True)
class Written:
    """The names of a row's numbers, in the row's order, and the unit of each."""

    names: tuple[str, ...]
    units: tuple[str, ...]


def is_declared(state: ObservedState, schema: StateSchema) -> bool:
    """Whether a request says of these states how they are written, and not just whose they are."""
    return state.names is not None or state.units is not None or state.schema_name not in (None, schema.name)


def read_layout(state: ObservedState, pointer: str, schema: StateSchema) -> StateLayout:
    """Read how states are written for a model's schema. Raises InvalidRequest or StateDimMismatch."""
    defaults = _read_schema(state, pointer, schema)
    return build_layout(state.names, state.units, defaults, pointer, schema)


def build_layout(
    names: Sequence[str] | None, units: Sequence[str] | None, defaults: Written, pointer: str, schema: StateSchema
) -> StateLayout:
    """Make the layout of rows with these names and units, by default `defaults`'. Raises as `read_layout`."""
    order = defaults.names if names is None else _check_names(names, f"{pointer}/names", schema)
    columns = tuple(order.index(name) for name in schema.names)
    if units is None:
        by_name = dict(zip(defaults.names, defaults.units, strict=True))
        sent = tuple(by_name[name] for name in schema.names)
    else:
        _check_count(units, f"{pointer}/units", schema)
        sent = tuple(units[column] for column in columns)
    factors = tuple(
        _factor(source, target, f"{pointer}/units/{column}")
        for source, target, column in zip(sent, schema.units, columns, strict=True)
    )
    is_ordered, is_converted = order == schema.names, sent != schema.units
    if is_ordered and not is_converted:
        return AS_THE_SCHEMA
    return StateLayout(() if is_ordered else columns, *((sent, factors) if is_converted else ()))


def as_written(schema: StateSchema) -> Written:
    """Say how rows are written that are written as a schema has them."""
    return Written(schema.names, schema.units)


def _read_schema(state: ObservedState, pointer: str, schema: StateSchema) -> Written:
    """Find how rows of the schema that a request names are written; it may be another of the same names."""
    name = state.schema_name
    if name in (None, schema.name):
        return as_written(schema)
    known = find_schema(name or "")
    if known is not None and is_generic(known.name) and len(known.dimensions) == schema.dim:
        if state.names is None:
            raise _unfit(f"{pointer}/names", "are needed with a generic schema", "a name for each number")
        return as_written(schema)
    if known is None or set(known.names) != set(schema.names):
        raise _unfit(f"{pointer}/schema", "is not the model's state schema", schema.name)
    return Written(known.names, known.units)


def _check_names(names: Sequence[str], pointer: str, schema: StateSchema) -> tuple[str, ...]:
    _check_count(names, pointer, schema)
    for index, name in enumerate(names):
        if name not in schema.names:
            raise _unfit(f"{pointer}/{index}", "is no name of the state schema", f"a name of {schema.name}")
        if name in names[:index]:
            raise _unfit(f"{pointer}/{index}", "is there twice", "each name once")
    return tuple(names)


def _check_count(words: Sequence[str], pointer: str, schema: StateSchema) -> None:
    if len(words) != schema.dim:
        reason = Reason(pointer, "are not as many as the numbers of a row", f"{schema.dim}", f"{len(words)}")
        raise StateDimMismatch("The states cannot be used.", reasons=[reason])


def _factor(source: str, target: str, pointer: str) -> float:
    factor = conversion(source, target)
    if factor is None:
        raise _unfit(pointer, f"cannot be converted to {target}", " or ".join(kindred_units(target)))
    return factor


def _unfit(pointer: str, message: str, expected: str | None = None) -> InvalidRequest:
    return InvalidRequest("The states cannot be used.", reasons=[Reason(pointer, message, expected)])


def find_changes(layout: StateLayout, pointer: str, schema: StateSchema) -> tuple[Warned, ...]:
    """Warn of what a layout changes in the rows it is for; `pointer` leads to what said so."""
    warnings = []
    if layout.columns:
        message = "the numbers of each row were put into the schema's order by their names"
        warnings.append(Warned(code="states_reordered", pointer=pointer, message=message))
    if layout.factors:
        counts = layout.conversions(schema.units).items()
        words = ", ".join(f"{source} to {target} ({count})" for (source, target), count in counts)
        warnings.append(Warned(code="units_converted", pointer=pointer, message=f"units were converted: {words}"))
    return tuple(warnings)
