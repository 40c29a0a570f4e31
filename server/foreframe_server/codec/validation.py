"""A document to a pydantic model, and pydantic's complaints to reasons that repeat nothing of the input."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

from foreframe_server.codec.documents import Document
from foreframe_server.errors import InvalidRequest, Reason

Model = TypeVar("Model", bound=BaseModel)

_Schema: TypeAlias = dict[str, Any]

_MAX_REASONS = 8
_MAX_NAMES = 200
_KINDS: Mapping[type, str] = {
    bool: "a boolean", int: "a whole number", float: "a number", str: "text", bytes: "bytes", memoryview: "bytes",
    list: "a list", dict: "an object", type(None): "null",
}  # fmt: skip


def validate(model: type[Model], document: Document, names: Iterable[str] = ()) -> Model:
    """Build the model; `names` are keys of ours that a pointer may hold beside the fields'.

    Raises InvalidRequest with a pointer to each of the first 8 wrong fields.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        reasons = list(_reasons(error, model, _known_names(model).union(names)))
    raise InvalidRequest("The request does not have the fields it needs.", reasons=reasons)


def _reasons(error: ValidationError, model: type[BaseModel], known: frozenset[str]) -> Iterator[Reason]:
    for line in error.errors(include_url=False, include_context=False)[:_MAX_REASONS]:
        pointer = _pointer(line["loc"], known)
        if line["type"] in ("extra_forbidden", "invalid_key"):
            yield Reason(pointer, "holds a field that is not known", _known_fields(model, line["loc"][:-1]))
        elif line["type"] == "missing":
            yield Reason(pointer, "is missing")
        else:
            yield Reason(pointer, _message(line["msg"]), received=_KINDS.get(type(line["input"])))


def _message(text: str) -> str:
    return text.removeprefix("Value error, ").replace("Input should be", "must be")


def _pointer(location: tuple[int | str, ...], known: frozenset[str]) -> str:
    """Write a JSON pointer up to the first name that the client made up."""
    pointer = ""
    for part in location:
        if isinstance(part, str) and part not in known:
            return pointer
        pointer += f"/{part}"
    return pointer


@cache
def _known_names(model: type[BaseModel]) -> frozenset[str]:
    return frozenset(_names_in(_schema(model)))


@cache
def _schema(model: type[BaseModel]) -> _Schema:
    return model.model_json_schema()


def _names_in(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "properties":
                yield from value
            yield from _names_in(value)


def _known_fields(model: type[BaseModel], location: tuple[int | str, ...]) -> str | None:
    """Name the fields of the object at a location, as many as fit."""
    root = _schema(model)
    places = [root]
    for part in location:
        places = [inner for place in places for inner in _inside(place, part, root)]
    names = ", ".join(name for place in places for form in _forms(place, root) for name in form.get("properties", ()))
    if len(names) > _MAX_NAMES:
        names = f"{names[:_MAX_NAMES].rpartition(', ')[0]}, ..."
    return f"one of {names}" if names else None


def _inside(place: _Schema, part: int | str, root: _Schema) -> Iterator[_Schema]:
    for form in _forms(place, root):
        inner = form.get("items") if isinstance(part, int) else form.get("properties", {}).get(part)
        inner = inner or form.get("additionalProperties")
        if isinstance(inner, dict):
            yield inner


def _forms(schema: _Schema, root: _Schema) -> Iterator[_Schema]:
    """Follow references and choices to whatever may stand at a place."""
    if "$ref" in schema:
        yield from _forms(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
        return
    choices = [choice for key in ("anyOf", "oneOf", "allOf") for choice in schema.get(key, ())]
    for choice in choices:
        yield from _forms(choice, root)
    if not choices:
        yield schema
