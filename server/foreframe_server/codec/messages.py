"""A websocket's messages: a msgpack map to an id, a kind and the request's own fields, and back. Knows no route."""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import msgpack

from foreframe_server.calls import REQUEST_ID
from foreframe_server.codec.documents import Document, read_document
from foreframe_server.codec.media import Media
from foreframe_server.codec.validation import Model, validate
from foreframe_server.errors import InvalidRequest
from foreframe_server.realtime_schemas import MessageId, MessageKind, MessageType

_HEAD_BYTES = 256
_ID_KEYS = ("request_id", b"request_id")
_HEAD_KEYS = (*_ID_KEYS, "type", b"type")


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """One message: whose answer its answers are, what it asks, and its other fields; or `fault`, what is wrong."""

    request_id: str
    kind: MessageKind | None
    fields: Document
    fault: InvalidRequest | None = None


def read_message(data: bytes, *, max_values: int) -> Message:
    """Read a message. A faulty one can be answered when its id is found, best written first.

    Raises InvalidRequest for one that cannot be.
    """
    try:
        document = read_document(data, Media.MSGPACK, max_values=max_values)
    except InvalidRequest as fault:
        request_id = _leading_id(data)
        if request_id is None:
            raise
        return Message(request_id, None, {}, fault)
    return _read_envelope(document)


def _read_envelope(document: Document) -> Message:
    request_id = secrets.token_hex(8)
    try:
        request_id = take_fields(MessageId, document).request_id or request_id
        kind = take_fields(MessageType, document).type
    except InvalidRequest as fault:
        return Message(request_id, None, {}, fault)
    return Message(request_id, kind, document)


def take_fields(model: type[Model], document: Document) -> Model:
    """Take a model's fields out of a document. Raises InvalidRequest."""
    return validate(model, {name: document.pop(name) for name in model.model_fields if name in document})


def _leading_id(data: bytes) -> str | None:
    """Find the id of a message that cannot be read, where nothing but its type stands before it."""
    unpacker = msgpack.Unpacker(max_buffer_size=_HEAD_BYTES)
    unpacker.feed(data[:_HEAD_BYTES])
    try:
        for _ in range(unpacker.read_map_header()):
            key, value = unpacker.unpack(), unpacker.unpack()
            if key in _ID_KEYS:
                return value if isinstance(value, str) and re.fullmatch(REQUEST_ID, value) else None
            if key not in _HEAD_KEYS:
                return None
    except (ValueError, msgpack.UnpackException):
        return None
    return None


def write_message(name: str, request_id: str, body: bytes, server_timing: Mapping[str, float] | None = None) -> bytes:
    """Put an envelope around a body that is msgpack already."""
    head: dict[str, object] = {"type": name, "request_id": request_id}
    if server_timing is not None:
        head["server_timing"] = dict(server_timing)
    packer = msgpack.Packer()
    pairs = [packer.pack(part) for pair in head.items() for part in pair]
    return b"".join([packer.pack_map_header(len(head) + 1), *pairs, packer.pack("body"), body])
