"""POST /v1/scores: plans in, their ranking out. Knows headers and deadlines, and neither plans nor engines."""

from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from foreframe_server.access import allow, require
from foreframe_server.codec import AskedScores, decode_scores, encode_scores
from foreframe_server.hosting import HostedModel
from foreframe_server.keys import Scope
from foreframe_server.routes.contents import PROBLEMS, document_reply, media_body
from foreframe_server.routes.exchange import Exchange, Offer, respond
from foreframe_server.routes.host import Host
from foreframe_server.score_schemas import ScoreReply, ScoreRequest
from foreframe_server.scores import ScoreAnswer

router = APIRouter(tags=["scores"], dependencies=[allow(Scope.PREDICT)])


def score_exchange(host: Host, model: HostedModel) -> Exchange[AskedScores, ScoreAnswer]:
    """Put together how a scoring is read, answered and written. Raises what `open_scores` raises."""
    require(Scope.PREDICT)
    service = model.open_scores()
    return Exchange(host, model, decode_scores, lambda asked, call: service.score(asked.query, call), encode_scores)


SCORES: Final = Offer("score", score_exchange)


@router.post(
    "/v1/scores",
    summary="Rank candidate state sequences from one observation",
    openapi_extra=media_body(ScoreRequest),
    responses={200: {"description": "The candidates' costs and ranks.", **document_reply(ScoreReply)}, **PROBLEMS},
    response_class=Response,
)
async def score_candidates(request: Request) -> Response:
    """Decode, score, encode; every stage is timed."""
    return await respond(request, SCORES)
