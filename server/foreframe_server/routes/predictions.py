"""POST /v1/predictions: bytes in, future frames out. Knows headers and deadlines, and neither pixels nor engines."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from foreframe_server.codec import Media, decode_prediction, encode_prediction
from foreframe_server.routes.contents import PROBLEMS, clip_replies, document_body
from foreframe_server.routes.exchange import exchange
from foreframe_server.routes.host import host_of
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
    service = host_of(request).open_service()
    return await exchange(
        request,
        service.contract,
        decode_prediction,
        lambda asked, call: service.predict(asked.query, call),
        encode_prediction,
        offered=tuple(Media),
    )
