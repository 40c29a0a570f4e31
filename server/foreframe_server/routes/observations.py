"""POST and DELETE /v1/observations: encode a context once, hold it, name it. Knows neither pixels nor engines."""

import time
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from foreframe_server.calls import Call, HoldTimings
from foreframe_server.codec import AskedObservation, decode_observation, encode_observation
from foreframe_server.observation_schemas import ObservationReply, ObservationRequest
from foreframe_server.observations import HeldObservation
from foreframe_server.routes.contents import PROBLEMS, document_reply, media_body
from foreframe_server.routes.exchange import Exchange, respond
from foreframe_server.routes.host import Host, host_of

router = APIRouter(tags=["observations"])
_Id = Annotated[str, Path(alias="id", max_length=128)]


def observation_exchange(host: Host) -> Exchange[AskedObservation, HeldObservation]:
    """Put together how an upload is read, answered and written. Raises what `open_encoder` raises."""
    decode = partial(decode_observation, max_ttl_s=host.settings.observations.max_ttl_s)
    return Exchange(host, host.open_model().encoder.contract, decode, partial(_hold, host), encode_observation)


async def _hold(host: Host, asked: AskedObservation, call: Call) -> HeldObservation:
    """Encode with every model, and hold."""
    started_s = time.monotonic()
    observation = await host.open_model().encoder.encode(asked.observation, call)
    timings = HoldTimings(encode=(time.monotonic() - started_s) * 1000)
    ttl_s = host.settings.observations.ttl_s if asked.ttl_s is None else asked.ttl_s
    return HeldObservation(host.observations.put(observation, ttl_s), observation, ttl_s, timings)


@router.post(
    "/v1/observations",
    summary="Upload and encode an observation once, to be named by its id until it expires",
    openapi_extra=media_body(ObservationRequest),
    responses={200: {"description": "The observation is held.", **document_reply(ObservationReply)}, **PROBLEMS},
    response_class=Response,
)
async def hold_observation(request: Request) -> Response:
    """Decode, encode with every model, hold; every stage is timed."""
    return await respond(request, observation_exchange(host_of(request)))


@router.delete(
    "/v1/observations/{id}",
    summary="Forget an uploaded observation",
    status_code=204,
    responses=PROBLEMS,
    response_class=Response,
)
async def forget_observation(request: Request, observation_id: _Id) -> Response:
    """Forget an observation before it expires."""
    host_of(request).observations.delete(observation_id)
    return Response(status_code=204)
