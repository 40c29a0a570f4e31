"""POST and DELETE /v1/observations: encode a context once, hold it, name it. Knows neither pixels nor engines."""

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from foreframe_server.codec import decode_observation, write_document
from foreframe_server.observation_schemas import ObservationReply, ObservationRequest
from foreframe_server.routes.calls import build_call, receive
from foreframe_server.routes.contents import PROBLEMS, document_body, document_reply
from foreframe_server.routes.host import host_of

router = APIRouter(tags=["observations"])
_Id = Annotated[str, Path(alias="id", max_length=128)]


@router.post(
    "/v1/observations",
    summary="Upload and encode an observation once, to be named by its id until it expires",
    openapi_extra=document_body(ObservationRequest),
    responses={200: {"description": "The observation is held.", **document_reply(ObservationReply)}, **PROBLEMS},
    response_class=Response,
)
async def hold_observation(request: Request) -> Response:
    """Decode, encode with every model, hold."""
    host = host_of(request)
    encoder = host.open_encoder()
    received = await receive(request)
    limits = host.settings.observations
    asked = await host.compute(
        decode_observation,
        received.body,
        received.media,
        encoder.contract,
        host.bounds,
        max_ttl_s=limits.max_ttl_s,
    )
    observation = await encoder.encode(asked.observation, build_call(request))
    ttl_s = limits.ttl_s if asked.ttl_s is None else asked.ttl_s
    reply = ObservationReply(
        observation_id=host.observations.put(observation, ttl_s),
        expires_in_s=ttl_s,
        frames=len(observation.frames),
        models=list(observation.models),
        bytes=observation.num_bytes,
        warnings=list(asked.warnings),
    )
    body = write_document(reply.model_dump(), received.accepted)
    return Response(body, headers={"Cache-Control": "no-store", "Vary": "Accept"}, media_type=received.accepted.value)


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
