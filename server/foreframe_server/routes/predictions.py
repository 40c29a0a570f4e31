"""POST /v1/predictions: bytes in, future frames out. Knows headers and deadlines, and neither pixels nor engines."""

import time
from dataclasses import fields

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from foreframe_server.calls import Answer, Call, Timings
from foreframe_server.codec import (
    Asked,
    EncodedReply,
    decode_prediction,
    encode_prediction,
    read_accept,
    read_content_type,
)
from foreframe_server.errors import InvalidRequest, Reason
from foreframe_server.routes.contents import PROBLEMS, clip_replies, document_body
from foreframe_server.routes.host import Host, host_of
from foreframe_server.schemas import MAX_DEADLINE_MS, PredictionRequest

router = APIRouter(tags=["predictions"])
_DEADLINE_HEADER = "x-deadline-ms"
_NO_STAGES = frozenset({"step_batch_mean", "cold"})


@router.post(
    "/v1/predictions",
    summary="Predict future frames for one observation and one future state sequence",
    openapi_extra=document_body(PredictionRequest),
    responses={200: {"description": "The predicted frames.", **clip_replies()}, **PROBLEMS},
    response_class=Response,
)
async def predict(request: Request) -> Response:
    """Decode, predict, encode; every stage is timed."""
    host = host_of(request)
    service = host.open_service()
    timings = Timings()
    asked = await _receive(request, host, timings)
    call = _call(request, asked)
    answer = await service.predict(asked.query, call)
    answer.timings.receive, answer.timings.decode = timings.receive, timings.decode
    reply = await host.compute(encode_prediction, asked, answer, service.contract, call)
    return _respond(request, host, answer, reply)


async def _receive(request: Request, host: Host, timings: Timings) -> Asked:
    """Read and decode the body; sets `timings.receive` and `timings.decode`."""
    accepted = read_accept(request.headers.get("accept"))
    media = read_content_type(request.headers.get("content-type"))
    _header_deadline_s(request)
    body = await request.body()
    received_s = time.monotonic()
    asked = await host.compute(decode_prediction, body, media, accepted, host.open_contract(), host.bounds)
    timings.receive = (received_s - request.state.received_s) * 1000
    timings.decode = (time.monotonic() - received_s) * 1000
    return asked


def _call(request: Request, asked: Asked) -> Call:
    received_s = request.state.received_s
    own_s = None if asked.deadline_ms is None else received_s + asked.deadline_ms / 1000
    deadlines = [deadline for deadline in (own_s, _header_deadline_s(request)) if deadline is not None]
    return Call(
        request_id=request.state.request_id,
        received_s=received_s,
        deadline_s=min(deadlines, default=None),
        on_deadline=asked.on_deadline,
        cache=asked.cache,
        is_disconnected=request.is_disconnected,
    )


def _header_deadline_s(request: Request) -> float | None:
    text = request.headers.get(_DEADLINE_HEADER)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 9 and int(text) <= MAX_DEADLINE_MS):
        expected = f"milliseconds, 0..{MAX_DEADLINE_MS}"
        reason = Reason("", "X-Deadline-Ms is no budget", expected)
        raise InvalidRequest("X-Deadline-Ms is not valid.", reasons=[reason])
    return request.state.received_s + int(text) / 1000


def _respond(request: Request, host: Host, answer: Answer, reply: EncodedReply) -> Response:
    timings = answer.timings
    timings.total = (time.monotonic() - request.state.received_s) * 1000
    stages = Timings(receive=timings.receive, decode=timings.decode, respond=timings.respond, total=timings.total)
    host.metrics.observe_stages(stages)
    headers = {**reply.headers, "Server-Timing": _server_timing(timings), "Cache-Control": "no-store", "Vary": "Accept"}
    return Response(reply.body, headers=headers, media_type=reply.media.value)


def _server_timing(timings: Timings) -> str:
    names = (field.name for field in fields(timings) if field.name not in _NO_STAGES)
    return ", ".join(f"{name};dur={getattr(timings, name):.3f}" for name in names)
