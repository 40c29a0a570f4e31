"""How routes that read bytes themselves describe their bodies and replies to the OpenAPI document."""

from typing import Any

from pydantic import BaseModel

from foreframe_server.codec import PART_KEY, REQUEST_PART, Media
from foreframe_server.schemas import PredictionReply

_REFERENCE = "#/components/schemas/{model}"
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_EVENTS = {
    "schema": {
        "type": "string",
        "description": "Server-sent events, each with one line of JSON: `accepted` (AcceptedEvent), `estimate` "
        "(EstimateEvent), `update` (UpdateEvent), and last `done` (PredictionReply) or `error` (Problem).",
    }
}

PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request was refused.", "content": {"application/problem+json": {
        "schema": {"$ref": _REFERENCE.format(model="Problem")}}}},
    "5XX": {"description": "The server could not answer.", "content": {"application/problem+json": {
        "schema": {"$ref": _REFERENCE.format(model="Problem")}}}},
}  # fmt: skip

TENSOR_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": each["description"], "content": {Media.JSON.value: {
        "schema": {"$ref": _REFERENCE.format(model="TensorProblem")}}}}
    for status, each in PROBLEMS.items()
}  # fmt: skip


def document_body(model: type[BaseModel]) -> dict[str, object]:
    """Describe a request body in JSON or msgpack."""
    return {"requestBody": {"required": True, **document_reply(model)}}


def media_body(model: type[BaseModel]) -> dict[str, Any]:
    """Describe a request body in JSON, msgpack, or in parts, the bytes of which a document names."""
    schema = {
        "type": "object",
        "description": f'`{{"{PART_KEY}": name}}` in `{REQUEST_PART}` stands for the bytes of the part of that name; '
        "with `dtype` and `shape` beside it for an array of them in C order. Every part is named.",
        "properties": {REQUEST_PART: {"$ref": _REFERENCE.format(model=model.__name__)}},
        "required": [REQUEST_PART],
        "additionalProperties": _BINARY["schema"],
    }
    content = {**document_reply(model)["content"], Media.MULTIPART.value: {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def document_reply(model: type[BaseModel]) -> dict[str, Any]:
    """Describe a reply that is a document."""
    schema = {"schema": {"$ref": _REFERENCE.format(model=model.__name__)}}
    return {"content": {Media.JSON.value: schema, Media.MSGPACK.value: schema}}


def clip_replies() -> dict[str, Any]:
    """Describe replies that are a document, pictures alone or events, by Accept."""
    events = {Media.EVENTS.value: _EVENTS}
    return {"content": {**document_reply(PredictionReply)["content"], **picture_replies(), **events}}


def picture_replies() -> dict[str, Any]:
    """Describe replies that are pictures alone, by Accept."""
    return {media.value: _BINARY for media in (Media.MP4, Media.PNG, Media.WEBP)}


def tensor_body(model: type[BaseModel]) -> dict[str, object]:
    """Describe a request body of JSON, or of JSON and then tensors."""
    return {"requestBody": {"required": True, **tensor_reply(model)}}


def tensor_reply(model: type[BaseModel]) -> dict[str, Any]:
    """Describe a reply of JSON, or of JSON and then tensors; a header says how long the JSON is."""
    schema = {"schema": {"$ref": _REFERENCE.format(model=model.__name__)}}
    return {"content": {Media.JSON.value: schema, "application/octet-stream": _BINARY}}
