"""POST /v1/scores: plans in, their ranking out. Knows headers and deadlines, and neither plans nor engines."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from foreframe_server.codec import decode_scores, encode_scores
from foreframe_server.routes.contents import PROBLEMS, document_body, document_reply
from foreframe_server.routes.exchange import exchange
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
    service = host_of(request).open_scores()
    return await exchange(
        request,
        service.contract,
        decode_scores,
        lambda asked, call: service.score(asked.query, call),
        encode_scores,
    )
