"""POST /v1/likelihoods: what did happen in, its bits out. Knows headers and deadlines, and neither ids nor engines."""

import time

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from foreframe_server.codec import decode_likelihood, encode_likelihood
from foreframe_server.likelihood_schemas import LikelihoodReply, LikelihoodRequest
from foreframe_server.routes.calls import build_call, receive, receive_ms, timing_headers
from foreframe_server.routes.contents import PROBLEMS, document_body, document_reply
from foreframe_server.routes.host import host_of

router = APIRouter(tags=["likelihoods"])


@router.post(
    "/v1/likelihoods",
    summary="Count the bits of frames, or of their ids, that did happen after an observation",
    openapi_extra=document_body(LikelihoodRequest),
    responses={200: {"description": "The bits of the target.", **document_reply(LikelihoodReply)}, **PROBLEMS},
    response_class=Response,
)
async def score_likelihood(request: Request) -> Response:
    """Decode, read, encode; every stage is timed."""
    host = host_of(request)
    service = host.open_likelihoods()
    received = await receive(request)
    asked = await host.compute(
        decode_likelihood,
        received.body,
        received.media,
        received.accepted,
        service.contract,
        host.bounds,
        host.observations.get,
    )
    decode_ms = received.elapsed_ms
    call = build_call(request, asked.deadline_ms, priority=asked.priority)
    answer = await service.score(asked.query, call)
    timings = answer.timings
    timings.receive, timings.decode = receive_ms(request, received), decode_ms
    reply = await host.compute(encode_likelihood, asked, answer, service.contract, call)
    timings.total = (time.monotonic() - request.state.received_s) * 1000
    host.metrics.observe_stages(timings)
    return Response(reply.body, headers=timing_headers(timings), media_type=reply.media.value)
