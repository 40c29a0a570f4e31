"""The websocket /v1/realtime: msgpack messages, many requests in flight. Knows neither pixels nor engines."""

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from urllib.parse import urlsplit

from fastapi import APIRouter
from starlette.datastructures import Headers
from starlette.websockets import WebSocket

from foreframe_server.codec import Document, decode_streamed, take_fields
from foreframe_server.errors import Forbidden, InvalidRequest, NotReady, Reason
from foreframe_server.realtime_schemas import MessageKind, PredictOptions, SessionName
from foreframe_server.routes.calls import stage_times
from foreframe_server.routes.conversation import ROUTE, Conversation, Incoming, Tell
from foreframe_server.routes.exchange import AnsweredT, AskedT, Exchange, close_exchange, open_fields
from foreframe_server.routes.host import Host, host_of
from foreframe_server.routes.likelihoods import likelihood_exchange
from foreframe_server.routes.line import Line
from foreframe_server.routes.models import contract_reply
from foreframe_server.routes.observations import observation_exchange
from foreframe_server.routes.predictions import prediction_exchange
from foreframe_server.routes.scores import score_exchange
from foreframe_server.routes.sessions import create_exchange, reset_exchange, step_exchange
from foreframe_server.routes.telling import Telling

router = APIRouter()
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class CrossSite(Forbidden):
    """A browser says that another site's page opens the connection, in the name of whoever looks at it."""

    title = "Other sites' pages may not connect"


@router.websocket(ROUTE)
async def talk(websocket: WebSocket) -> None:
    """Send the model's contract, then answer messages until either side ends it."""
    check_origin(websocket.headers)
    host = host_of(websocket)
    await websocket.accept()
    line = Line(websocket, host.settings.http.max_message_bytes)
    with host.metrics.connected():
        conversation = Conversation(line, host, partial(_answer_message, host), websocket.state.request_id)
        await conversation.hold(partial(greet, host))


def check_origin(headers: Headers) -> None:
    """Refuse pages of other sites. Raises CrossSite."""
    if not all(is_same_site(origin, headers.get("host", "")) for origin in headers.getlist("origin")):
        raise CrossSite("The Origin header names another site than the Host header.")


def is_same_site(origin: str, host: str) -> bool:
    """Whether a page of an origin was served under the name that it calls now."""
    try:
        scheme, netloc = urlsplit(origin)[:2]
    except ValueError:
        return False
    port = _DEFAULT_PORTS.get(scheme)
    return port is not None and netloc.lower().removesuffix(port) == host.lower().removesuffix(port) != ""


def greet(host: Host) -> Document:
    """Write what a connection is told first: the model's contract. Raises NotReady."""
    if not host.is_ready:
        raise NotReady("The server is starting or stopping.", retry_after_ms=1000)
    return contract_reply(host).model_dump()


async def _answer_message(host: Host, incoming: Incoming, tell: Tell) -> None:
    kind = incoming.message.kind
    if kind is None or kind not in _ANSWERS:
        raise RuntimeError("a message came here that is answered elsewhere")
    await _ANSWERS[kind](host, incoming, tell)


async def _answer(
    exchange_of: Callable[[Host], Exchange[AskedT, AnsweredT]], host: Host, incoming: Incoming, tell: Tell
) -> None:
    """Answer as HTTP does."""
    exchange = exchange_of(host)
    message = incoming.message
    opened = await open_fields(exchange, message.fields, message.request_id, incoming.received_s)
    answered = await exchange.answer(opened.asked, opened.call)
    reply = await close_exchange(exchange, opened, answered)
    await tell("done", reply.body, stage_times(answered.timings))


async def _predict(host: Host, incoming: Incoming, tell: Tell) -> None:
    if take_fields(PredictOptions, incoming.message.fields).progress:
        await _tell_prediction(host, incoming, tell)
    else:
        await _answer(prediction_exchange, host, incoming, tell)


async def _tell_prediction(host: Host, incoming: Incoming, tell: Tell) -> None:
    """Answer with everything on the way."""
    exchange = replace(prediction_exchange(host), decode=decode_streamed)
    message = incoming.message
    opened = await open_fields(exchange, message.fields, message.request_id, incoming.received_s)
    telling = Telling(exchange, opened)
    try:
        await telling.settle()
        async with contextlib.aclosing(telling.news()) as news:
            async for piece in news:
                if piece is not None:
                    await tell(piece.name, piece.body, None if piece.timings is None else stage_times(piece.timings))
    finally:
        await telling.leave()


async def _step(host: Host, incoming: Incoming, tell: Tell) -> None:
    session_id = take_fields(SessionName, incoming.message.fields).session_id
    if session_id is None:
        raise InvalidRequest("A step is of a session.", reasons=[Reason("/session_id", "is missing")])
    await _answer(lambda host: step_exchange(host, session_id), host, incoming, tell)
    host.open_model().open_sessions().prepare(session_id)


async def _reset(host: Host, incoming: Incoming, tell: Tell) -> None:
    """Put a session back to a start; without a session, start one."""
    session_id = take_fields(SessionName, incoming.message.fields).session_id
    if session_id is None:
        await _answer(create_exchange, host, incoming, tell)
    else:
        await _answer(lambda host: reset_exchange(host, session_id), host, incoming, tell)


_ANSWERS: Mapping[MessageKind, Callable[[Host, Incoming, Tell], Awaitable[None]]] = {
    MessageKind.PREDICT: _predict,
    MessageKind.SCORE: partial(_answer, score_exchange),
    MessageKind.LIKELIHOOD: partial(_answer, likelihood_exchange),
    MessageKind.OBSERVE: partial(_answer, observation_exchange),
    MessageKind.STEP: _step,
    MessageKind.RESET: _reset,
}
