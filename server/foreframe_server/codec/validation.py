"""A document to a pydantic model, and pydantic's complaints to reasons that repeat nothing of the input."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from foreframe_server.codec.documents import Document
from foreframe_server.errors import InvalidRequest, Reason

Model = TypeVar("Model", bound=BaseModel)

_MAX_REASONS = 8
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
        reasons = list(_reasons(error, _known_names(model).union(names)))
    raise InvalidRequest("The request does not have the fields it needs.", reasons=reasons)


def _reasons(error: ValidationError, known: frozenset[str]) -> Iterator[Reason]:
    for line in error.errors(include_url=False, include_context=False)[:_MAX_REASONS]:
        pointer = _pointer(line["loc"], known)
        if line["type"] in ("extra_forbidden", "invalid_key"):
            yield Reason(pointer, "holds a field that is not known")
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
    return frozenset(_names_in(model.model_json_schema()))


def _names_in(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "properties":
                yield from value
            yield from _names_in(value)
