"""How routes that read bytes themselves describe their bodies and replies to the OpenAPI document."""

from typing import Any

from pydantic import BaseModel

from foreframe_server.codec import Media

_REFERENCE = "#/components/schemas/{model}"
_BINARY = {"schema": {"type": "string", "format": "binary"}}

PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request was refused.", "content": {"application/problem+json": {
        "schema": {"$ref": _REFERENCE.format(model="Problem")}}}},
    "5XX": {"description": "The server could not answer.", "content": {"application/problem+json": {
        "schema": {"$ref": _REFERENCE.format(model="Problem")}}}},
}  # fmt: skip


def document_body(model: type[BaseModel]) -> dict[str, object]:
    """Describe a request body in JSON or msgpack."""
    schema = {"schema": {"$ref": _REFERENCE.format(model=model.__name__)}}
    return {"requestBody": {"required": True, "content": {Media.JSON.value: schema, Media.MSGPACK.value: schema}}}


def clip_replies() -> dict[str, Any]:
    """Describe replies that are a document or pictures alone, by Accept."""
    pictures = {media.value: _BINARY for media in (Media.MP4, Media.PNG, Media.WEBP)}
    document = {"schema": {"$ref": _REFERENCE.format(model="PredictionReply")}}
    return {"content": {Media.JSON.value: document, Media.MSGPACK.value: document, **pictures}}
