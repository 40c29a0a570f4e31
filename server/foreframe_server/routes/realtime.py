"""The websocket /v1/realtime: msgpack messages, many requests in flight. Knows neither pixels nor engines."""

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from fastapi import APIRouter
from starlette.websockets import WebSocket

from foreframe_server.access import allow
from foreframe_server.codec import Document, take_fields
from foreframe_server.errors import InvalidRequest, Reason, not_ready
from foreframe_server.keys import Scope
from foreframe_server.realtime_schemas import MessageKind, PredictOptions, SessionName
from foreframe_server.routes.calls import stage_times
from foreframe_server.routes.conversation import ROUTE, Conversation, Incoming, Tell
from foreframe_server.routes.exchange import AnsweredT, AskedT, Offer, close_exchange, open_fields
from foreframe_server.routes.host import Host, host_of
from foreframe_server.routes.likelihoods import LIKELIHOODS
from foreframe_server.routes.line import Line
from foreframe_server.routes.models import contract_reply
from foreframe_server.routes.observations import OBSERVATIONS
from foreframe_server.routes.predictions import PREDICTIONS, STREAMED_PREDICTIONS
from foreframe_server.routes.scores import SCORES
from foreframe_server.routes.sessions import CREATIONS, prepare, reset_offer, step_offer
from foreframe_server.routes.telling import Telling

router = APIRouter(dependencies=[allow(Scope.PREDICT, Scope.LIKELIHOOD)])


@router.websocket(ROUTE)
async def talk(websocket: WebSocket) -> None:
    """Send the model's contract, then answer messages until either side ends it."""
    host = host_of(websocket)
    await websocket.accept()
    line = Line(websocket, host.settings.http.max_message_bytes)
    with host.metrics.connected():
        conversation = Conversation(line, host, partial(_answer_message, host), websocket.state.request_id)
        await conversation.hold(partial(greet, host))


def greet(host: Host) -> Document:
    """Write what a connection is told first: the default model's contract. Raises NotReady."""
    if not host.is_ready:
        raise not_ready()
    return contract_reply(host.open_model()).model_dump()


async def _answer_message(host: Host, incoming: Incoming, tell: Tell) -> None:
    kind = incoming.message.kind
    if kind is None or kind not in _ANSWERS:
        raise RuntimeError("a message came here that is answered elsewhere")
    await _ANSWERS[kind](host, incoming, tell)


async def _answer(offer: Offer[AskedT, AnsweredT], host: Host, incoming: Incoming, tell: Tell) -> None:
    """Answer as HTTP does."""
    message = incoming.message
    with host.models.loan() as loan:
        opened = await open_fields(host, offer, message.fields, message.request_id, incoming.received_s, loan)
        answered = await opened.exchange.answer(opened.asked, opened.call)
        reply = await close_exchange(opened, answered)
    await tell("done", reply.body, stage_times(answered.timings))


async def _predict(host: Host, incoming: Incoming, tell: Tell) -> None:
    if take_fields(PredictOptions, incoming.message.fields).progress:
        await _tell_prediction(host, incoming, tell)
    else:
        await _answer(PREDICTIONS, host, incoming, tell)


async def _tell_prediction(host: Host, incoming: Incoming, tell: Tell) -> None:
    """Answer with everything on the way."""
    message = incoming.message
    async with contextlib.AsyncExitStack() as stack:
        loan = stack.enter_context(host.models.loan())
        opened = await open_fields(
            host, STREAMED_PREDICTIONS, message.fields, message.request_id, incoming.received_s, loan
        )
        telling = Telling(opened)
        stack.push_async_callback(telling.leave)
        await telling.settle()
        news = await stack.enter_async_context(contextlib.aclosing(telling.news()))
        async for piece in news:
            if piece is not None:
                await tell(piece.name, piece.body, None if piece.timings is None else stage_times(piece.timings))


async def _step(host: Host, incoming: Incoming, tell: Tell) -> None:
    session_id = take_fields(SessionName, incoming.message.fields).session_id
    if session_id is None:
        raise InvalidRequest("A step is of a session.", reasons=[Reason("/session_id", "is missing")])
    await _answer(step_offer(session_id), host, incoming, tell)
    prepare(host, session_id)


async def _reset(host: Host, incoming: Incoming, tell: Tell) -> None:
    """Put a session back to a start; without a session, start one."""
    session_id = take_fields(SessionName, incoming.message.fields).session_id
    if session_id is None:
        await _answer(CREATIONS, host, incoming, tell)
    else:
        await _answer(reset_offer(session_id), host, incoming, tell)


_ANSWERS: Mapping[MessageKind, Callable[[Host, Incoming, Tell], Awaitable[None]]] = {
    MessageKind.PREDICT: _predict,
    MessageKind.SCORE: partial(_answer, SCORES),
    MessageKind.LIKELIHOOD: partial(_answer, LIKELIHOODS),
    MessageKind.OBSERVE: partial(_answer, OBSERVATIONS),
    MessageKind.STEP: _step,
    MessageKind.RESET: _reset,
}
