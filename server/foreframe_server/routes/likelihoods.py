"""POST /v1/likelihoods: what did happen in, its bits out. Knows headers and deadlines, and neither ids nor engines."""

from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from foreframe_server.access import allow, require
from foreframe_server.codec import AskedLikelihood, decode_likelihood, encode_likelihood
from foreframe_server.hosting import HostedModel
from foreframe_server.keys import Scope
from foreframe_server.likelihood_schemas import LikelihoodReply, LikelihoodRequest
from foreframe_server.likelihoods import LikelihoodAnswer
from foreframe_server.routes.contents import PROBLEMS, document_reply, media_body
from foreframe_server.routes.exchange import Exchange, Offer, respond
from foreframe_server.routes.host import Host

router = APIRouter(tags=["likelihoods"], dependencies=[allow(Scope.LIKELIHOOD)])


def likelihood_exchange(host: Host, model: HostedModel) -> Exchange[AskedLikelihood, LikelihoodAnswer]:
    """Put together how a likelihood is read, answered and written. Raises what `open_likelihoods` raises."""
    require(Scope.LIKELIHOOD)
    service = model.open_likelihoods()
    return Exchange(
        host,
        model,
        decode_likelihood,
        lambda asked, call: service.score(asked.query, call),
        encode_likelihood,
    )


LIKELIHOODS: Final = Offer("likelihood", likelihood_exchange)


@router.post(
    "/v1/likelihoods",
    summary="Count the bits of frames, or of their ids, that did happen after an observation",
    openapi_extra=media_body(LikelihoodRequest),
    responses={200: {"description": "The bits of the target.", **document_reply(LikelihoodReply)}, **PROBLEMS},
    response_class=Response,
)
async def score_likelihood(request: Request) -> Response:
    """Decode, read, encode; every stage is timed."""
    return await respond(request, LIKELIHOODS)
