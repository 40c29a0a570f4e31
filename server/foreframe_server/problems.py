"""Errors as problem documents (RFC 9457) and as a websocket's end: small, typed, and never a word of the input."""

import json
import math
import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Scope

from foreframe_server.errors import InvalidRequest, NotReady, PayloadTooLarge, Reason, ServiceError, Unauthorized

MEDIA_TYPE = "application/problem+json"
MAX_PROBLEM_BYTES = 4096
MAX_REASONS = 8
_MAX_TEXT = 240
_CLOSING = frozenset({408, 413})
_CLOSE_CODES = {PayloadTooLarge.code: 1009, NotReady.code: 1013}
_INTERNAL_ERROR = 1011
_TENSOR_DOOR = "/v2/"
_TYPE = "urn:foreframe:problem:"


class NotFound(ServiceError):
    """No route has this path."""

    code, status, title = "not_found", 404, "No such path"


class MethodNotAllowed(ServiceError):
    """The path exists, the method does not."""

    code, status, title = "method_not_allowed", 405, "The method is not allowed"


def unexpected_error() -> ServiceError:
    """Say as much of a fault of the server's own as its client may know."""
    return ServiceError("The server failed; the request id finds the cause in its log.")


def cut_off() -> NotReady:
    """Say that the server stopped before the answer was there."""
    return NotReady("The server stopped before this was answered.", retry_after_ms=1000)


def error_response(error: ServiceError, scope: Scope) -> Response:
    """Write an error as a reply, in the form of the door that the path leads to."""
    if f"{scope['path']}/".startswith(_TENSOR_DOOR):
        return Response(_json(tensor_error(error)), error.status, _headers(error), "application/json")
    return problem_response(error, scope["state"]["request_id"])


def problem_response(error: ServiceError, request_id: str) -> Response:
    """Write an error as a problem document."""
    return Response(_json(problem_document(error, request_id)), error.status, _headers(error), MEDIA_TYPE)


def _headers(error: ServiceError) -> dict[str, str]:
    headers = {"Cache-Control": "no-store"}
    if error.retry_after_ms is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_ms / 1000))
    if error.status == Unauthorized.status:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status in _CLOSING:
        # The rest of the body is not read, so nothing after it on this connection could be.
        headers["Connection"] = "close"
    return headers


def tensor_error(error: ServiceError) -> dict[str, object]:
    """Write an error as KServe has it: one text, which begins with the code. Its JSON is at most 4 KiB long."""
    sentences = [_sentence(reason) for reason in error.reasons[:MAX_REASONS]]
    while True:
        text = " ".join([f"{error.code}: {error.detail[:_MAX_TEXT]}", *sentences])
        document: dict[str, object] = {"error": text, "code": error.code}
        if len(_json(document)) <= MAX_PROBLEM_BYTES or not sentences:
            return document
        sentences.pop()


def _sentence(reason: Reason) -> str:
    parts = _short(reason)
    facts = ", ".join(f"{name} {parts[name]}" for name in ("expected", "received") if name in parts)
    return f"{parts['pointer']} {parts['message']}{f' ({facts})' if facts else ''}.".lstrip()


def closing_messages(error: ServiceError) -> list[Message]:
    """Write an error that ends a websocket: its code and message in a text frame, then the close."""
    text = _json({"code": error.code, "message": error.detail[:_MAX_TEXT]}).decode("ascii")
    code = _CLOSE_CODES.get(error.code, _INTERNAL_ERROR)
    return [
        {"type": "websocket.send", "text": text},
        {"type": "websocket.close", "code": code, "reason": error.code},
    ]


def problem_document(error: ServiceError, request_id: str) -> dict[str, object]:
    """Write an error as a document whose JSON is at most 4 KiB long, with as many reasons as fit."""
    reasons = [_short(reason) for reason in error.reasons[:MAX_REASONS]]
    while True:
        document = _problem(error, request_id, reasons)
        if len(_json(document)) <= MAX_PROBLEM_BYTES or not reasons:
            return document
        reasons.pop()


def _json(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def _problem(error: ServiceError, request_id: str, reasons: list[Mapping[str, str]]) -> dict[str, object]:
    return {
        "type": _TYPE + error.code,
        "title": error.title,
        "status": error.status,
        "detail": error.detail[:_MAX_TEXT],
        "code": error.code,
        "request_id": request_id,
        "errors": list(reasons),
        "retryable": error.is_retryable,
        "retry_after_ms": error.retry_after_ms,
    }


def _short(reason: Reason) -> Mapping[str, str]:
    return {name: text[:_MAX_TEXT] for name, text in asdict(reason).items() if text is not None}


def _answer(request: Request, error: ServiceError) -> Response:
    request.state.problem_code = error.code
    return error_response(error, request.scope)


async def _on_service_error(request: Request, error: Exception) -> Response:
    return _answer(request, error if isinstance(error, ServiceError) else ServiceError("The server failed."))


async def _on_http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 0
    if status == 405:
        response = _answer(request, MethodNotAllowed("This path does not know this method."))
        response.headers["Allow"] = ", ".join(sorted(_methods(request)))
        return response
    return _answer(request, NotFound("This server has no such path."))


def _methods(request: Request) -> set[str]:
    """Collect what a path may be asked with; each of its routes knows its own alone."""
    path = request.scope["path"]
    routes = [route for route in iter_route_contexts(request.app.routes) if _is_at(route, path)]
    return {method for route in routes for method in route.methods or ()}


def _is_at(route: object, path: str) -> bool:
    pattern: re.Pattern[str] | None = getattr(route, "path_regex", None)
    return pattern is not None and pattern.match(path) is not None


async def _on_bad_parameter(request: Request, _: Exception) -> Response:
    return _answer(request, InvalidRequest("A parameter of the path or query is not valid."))


async def _on_hang_up(request: Request, _: Exception) -> Response:
    # Where the door ended the request, it has told the client why; this is for the log.
    refusal = request.scope["state"].get("refusal")
    request.state.problem_code = "client_left" if refusal is None else refusal.code
    return Response(status_code=499 if refusal is None else refusal.status)


HANDLERS: Mapping[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    ServiceError: _on_service_error,
    HTTPException: _on_http_error,
    RequestValidationError: _on_bad_parameter,
    ClientDisconnect: _on_hang_up,
}
