"""What the door says before a request has reached the app: a whole reply in bytes, small and typed."""

import json
import math
import secrets
from http import HTTPStatus

from foreframe_server.errors import ServiceError
from foreframe_server.problems import MEDIA_TYPE, problem_document


class MalformedRequest(ServiceError):
    """The bytes are no HTTP request that the server reads."""

    code, status, title = "malformed_request", 400, "The request is not well formed"


class HeadTooLarge(ServiceError):
    """The request line or the headers are larger than the limit, or too many."""

    code, status, title = "head_too_large", 431, "The head of the request is too large"


class TooManyConnections(ServiceError):
    """The client's address holds as many connections as one may."""

    code, status, title, is_retryable = "too_many_connections", 429, "Too many connections", True


def refusal_bytes(error: ServiceError, request_id: str | None = None) -> bytes:
    """Write a refusal as an HTTP/1.1 reply after which the connection ends. request_id: none draws one."""
    request_id = request_id or secrets.token_hex(8)
    body = json.dumps(problem_document(error, request_id), separators=(",", ":")).encode("ascii")
    lines = [
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
        f"content-type: {MEDIA_TYPE}",
        f"content-length: {len(body)}",
        "cache-control: no-store",
        "connection: close",
        f"x-request-id: {request_id}",
    ]
    if error.retry_after_ms is not None:
        lines.append(f"retry-after: {math.ceil(error.retry_after_ms / 1000)}")
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body
