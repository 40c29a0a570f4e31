"""POST and DELETE /v1/observations: encode a context once, hold it, name it. Knows neither pixels nor engines."""

import time
from dataclasses import replace
from functools import partial
from typing import Annotated, Final

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from foreframe_server.access import allow, current_caller
from foreframe_server.calls import Call, HoldTimings
from foreframe_server.codec import AskedObservation, decode_observation, encode_observation
from foreframe_server.hosting import HostedModel
from foreframe_server.keys import Scope
from foreframe_server.observation_schemas import ObservationReply, ObservationRequest
from foreframe_server.observations import HeldObservation
from foreframe_server.routes.contents import PROBLEMS, document_reply, media_body
from foreframe_server.routes.exchange import Exchange, Offer, respond
from foreframe_server.routes.host import Host, host_of

router = APIRouter(tags=["observations"], dependencies=[allow(Scope.PREDICT, Scope.LIKELIHOOD)])
_Id = Annotated[str, Path(alias="id", max_length=128)]


def observation_exchange(host: Host, model: HostedModel) -> Exchange[AskedObservation, HeldObservation]:
    """Put together how an upload is read, answered and written."""
    decode = partial(decode_observation, max_ttl_s=host.settings.observations.max_ttl_s)
    return Exchange(host, model, decode, partial(_hold, host, model), encode_observation)


OBSERVATIONS: Final = Offer(None, observation_exchange)


async def _hold(host: Host, model: HostedModel, asked: AskedObservation, call: Call) -> HeldObservation:
    """Encode with both halves of the model, and hold."""
    started_s = time.monotonic()
    encoded = await model.encoder.encode(asked.observation, call)
    observation = replace(encoded, model=model.contract.model, fingerprint=model.fingerprint)
    timings = HoldTimings(encode=(time.monotonic() - started_s) * 1000)
    ttl_s = host.settings.observations.ttl_s if asked.ttl_s is None else asked.ttl_s
    observation_id = host.observations.put(observation, ttl_s, call.tenant)
    return HeldObservation(observation_id, observation, ttl_s, timings)


@router.post(
    "/v1/observations",
    summary="Upload and encode an observation once, to be named by its id until it expires",
    openapi_extra=media_body(ObservationRequest),
    responses={200: {"description": "The observation is held.", **document_reply(ObservationReply)}, **PROBLEMS},
    response_class=Response,
)
async def hold_observation(request: Request) -> Response:
    """Decode, encode with both halves of the model, hold; every stage is timed."""
    return await respond(request, OBSERVATIONS)


@router.delete(
    "/v1/observations/{id}",
    summary="Forget an uploaded observation",
    status_code=204,
    responses=PROBLEMS,
    response_class=Response,
)
async def forget_observation(request: Request, observation_id: _Id) -> Response:
    """Forget an observation before it expires."""
    host_of(request).observations.delete(observation_id, current_caller().tenant)
    return Response(status_code=204)
