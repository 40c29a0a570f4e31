"""POST /v1/scores: plans in, their ranking out. Knows headers and deadlines, and neither plans nor engines."""

import time

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from foreframe_server.codec import decode_scores, encode_scores
from foreframe_server.routes.calls import build_call, receive, receive_ms, timing_headers
from foreframe_server.routes.contents import PROBLEMS, document_body, document_reply
from foreframe_server.routes.host import host_of
from foreframe_server.score_schemas import ScoreReply, ScoreRequest

router = APIRouter(tags=["scores"])


@router.post(
    "/v1/scores",
    summary="Rank candidate state sequences from one observation",
    openapi_extra=document_body(ScoreRequest),
    responses={200: {"description": "The candidates' costs and ranks.", **document_reply(ScoreReply)}, **PROBLEMS},
    response_class=Response,
)
async def score_candidates(request: Request) -> Response:
    """Decode, score, encode; every stage is timed."""
    host = host_of(request)
    service = host.open_scores()
    received = await receive(request)
    asked = await host.compute(
        decode_scores,
        received.body,
        received.media,
        received.accepted,
        service.contract,
        host.bounds,
        host.observations.get,
    )
    decode_ms = received.elapsed_ms
    call = build_call(request, asked.deadline_ms)
    answer = await service.score(asked.query, call)
    timings = answer.timings
    timings.receive, timings.decode = receive_ms(request, received), decode_ms
    reply = await host.compute(encode_scores, asked, answer, service.contract, call)
    timings.total = (time.monotonic() - request.state.received_s) * 1000
    host.metrics.observe_stages(timings)
    return Response(reply.body, headers=timing_headers(timings), media_type=reply.media.value)
