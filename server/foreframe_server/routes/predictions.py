"""POST /v1/predictions: bytes in, future frames out, at once or event by event. Knows neither pixels nor engines."""

from dataclasses import replace
from functools import partial
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from foreframe_engines import Contract
from foreframe_server.access import allow, require
from foreframe_server.calls import Answer, Call
from foreframe_server.codec import (
    REPLY_MEDIA,
    Asked,
    EncodedReply,
    Media,
    decode_prediction,
    decode_streamed,
    encode_prediction,
    is_light_answer,
    is_light_prediction,
    read_accept,
)
from foreframe_server.hosting import HostedModel
from foreframe_server.keys import Scope
from foreframe_server.routes.contents import PROBLEMS, clip_replies, media_body
from foreframe_server.routes.direct import DirectRoute
from foreframe_server.routes.exchange import Exchange, Offer, respond
from foreframe_server.routes.host import Host
from foreframe_server.routes.progress import stream_prediction
from foreframe_server.schemas import PredictionRequest
from foreframe_server.service import PredictionService

router = APIRouter(tags=["predictions"], dependencies=[allow(Scope.PREDICT)], route_class=DirectRoute)


def prediction_exchange(host: Host, model: HostedModel) -> Exchange[Asked, Answer]:
    """Put together how a prediction is read, answered and written. Raises what `open_service` raises."""
    require(Scope.PREDICT)
    service = model.open_service()
    return Exchange(
        host,
        model,
        decode_prediction,
        lambda asked, call: service.predict(asked.query, call),
        partial(_encode, service),
        is_light_answer,
    )


def _streamed_exchange(host: Host, model: HostedModel) -> Exchange[Asked, Answer]:
    return replace(prediction_exchange(host, model), decode=decode_streamed)


PREDICTIONS: Final = Offer("predict", prediction_exchange, is_light=is_light_prediction)
STREAMED_PREDICTIONS: Final = Offer("predict", _streamed_exchange, is_light=is_light_prediction)
"""Whose every improvement is told, so that what cannot be is refused."""


def _encode(service: PredictionService, asked: Asked, answer: Answer, contract: Contract, call: Call) -> EncodedReply:
    reply = encode_prediction(asked, answer, contract, call)
    service.observe_reply((answer.timings.reduce + answer.timings.respond) / 1000)
    return reply


@router.post(
    "/v1/predictions",
    summary="Predict future frames for one observation and one future state sequence",
    openapi_extra=media_body(PredictionRequest),
    responses={200: {"description": "The predicted frames.", **clip_replies()}, **PROBLEMS},
    response_class=Response,
)
async def predict(request: Request) -> Response:
    """Decode, predict, encode; every stage is timed. `text/event-stream` tells of every improvement on the way."""
    if read_accept(request.headers.get("accept")) is Media.EVENTS:
        return await stream_prediction(request, STREAMED_PREDICTIONS)
    return await respond(request, PREDICTIONS, REPLY_MEDIA)
