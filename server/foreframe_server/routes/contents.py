"""How routes that read bytes themselves describe their bodies and replies to the OpenAPI document."""

from typing import Any

from pydantic import BaseModel

from foreframe_server.codec import Media
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


def document_body(model: type[BaseModel]) -> dict[str, object]:
    """Describe a request body in JSON or msgpack."""
    return {"requestBody": {"required": True, **document_reply(model)}}


def document_reply(model: type[BaseModel]) -> dict[str, Any]:
    """Describe a reply that is a document."""
    schema = {"schema": {"$ref": _REFERENCE.format(model=model.__name__)}}
    return {"content": {Media.JSON.value: schema, Media.MSGPACK.value: schema}}


def clip_replies() -> dict[str, Any]:
    """Describe replies that are a document, pictures alone or events, by Accept."""
    pictures = {media.value: _BINARY for media in (Media.MP4, Media.PNG, Media.WEBP)}
    return {"content": {**document_reply(PredictionReply)["content"], **pictures, Media.EVENTS.value: _EVENTS}}
