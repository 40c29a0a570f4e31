"""POST /v1/predictions: bytes in, future frames out. Knows headers and deadlines, and neither pixels nor engines."""

import time

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from foreframe_server.calls import Answer, Timings
from foreframe_server.codec import Asked, EncodedReply, Media, decode_prediction, encode_prediction
from foreframe_server.routes.calls import build_call, receive, receive_ms, timing_headers
from foreframe_server.routes.contents import PROBLEMS, clip_replies, document_body
from foreframe_server.routes.host import Host, host_of
from foreframe_server.schemas import PredictionRequest

router = APIRouter(tags=["predictions"])


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
    asked = await _decode(request, host, timings)
    call = build_call(request, asked.deadline_ms, on_deadline=asked.on_deadline, cache=asked.cache)
    answer = await service.predict(asked.query, call)
    answer.timings.receive, answer.timings.decode = timings.receive, timings.decode
    reply = await host.compute(encode_prediction, asked, answer, service.contract, call)
    return _respond(request, host, answer, reply)


async def _decode(request: Request, host: Host, timings: Timings) -> Asked:
    """Read and decode the body; sets `timings.receive` and `timings.decode`."""
    received = await receive(request, tuple(Media))
    asked = await host.compute(
        decode_prediction,
        received.body,
        received.media,
        received.accepted,
        host.open_contract(),
        host.bounds,
        host.observations.get,
    )
    timings.receive, timings.decode = receive_ms(request, received), received.elapsed_ms
    return asked


def _respond(request: Request, host: Host, answer: Answer, reply: EncodedReply) -> Response:
    timings = answer.timings
    timings.total = (time.monotonic() - request.state.received_s) * 1000
    stages = Timings(receive=timings.receive, decode=timings.decode, respond=timings.respond, total=timings.total)
    host.metrics.observe_stages(stages)
    return Response(reply.body, headers={**reply.headers, **timing_headers(timings)}, media_type=reply.media.value)
